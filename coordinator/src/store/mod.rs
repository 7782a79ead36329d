//! The job store: what the coordinator must not lose. One trait, one conformance suite, one implementation a
//! database. Every method is one transaction; whatever it acknowledges is durable.

mod clock;
mod sqlite;
mod types;

#[cfg(test)]
mod lease_model;
#[cfg(test)]
mod suite;

use std::time::Duration;

use async_trait::async_trait;
use cappy_proto::{JobId, LeaseId, ModelId, ShardId, WorkerId};

pub(crate) use sqlite::SqliteStore;
pub(crate) use types::*;

use crate::scheduler::RetryPolicy;

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// Durable state of jobs, shards and leases.
#[async_trait]
pub(crate) trait JobStore: Send + Sync + 'static {
    /// Writes a job and its stages. A known idempotency key with the same spec returns the first job.
    async fn submit(&self, job: NewJob) -> Result<Submitted>;
    /// The id that `text` names: an id or a unique prefix of one.
    async fn find_job(&self, text: &str) -> Result<JobId>;
    /// A job with its stages.
    async fn job(&self, id: &JobId) -> Result<JobRecord>;
    /// Newest first, from before `before` on.
    async fn list_jobs(&self, limit: u32, before: Option<&JobId>) -> Result<Vec<JobRow>>;
    /// Jobs that have not ended, oldest first.
    async fn active_jobs(&self) -> Result<Vec<JobId>>;
    /// Ends a job that has not ended as `cancelled`; takes its leases back. False: it had ended before.
    async fn cancel(&self, id: &JobId) -> Result<(bool, Vec<Revoked>)>;
    /// Pauses or resumes a job. Pausing takes the workers' leases back: their shards wait again, and no attempt is
    /// counted. False: it was so before. An ended job is refused.
    async fn set_paused(&self, id: &JobId, paused: bool) -> Result<(bool, Vec<Revoked>)>;
    /// Forgets an ended job, and with it the model that it made unless another job made the same. Refused while the job
    /// has not ended, and while another that has not ended needs the model. Returns the models that are gone.
    async fn delete(&self, id: &JobId) -> Result<Vec<ModelId>>;

    /// Applies the planner's steps in one transaction. A stage whose fingerprint another job computes right now does
    /// not open: it waits for that job's.
    async fn apply(&self, job: &JobId, steps: Vec<Step>) -> Result<Applied>;
    /// Jobs with such a waiting stage.
    async fn waiting_for_others(&self) -> Result<Vec<JobId>>;
    /// Outputs of a committed stage with this fingerprint.
    async fn reusable(&self, fingerprint: &str) -> Result<Option<StageOutputs>>;
    /// Forgets such outputs, because an artifact of theirs is gone.
    async fn forget_outputs(&self, fingerprint: &str) -> Result<()>;

    /// What may be leased now: for every job that is neither paused nor ended, up to `per_job` shards of each
    /// place (coordinator, worker), in stage order.
    async fn pending(&self, per_job: u32) -> Result<Vec<PendingJob>>;
    /// Leases a pending shard. None: somebody else was faster, or its job is paused or ended.
    async fn lease(&self, shard: &ShardId, worker: &WorkerId, ttl: Duration) -> Result<Option<Granted>>;
    /// Shards that may lag: see [`Straggler`].
    async fn stragglers(&self) -> Result<Vec<Straggler>>;
    /// Leases a shard that one other worker holds a second time. None: it is no longer so.
    async fn lease_again(&self, shard: &ShardId, worker: &WorkerId, ttl: Duration)
    -> Result<Option<Granted>>;
    /// Leases a pending shard of several ranks to that many workers at once, a lease each. None: as [`Self::lease`], or it
    /// is for another number of ranks.
    async fn lease_gang(
        &self,
        shard: &ShardId,
        workers: &[WorkerId],
        ttl: Duration,
    ) -> Result<Option<Vec<Granted>>>;
    /// The members of the gang that a lease belongs to, the first granted first; none where it belongs to none. A lease
    /// that is not held is `Fenced`.
    async fn gang(&self, key: &LeaseKey) -> Result<Vec<GangMember>>;
    /// Prolongs leases, which become `worker`'s. Leases that are not answered are held no more.
    async fn extend(&self, worker: &WorkerId, leases: &[LeaseId], ttl: Duration) -> Result<Vec<Held>>;
    /// Brings the deadline of a lost worker's leases forward to `grace` from now.
    async fn shorten(&self, worker: &WorkerId, grace: Duration) -> Result<()>;
    /// Commits a shard, once, and ends its other lease. A repetition is answered alike; any other late completion is
    /// `Fenced`.
    async fn complete(&self, key: &LeaseKey, output: ShardOutput) -> Result<Completed>;
    /// Ends an attempt that failed, and with it the other leases of its gang. A shard of rows that can be spared and that has failed for good is cut in halves, and
    /// its single rows that fail are set aside; any other ends its stage. A repetition changes nothing; a late one is `Fenced`.
    async fn fail(&self, key: &LeaseKey, failure: AttemptFailure, retry: &RetryPolicy)
    -> Result<FailOutcome>;
    /// Takes back leases whose deadline has passed.
    async fn expire(&self, retry: &RetryPolicy) -> Result<FailOutcome>;

    /// The registered model that `text` names: an id or a unique prefix of one.
    async fn find_model(&self, text: &str) -> Result<ModelRecord>;
    /// All registered models, newest first.
    async fn list_models(&self) -> Result<Vec<ModelRecord>>;

    /// Makes an uploaded artifact known; the row is its commit point.
    async fn record_artifact(&self, id: &str, size_bytes: u64) -> Result<()>;
    /// Size of a known artifact.
    async fn artifact(&self, id: &str) -> Result<Option<u64>>;
    /// Size of a known artifact that somebody is about to use.
    async fn touch_artifact(&self, id: &str) -> Result<Option<u64>>;
    /// Forgets up to `limit` artifacts that no job holds and that nobody has been about to use for `grace`.
    async fn take_garbage(&self, grace: Duration, limit: u32) -> Result<Vec<String>>;
    /// Bytes of all known artifacts.
    async fn stored_bytes(&self) -> Result<u64>;
    /// Ended jobs with the bytes that removing each would free, most first.
    async fn heaviest_jobs(&self, limit: u32) -> Result<Vec<(JobId, u64)>>;

    /// A job's history after entry `after`, oldest first.
    async fn events(&self, job: &JobId, after: i64, limit: u32, only: &EventFilter) -> Result<Vec<Event>>;
    /// Adds to the history of a shard what has become known of its worker.
    async fn note(&self, shard: &ShardId, worker: &WorkerId, message: &str) -> Result<()>;
    /// Leases that workers hold.
    async fn count_leased(&self) -> Result<u64>;
    /// Counts for the metrics: jobs by state.
    async fn count_jobs(&self) -> Result<Vec<(JobState, u64)>>;
    /// Whether the store answers.
    async fn check(&self) -> Result<()>;
}

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("no {what} `{id}`")]
    NotFound { what: &'static str, id: String },
    #[error("`{prefix}` names several {what}s: {}", .candidates.join(", "))]
    Ambiguous { what: &'static str, prefix: String, candidates: Vec<String> },
    #[error("{0}")]
    WrongState(String),
    #[error("lease `{lease}` is no longer held: {reason}")]
    Fenced { lease: LeaseId, reason: &'static str },
    #[error("artifact `{id}` is not stored; upload it first")]
    UnknownArtifact { id: String },
    #[error("idempotency key `{key}` belongs to job `{job}`, which has another spec; use a new key")]
    KeyConflict { key: String, job: JobId },
    #[error("the store has schema {found}, this program knows up to {known}; run a newer cappy-coordinator")]
    NewerSchema { found: i64, known: i64 },
    #[error("the store is full")]
    Full(#[source] rusqlite::Error),
    #[error("the store is busy")]
    Busy(#[source] rusqlite::Error),
    #[error("the store has a row that this program cannot read: {0}")]
    Corrupt(String),
    #[error("the store failed")]
    Sqlite(#[from] rusqlite::Error),
    #[error("cannot open the store at `{path}`")]
    Open { path: String, source: std::io::Error },
    #[error("the store's thread ended early")]
    Interrupted,
}
