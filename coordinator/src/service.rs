//! Start and end of a coordinator.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    artifacts::{ArtifactError, ArtifactStore},
    changes::Changes,
    collection,
    config::Config,
    context::Context,
    http,
    membership::Cluster,
    metrics::Metrics,
    rpc,
    scheduler::{Scheduler, SchedulerHandle},
    store::{JobStore, SqliteStore, StoreError},
};

/// Time that open calls get to end at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a coordinator did not start.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StartError(#[from] Reason);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot open the job store `{location}`")]
    Store { location: String, source: StoreError },
    #[error("unsupported job store `{location}`: give sqlite://PATH or the path of a file")]
    UnknownStore { location: String },
    #[error("the TLS certificate or its key cannot be used")]
    Tls { source: tonic::transport::Error },
    #[error("cannot open the artifact store `{location}`")]
    Artifacts { location: String, source: ArtifactError },
}

/// A running coordinator.
#[derive(Debug)]
pub struct Handle {
    address: SocketAddr,
    http: Option<SocketAddr>,
    tasks: Vec<JoinHandle<()>>,
}

impl Handle {
    /// Where gRPC is served.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where HTTP is served, if anywhere.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Waits until everything has ended after the token was cancelled.
    pub async fn stopped(self) {
        for task in self.tasks {
            // A task that panicked has said so through the panic hook.
            let _ = task.await;
        }
    }
}

/// Starts a coordinator; it runs until `shutdown` is cancelled.
///
/// # Errors
/// A port that cannot be bound, a store that cannot be opened or that a newer program wrote.
pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Handle, StartError> {
    let store = open_store(&config.store).await?;
    let artifacts = ArtifactStore::open(&config.artifacts)
        .map_err(|source| Reason::Artifacts { location: config.artifacts.clone(), source })?;
    let server = rpc::transport(config.tls.as_ref()).map_err(|source| Reason::Tls { source })?;
    let (listener, address) = bind(config.listen).await?;
    let http = match config.http {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let leased = store
        .count_leased()
        .await
        .map_err(|source| Reason::Store { location: config.store.clone(), source })?;
    let cluster = match leased {
        0 => Cluster::default(),
        _ => Cluster::returning_within(config.lease_ttl),
    };
    let context = Context {
        config: Arc::new(config),
        store,
        artifacts,
        cluster: Arc::new(cluster),
        rendezvous: Arc::default(),
        changes: Arc::new(Changes::default()),
        metrics: Arc::new(Metrics::default()),
        scheduler: SchedulerHandle::default(),
        shutdown: shutdown.clone(),
    };

    let mut tasks = vec![
        tokio::spawn(Scheduler::new(context.clone()).run(shutdown.clone())),
        tokio::spawn(collection::run(context.clone(), shutdown.clone())),
        tokio::spawn(serve_rpc(server, context.clone(), listener, shutdown.clone())),
    ];
    let http = http.map(|(listener, address)| {
        tasks.push(tokio::spawn(async move {
            if let Err(error) = http::serve(context, listener, shutdown).await {
                tracing::error!(%error, "HTTP ended");
            }
        }));
        address
    });
    tracing::info!(%address, "coordinator ready");
    Ok(Handle { address, http, tasks })
}

async fn open_store(location: &str) -> Result<Arc<dyn JobStore>, Reason> {
    let path = match location.split_once("://") {
        None => PathBuf::from(location),
        Some(("sqlite", path)) if !path.is_empty() => PathBuf::from(path),
        Some(_) => return Err(Reason::UnknownStore { location: location.to_owned() }),
    };
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open(&path)).await;
    match opened.unwrap_or(Err(StoreError::Interrupted)) {
        Ok(store) => Ok(Arc::new(store)),
        Err(source) => Err(Reason::Store { location: location.to_owned(), source }),
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Reason> {
    let error = |source| Reason::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(error)?;
    let bound = listener.local_addr().map_err(error)?;
    Ok((listener, bound))
}

/// Serves until the shutdown, and then lets open calls end for a while.
async fn serve_rpc(
    server: tonic::transport::Server,
    context: Context,
    listener: TcpListener,
    shutdown: CancellationToken,
) {
    let cut = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        result = rpc::serve(server, context, listener, shutdown.clone()) => {
            if let Err(error) = result {
                tracing::error!(error = &error as &dyn std::error::Error, "gRPC ended");
                shutdown.cancel();
            }
        }
        () = cut => {}
    }
}
