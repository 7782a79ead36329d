//! The worker's side of a session with the coordinator.
//!
//! [`run`] connects, says hello, and from then on sends heartbeats with the progress of every lease it holds
//! (`leases.rs`); each lease that arrives becomes a task (`shard.rs`), which meets others where the shard is for several
//! workers (`meeting.rs`). A broken connection is made anew with growing
//! pauses; the leases go on meanwhile, and are announced again, but end when the coordinator was out of reach for as
//! long as a lease lives.

mod connection;
mod leases;
mod meeting;
mod shard;

use std::{sync::Arc, time::Duration};

use cappy_proto::v1;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Code;

use crate::{
    artifacts::ArtifactCache,
    coordinator::{Access, Channel},
    engine::Engine,
};
use connection::{End, connect_once};
use leases::{CancelReason, Leases};

/// First and longest pause before connecting again.
const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How long a lease lives without the coordinator, until it has said so itself.
const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(30);

/// How often leases are looked over while nothing is known to expire.
const EXPIRY_POLL: Duration = Duration::from_millis(500);

/// How long a worker that is told to stop waits for its shards to notice.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The coordinator does not want this worker.
    #[error("the coordinator refused this worker: {0}")]
    Refused(String),
    /// Not a URL.
    #[error("`{0}` is not a URL of a coordinator")]
    Address(String),
}

/// What a session is made of.
pub struct SessionConfig {
    /// Where it is, and how it is spoken to.
    pub coordinator: Access,
    /// Says who this worker is.
    pub hello: v1::Hello,
    /// Computes.
    pub engine: Arc<Engine>,
    /// Keeps files.
    pub cache: Arc<ArtifactCache>,
    /// Directory for what running shards write.
    pub scratch: std::path::PathBuf,
    /// Address by which other ranks reach this worker; `None`: the one from which it reaches the coordinator.
    pub group_host: Option<String>,
}

/// What the connection and the shards share.
struct Shared {
    config: SessionConfig,
    leases: Leases,
    /// Of the newest connection; shards take it for their calls.
    channel: watch::Sender<Option<Channel>>,
    /// A slot became free, or something else that the coordinator should hear at once.
    news: Notify,
    compute: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
    drain: CancellationToken,
}

/// Serves the coordinator until `stop` (give everything back and end), or until `drain` (take nothing new) and the
/// last lease is done.
///
/// # Errors
/// When the coordinator refuses the worker for good.
pub async fn run(
    config: SessionConfig,
    stop: CancellationToken,
    drain: CancellationToken,
) -> Result<(), SessionError> {
    let slots = config.hello.slots.max(1) as usize;
    let shared = Arc::new(Shared {
        leases: Leases::default(),
        channel: watch::channel(None).0,
        news: Notify::new(),
        compute: Semaphore::new(slots),
        tasks: TaskTracker::new(),
        stop,
        drain,
        config,
    });
    // On its own: a connection attempt into a silent network takes longer than a lease may live.
    let watch = tokio::spawn({
        let shared = Arc::clone(&shared);
        async move {
            loop {
                let next = shared.leases.until_expiry(Instant::now()).unwrap_or(EXPIRY_POLL);
                tokio::time::sleep(next.min(EXPIRY_POLL)).await;
                shared.leases.cancel_expired(Instant::now());
            }
        }
    });
    let mut pause = Backoff::new(RECONNECT_PAUSE);
    let mut ttl = DEFAULT_LEASE_TTL;
    let mut welcomed;
    let result = loop {
        welcomed = false;
        match connect_once(&shared, &mut welcomed, &mut ttl).await {
            Ok(End::Done) => break Ok(()),
            Ok(End::Lost(reason)) if welcomed => {
                tracing::warn!(reason, "lost the coordinator, connecting again");
            }
            Ok(End::Lost(reason)) => tracing::warn!(reason, "cannot reach the coordinator, trying again"),
            Err(error) => break Err(error),
        }
        if welcomed {
            pause = Backoff::new(RECONNECT_PAUSE);
            // The coordinator counts from the last heartbeat that reached it, which is older than our noticing.
            let unnoticed = (connection::KEEPALIVE.0 + connection::KEEPALIVE.1).min(ttl / 2);
            shared.leases.lost_contact(Instant::now() + ttl - unnoticed);
        }
        tokio::select! {
            () = tokio::time::sleep(pause.next()) => {}
            () = shared.stop.cancelled() => {}
            () = shared.drain.cancelled(), if shared.leases.is_empty() => {}
        }
        if shared.stop.is_cancelled() || (shared.drain.is_cancelled() && shared.leases.is_empty()) {
            break Ok(());
        }
    };
    watch.abort();
    shared.leases.cancel_all(CancelReason::Stopping);
    shared.tasks.close();
    let _ = tokio::time::timeout(STOP_GRACE, shared.tasks.wait()).await;
    result
}

/// Trying again may help.
pub fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
    )
}

/// Pauses that double, with jitter so that many workers do not come back at the same moment.
pub(crate) struct Backoff {
    next: Duration,
    most: Duration,
}

impl Backoff {
    pub(crate) fn new((first, most): (Duration, Duration)) -> Self {
        Self { next: first, most }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.most);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let key = u64::from(now.subsec_nanos()) ^ (u64::from(std::process::id()) << 32);
        pause.mul_f64(0.5 + 0.5 * cappy_plugin_abi::random::uniform(key))
    }
}
