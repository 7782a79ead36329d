//! Puts a worker together and keeps it running.

use std::{
    fs::{self, File, TryLockError},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use cappy_hub::Hub;
use cappy_plugin_host::Registry;
use cappy_proto::{PROTOCOL_VERSION, v1};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    artifacts::ArtifactCache,
    checkpoint::CheckpointStore,
    compute::Budgets,
    config::{Backends, Config},
    coordinator::Access,
    endpoint::Endpoints,
    engine::{Engine, RecentNames},
    execution::RowIndex,
    inference::{self, Rules, ServeError},
    models::Models,
    registered::Registered,
    residency::Residency,
    session::{self, SessionConfig, SessionError},
};

/// Workers on one machine that share a cache directory by name.
const MAX_NEIGHBOURS: u32 = 64;

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The plugin directory.
    #[error(transparent)]
    Plugins(#[from] cappy_plugin_host::DiscoverError),
    /// Nothing to compute with.
    #[error("no usable backend on device `{device}`{}", reasons_text(.reasons))]
    NoBackend {
        /// As configured.
        device: String,
        /// Why each was refused.
        reasons: Vec<String>,
    },
    /// The cache directory.
    #[error("cannot use the cache directory `{}`: {source}", dir.display())]
    Cache {
        /// As configured.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The inference service.
    #[error(transparent)]
    Inference(#[from] ServeError),
    /// Neither a coordinator nor an address of its own.
    #[error("nothing to do: give a coordinator, an address for the inference service, or both")]
    Idle,
}

fn reasons_text(reasons: &[String]) -> String {
    if reasons.is_empty() { ": none was found".to_owned() } else { format!(": {}", reasons.join("; ")) }
}

/// A running worker.
pub struct Handle {
    inference_addr: Option<SocketAddr>,
    drain: CancellationToken,
    running: JoinHandle<Result<(), SessionError>>,
}

impl Handle {
    /// Where the inference service listens.
    pub fn inference_addr(&self) -> Option<SocketAddr> {
        self.inference_addr
    }

    /// Finishes the leases that it holds, takes none, and ends.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends what [`Handle::drain`] would; to hand to somebody who should decide.
    pub fn drain_token(&self) -> CancellationToken {
        self.drain.clone()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When the coordinator refused this worker.
    pub async fn stopped(self) -> Result<(), SessionError> {
        match self.running.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Starts a worker. It ends when `stop` is cancelled (what it was doing is given back), or when it is drained.
///
/// # Errors
/// Without a backend, a usable cache directory or the address of the inference service.
pub async fn start(config: Config, stop: CancellationToken) -> Result<Handle, StartError> {
    if config.coordinator.is_none() && config.inference_listen.is_none() {
        return Err(StartError::Idle);
    }
    let registry = open_backends(&config)?;
    let backends = describe(&registry);
    let memory_of_device = registry.ready().find_map(|backend| backend.describe().memory_of(&config.device));
    let memory_bytes = config.memory.bytes(memory_of_device);
    let home = Home::open(&config.cache_dir, &config.device)
        .map_err(|source| StartError::Cache { dir: config.cache_dir.clone(), source })?;
    let cache_error = |source| StartError::Cache { dir: home.dir.clone(), source };
    let cache =
        Arc::new(ArtifactCache::open(home.dir.join("artifacts"), config.cache_bytes).map_err(cache_error)?);
    let scratch = home.scratch().map_err(cache_error)?;
    // A URL that is none is refused by the session, with its reason.
    let access = config.coordinator.map(|url| Access { url, token: config.token, tls_ca: config.tls_ca });
    let registered =
        access.as_ref().and_then(|access| Registered::of(access, Arc::clone(&cache), scratch.clone()).ok());
    let engine = Arc::new(Engine {
        registry: Mutex::new(registry),
        device: config.device.clone(),
        dtype: config.dtype.clone(),
        models: Models::new(Hub::new(config.hub)).with_registered(registered),
        residency: Residency::new(memory_bytes),
        checkpoints: CheckpointStore::open(home.dir.join("checkpoints"), config.checkpoint_interval)
            .map_err(cache_error)?,
        budgets: config.budgets.unwrap_or_else(|| Budgets::of(&config.device)),
        // Beside the devices' own directories: what one of them paid for serves all.
        endpoints: Endpoints::new(config.endpoint, config.cache_dir.join("endpoint-answers")),
        names: RecentNames::default(),
        row_index: RowIndex::default(),
    });

    let listening = match config.inference_listen {
        Some(address) => Some(inference::listen(address).await?),
        None => None,
    };
    let inference_addr = listening.as_ref().map(|listening| listening.address);
    let drain = CancellationToken::new();
    let stop_serving = CancellationToken::new();
    let serving = listening.map(|listening| {
        let rules = Rules { calls: config.queue, interactive_wait: config.interactive_wait };
        tokio::spawn(listening.serve(Arc::clone(&engine), rules, stop_serving.clone()))
    });

    let session = access.map(|coordinator| {
        let hello = v1::Hello {
            protocol_version: PROTOCOL_VERSION,
            name: config.name.clone(),
            version: cappy_process::VERSION.to_owned(),
            device: config.device.clone(),
            backends,
            slots: config.slots.max(1),
            inference_url: inference_addr
                .map(|address| advertised(address, &config.name))
                .unwrap_or_default(),
            memory_bytes,
            previous_end: config.previous_end.clone(),
        };
        let group_host = config.group_host.clone();
        SessionConfig { coordinator, hello, engine, cache, scratch, group_host }
    });
    let running = {
        let drain = drain.clone();
        tokio::spawn(async move {
            let result = match session {
                Some(session) => session::run(session, stop, drain).await,
                None => {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = drain.cancelled() => {}
                    }
                    Ok(())
                }
            };
            stop_serving.cancel();
            if let Some(serving) = serving {
                let _ = serving.await;
            }
            drop(home);
            result
        })
    };
    Ok(Handle { inference_addr, drain, running })
}

fn open_backends(config: &Config) -> Result<Registry, StartError> {
    let mut registry = Registry::default();
    registry.set_torch_lib_dir(config.torch_lib_dir.clone());
    match &config.backends {
        Backends::Builtin(backends) => {
            backends.iter().for_each(|backend| registry.add_ready(Arc::clone(backend)));
            if let Some(dir) = &config.plugin_path {
                registry.discover(dir)?;
            }
        }
        Backends::PluginPath(dir) => registry.discover(dir)?,
    }
    registry.open_all();
    if registry.ready().any(|backend| backend.describe().devices.contains(&config.device)) {
        return Ok(registry);
    }
    let reasons = registry
        .entries()
        .iter()
        .map(|entry| match entry.reason() {
            Some(reason) => format!("`{}` was refused: {reason}", entry.name()),
            None => format!("`{}` does not know the device", entry.name()),
        })
        .collect();
    Err(StartError::NoBackend { device: config.device.clone(), reasons })
}

fn describe(registry: &Registry) -> Vec<v1::BackendInfo> {
    registry
        .ready()
        .map(|backend| {
            let it = backend.describe();
            let mut architectures = it.scorer_architectures;
            architectures.extend(it.generator_architectures);
            architectures.sort();
            architectures.dedup();
            v1::BackendInfo {
                name: it.name,
                version: it.version,
                engine_version: it.engine_version,
                architectures,
                dtypes: it.dtypes,
                features: it.features,
            }
        })
        .collect()
}

/// The URL that others reach this address by.
fn advertised(address: SocketAddr, host: &str) -> String {
    if address.ip().is_unspecified() {
        format!("http://{host}:{}", address.port())
    } else {
        format!("http://{address}")
    }
}

/// This worker's own directory below the cache directory, locked while it runs: two workers of one machine must not
/// clean up each other's files.
struct Home {
    dir: PathBuf,
    _lock: File,
}

impl Home {
    fn open(cache_dir: &Path, device: &str) -> io::Result<Self> {
        let base: String = device.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        fs::create_dir_all(cache_dir)?;
        for neighbour in 0..MAX_NEIGHBOURS {
            let name = if neighbour == 0 { base.clone() } else { format!("{base}-{neighbour}") };
            let dir = cache_dir.join(name);
            fs::create_dir_all(&dir)?;
            let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock"))?;
            match lock.try_lock() {
                Ok(()) => return Ok(Self { dir, _lock: lock }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::Error::other(format!("{MAX_NEIGHBOURS} workers use it already")))
    }

    /// Empty: what an earlier process left behind is of no use.
    fn scratch(&self) -> io::Result<PathBuf> {
        let scratch = self.dir.join("scratch");
        if scratch.exists() {
            fs::remove_dir_all(&scratch)?;
        }
        fs::create_dir(&scratch)?;
        Ok(scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_do_not_share_a_home() {
        let dir = tempfile::tempdir().unwrap();
        let first = Home::open(dir.path(), "cuda:0").unwrap();
        let second = Home::open(dir.path(), "cuda:0").unwrap();
        assert_ne!(first.dir, second.dir);
        fs::write(first.scratch().unwrap().join("left"), "x").unwrap();
        let path = first.dir.clone();
        drop(first);
        let again = Home::open(dir.path(), "cuda:0").unwrap();
        assert_eq!(again.dir, path);
        assert_eq!(fs::read_dir(again.scratch().unwrap()).unwrap().count(), 0);
    }
}
