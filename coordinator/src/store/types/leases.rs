//! What may be leased, who holds what, and how an attempt ends.

use std::time::Duration;

use cappy_proto::{JobId, LeaseId, ShardId, WorkerId};

use super::{Requirements, RowRange};

/// How a failure counts. Codes equal the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureClass {
    /// The machine, not the work.
    Infrastructure,
    /// Counted; tried again until the attempts are used up.
    Attempt,
    /// Will fail everywhere.
    Permanent,
}

/// One lease of a gang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GangMember {
    pub(crate) lease: LeaseId,
    pub(crate) worker: WorkerId,
}

/// A shard that may be leased now.
#[derive(Clone, Debug)]
pub(crate) struct PendingShard {
    pub(crate) id: ShardId,
    pub(crate) requirements: Requirements,
    /// The worker that last failed it.
    pub(crate) last_worker: Option<WorkerId>,
}

/// Pending work by job, oldest job first.
#[derive(Clone, Debug, Default)]
pub(crate) struct PendingJob {
    pub(crate) job: JobIdOrder,
    /// The higher goes first.
    pub(crate) priority: i32,
    /// Leases of the job's shards that workers hold now.
    pub(crate) leased: u32,
    /// In stage order, at most the asked number.
    pub(crate) shards: Vec<PendingShard>,
}

/// Place of a job in the queue.
pub(crate) type JobIdOrder = i64;

/// A lease that was granted.
#[derive(Clone, Debug)]
pub(crate) struct Granted {
    pub(crate) lease: LeaseId,
    pub(crate) fencing_token: u64,
    pub(crate) shard: ShardId,
    pub(crate) job: JobId,
    pub(crate) stage: u32,
    pub(crate) stage_name: String,
    /// From 1.
    pub(crate) attempt: u32,
    pub(crate) task: Vec<u8>,
    pub(crate) units: u64,
    pub(crate) rows: Option<RowRange>,
    /// One of several that workers hold together.
    pub(crate) gang: bool,
}

/// A lease that its holder goes on with.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) lease: LeaseId,
    pub(crate) shard: ShardId,
    pub(crate) job: JobId,
    pub(crate) stage: u32,
    pub(crate) units: u64,
    /// One of several that workers hold together.
    pub(crate) gang: bool,
}

/// Names one attempt, as a worker gives it back.
#[derive(Clone, Debug)]
pub(crate) struct LeaseKey {
    pub(crate) lease: LeaseId,
    pub(crate) fencing_token: u64,
    pub(crate) shard: ShardId,
}

/// Answer to a completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Completed {
    /// False: this very completion had been committed before.
    pub(crate) newly_committed: bool,
    pub(crate) job: JobId,
    /// The stage is complete by this.
    pub(crate) stage_ended: bool,
    /// The lease of another worker that was slower.
    pub(crate) revoked: Vec<Revoked>,
}

/// Why an attempt failed.
#[derive(Clone, Debug)]
pub(crate) struct AttemptFailure {
    pub(crate) class: FailureClass,
    pub(crate) code: String,
    pub(crate) message: String,
}

/// A lease taken from its holder, who should be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Revoked {
    pub(crate) lease: LeaseId,
    pub(crate) worker: WorkerId,
    pub(crate) job: JobId,
}

/// A shard that one worker holds while nothing else of its stage waits.
#[derive(Clone, Debug)]
pub(crate) struct Straggler {
    /// Its `last_worker` is who holds it.
    pub(crate) shard: PendingShard,
    pub(crate) held: Duration,
    /// What it would take at the speed of the stage's committed shards.
    pub(crate) expected: Duration,
}

/// What a failure or an expiry led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FailOutcome {
    /// Jobs with a stage that ended.
    pub(crate) ended: Vec<JobId>,
    /// Leases that ended with it.
    pub(crate) revoked: Vec<Revoked>,
}
