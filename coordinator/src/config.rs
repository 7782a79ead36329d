//! What a coordinator is told, with every default named.

use std::{fmt, net::SocketAddr, time::Duration};

use crate::scheduler::{MAX_ATTEMPTS, MAX_INTERRUPTIONS, RETRY_BACKOFF, RetryPolicy, SPECULATE_AFTER};

/// Time from a worker's last word to the return of its leases.
pub const LEASE_TTL: Duration = Duration::from_secs(30);
/// How often workers are asked to say that they live.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// Time that a worker whose connection broke has to come back before its leases are returned.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(10);
/// How often leases and jobs are looked at when nothing has happened.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two snapshots of a watched job.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(200);
/// Pure stages that run on the coordinator at once.
pub const LOCAL_SLOTS: usize = 2;
/// Time that the ranks of a gang have to come together.
pub const GROUP_TIMEOUT: Duration = Duration::from_secs(60);
/// Time that a rank waits for another in one exchange; one that is gone is noticed much sooner.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// Time for which an artifact that was uploaded or asked for waits for a job to hold it.
pub const ARTIFACT_GRACE: Duration = Duration::from_secs(60 * 60);

/// Who may call: clients, and workers (none: the same token).
#[derive(Clone)]
pub struct Tokens {
    /// What clients send as `authorization: Bearer ...`.
    pub client: String,
    /// What workers send.
    pub worker: Option<String>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

/// How the server shows who it is.
#[derive(Clone)]
pub struct Tls {
    /// Certificate chain, PEM.
    pub certificate: Vec<u8>,
    /// Private key, PEM.
    pub key: Vec<u8>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// What a coordinator is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Where gRPC is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where health and metrics are served over HTTP; none: nowhere.
    pub http: Option<SocketAddr>,
    /// `sqlite://PATH`, or the path of the SQLite file.
    pub store: String,
    /// `file:///DIR`, or the path of the folder.
    pub artifacts: String,
    /// See [`LEASE_TTL`].
    pub lease_ttl: Duration,
    /// See [`HEARTBEAT_INTERVAL`].
    pub heartbeat_interval: Duration,
    /// See [`RECONNECT_GRACE`].
    pub reconnect_grace: Duration,
    /// See [`SWEEP_INTERVAL`].
    pub sweep_interval: Duration,
    /// See [`WATCH_INTERVAL`].
    pub watch_interval: Duration,
    /// Attempts that a shard gets before it is set aside.
    pub max_attempts: u32,
    /// Workers that a shard may lose before it is set aside.
    pub max_interruptions: u32,
    /// Pause after a failed attempt; doubles with each.
    pub retry_backoff: Duration,
    /// See [`LOCAL_SLOTS`].
    pub local_slots: usize,
    /// Time after which a lagging shard may be leased to an idle worker too.
    pub speculate_after: Duration,
    /// See [`GROUP_TIMEOUT`].
    pub group_timeout: Duration,
    /// See [`EXCHANGE_TIMEOUT`].
    pub exchange_timeout: Duration,
    /// See [`ARTIFACT_GRACE`].
    pub artifact_grace: Duration,
    /// Bytes that all artifacts together may have; none: as many as the disk holds.
    pub disk_quota: Option<u64>,
    /// None: everybody may call.
    pub tokens: Option<Tokens>,
    /// None: gRPC goes unencrypted.
    pub tls: Option<Tls>,
}

impl Config {
    /// A coordinator on `listen` with its state in `store` and `artifacts`, and the defaults for all else.
    pub fn new(listen: SocketAddr, store: impl Into<String>, artifacts: impl Into<String>) -> Self {
        Self {
            listen,
            http: None,
            store: store.into(),
            artifacts: artifacts.into(),
            lease_ttl: LEASE_TTL,
            heartbeat_interval: HEARTBEAT_INTERVAL,
            reconnect_grace: RECONNECT_GRACE,
            sweep_interval: SWEEP_INTERVAL,
            watch_interval: WATCH_INTERVAL,
            max_attempts: MAX_ATTEMPTS,
            max_interruptions: MAX_INTERRUPTIONS,
            retry_backoff: RETRY_BACKOFF,
            local_slots: LOCAL_SLOTS,
            speculate_after: SPECULATE_AFTER,
            group_timeout: GROUP_TIMEOUT,
            exchange_timeout: EXCHANGE_TIMEOUT,
            artifact_grace: ARTIFACT_GRACE,
            disk_quota: None,
            tokens: None,
            tls: None,
        }
    }

    pub(crate) fn retry(&self) -> RetryPolicy {
        RetryPolicy {
            max_attempts: self.max_attempts.max(1),
            max_interruptions: self.max_interruptions.max(1),
            backoff: self.retry_backoff,
        }
    }
}
