//! A coordinator and a worker inside this process, with their state below the data directory.
//!
//! One process at a time owns the data directory (a locked file); another command finds the owner's address in a file
//! beside the lock and uses its cluster. When the owner ends, whoever still needs a cluster takes over.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use cappy_hub::HubSettings;
use cappy_process::directories;
use cappy_worker::{Backends, endpoint::Key};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::Need;
use crate::{
    arguments::Global,
    endpoint::HOSTS_FILE,
    failure::{Context as _, Failure, Outcome},
    printer::Printer,
};

/// How often the lock of another process is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long another process may take to start or end its cluster.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long components get to end in an orderly way.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What the owner writes beside the lock.
#[derive(Serialize, Deserialize)]
struct Owner {
    url: String,
    /// Whether it has a worker.
    models: bool,
    process: u32,
}

/// An embedded cluster: this process's own, or that of another process on the same data directory.
pub struct Embedded {
    url: String,
    own: Option<Own>,
}

struct Own {
    coordinator: cappy_coordinator::Handle,
    worker: Option<cappy_worker::Handle>,
    stop_worker: CancellationToken,
    stop_coordinator: CancellationToken,
    /// Tells other processes where it is.
    owner_path: PathBuf,
    // Dropped last: the next owner may come only when the store is closed.
    _lock: File,
}

impl Embedded {
    /// Starts one, or finds the one that runs.
    pub async fn start(global: &Global, need: Need, printer: &Printer) -> Outcome<Self> {
        let data_dir = match global.data_dir.clone().or_else(directories::default_data_dir) {
            Some(directory) => directory,
            None => return Err(Failure::usage("there is no home directory: give --data-dir DIR")),
        };
        fs::create_dir_all(&data_dir)
            .context(format!("cannot create the data directory `{}`", data_dir.display()))?;
        let lock_path = data_dir.join("embedded.lock");
        let owner_path = data_dir.join("embedded.json");
        let lock = File::options().create(true).append(true).open(&lock_path);
        let lock = lock.context(format!("cannot use the data directory `{}`", data_dir.display()))?;
        let give_up = tokio::time::Instant::now() + PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(Failure::failed(format!("cannot lock `{}`: {error}", lock_path.display())));
                }
            }
            if let Some(owner) = read_owner(&owner_path)
                && (owner.models || need == Need::Records)
            {
                printer.note(format!("using the embedded cluster of process {}", owner.process));
                return Ok(Self { url: owner.url, own: None });
            }
            if tokio::time::Instant::now() > give_up {
                return Err(Failure::failed(format!(
                    "another cappy-client uses `{}` and does not end; wait for it, or give another --data-dir",
                    data_dir.display()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
        // What a killed owner left behind names a dead cluster.
        let _ = fs::remove_file(&owner_path);
        let (own, url) = start_own(global, &data_dir, need, owner_path.clone(), lock).await?;
        let owner = Owner { url: url.clone(), models: need == Need::Models, process: std::process::id() };
        let text = serde_json::to_string(&owner).expect("an owner serialises");
        write_whole(&owner_path, &text).context(format!("cannot write `{}`", owner_path.display()))?;
        if need == Need::Models {
            printer.note(format!("embedded cluster with state in {}", data_dir.display()));
        }
        Ok(Self { url, own: Some(own) })
    }

    /// Where its coordinator listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends it, if it is this process's own.
    pub async fn stop(self) {
        let Some(own) = self.own else { return };
        // Whoever comes from here on waits for the lock instead of calling a cluster that ends. Best effort: a caller
        // that is refused says so.
        let _ = fs::remove_file(&own.owner_path);
        own.stop_worker.cancel();
        let ending = async {
            if let Some(worker) = own.worker
                && let Err(error) = worker.stopped().await
            {
                tracing::warn!("the worker ended with an error: {error}");
            }
            own.stop_coordinator.cancel();
            own.coordinator.stopped().await;
        };
        if tokio::time::timeout(STOP_PATIENCE, ending).await.is_err() {
            tracing::warn!("the embedded cluster does not end in time; its state is safe on disk");
        }
    }
}

async fn start_own(
    global: &Global,
    data_dir: &Path,
    need: Need,
    owner_path: PathBuf,
    lock: File,
) -> Outcome<(Own, String)> {
    let loopback = "127.0.0.1:0".parse().expect("a loopback address");
    let stop_coordinator = CancellationToken::new();
    let config = cappy_coordinator::Config::new(
        loopback,
        path_text(&data_dir.join("jobs.sqlite"))?,
        path_text(&data_dir.join("artifacts"))?,
    );
    let coordinator = cappy_coordinator::start(config, stop_coordinator.clone()).await.map_err(|error| {
        Failure::failed(format!("cannot start the embedded coordinator: {}", chain(&error)))
    })?;
    let url = format!("http://{}", coordinator.local_addr());
    let stop_worker = CancellationToken::new();
    let worker = match need {
        Need::Records => None,
        Need::Models => {
            let mut hub = HubSettings::from_env().map_err(Failure::usage)?;
            hub.data_dir = data_dir.to_owned();
            let backend = cappy_plugin_host::builtin(cappy_plugin_candle::CandleBackend)
                .map_err(|error| Failure::failed(format!("cannot start the candle backend: {error}")))?;
            let mut config =
                cappy_worker::Config::new(Backends::Builtin(vec![backend]), data_dir.join("worker"), hub);
            config.plugin_path.clone_from(&global.plugin_path);
            config.torch_lib_dir.clone_from(&global.torch_lib_dir);
            config.coordinator = Some(url.clone());
            config.inference_listen = Some(loopback);
            // The hosts that this user has named with --endpoint.
            config.endpoint.hosts.file = Some(data_dir.join(HOSTS_FILE));
            config.endpoint.key = std::env::var("OPENAI_API_KEY").ok().as_deref().and_then(Key::new);
            let worker = cappy_worker::start(config, stop_worker.clone()).await.map_err(|error| {
                Failure::failed(format!("cannot start the embedded worker: {}", chain(&error)))
            })?;
            Some(worker)
        }
    };
    Ok((Own { coordinator, worker, stop_worker, stop_coordinator, owner_path, _lock: lock }, url))
}

fn read_owner(path: &Path) -> Option<Owner> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary: PathBuf = path.with_extension(format!("{}.part", std::process::id()));
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}

fn path_text(path: &Path) -> Outcome<String> {
    let text = path.to_str().ok_or_else(|| Failure::usage("--data-dir: the path is not UTF-8"))?;
    Ok(text.to_owned())
}

/// The error with its causes, each told once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let told = inner.to_string();
        if !text.contains(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        source = inner.source();
    }
    text
}
