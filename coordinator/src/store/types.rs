//! What the store keeps and what it answers, in the words of the design. Times are milliseconds of the store's clock.

use std::time::Duration;

use cappy_proto::{JobId, LeaseId, ModelId, ShardId, WorkerId};
use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch by the store's clock.
pub(crate) type Millis = i64;

macro_rules! stored_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// The code kept in the database; codes are never renumbered.
            pub(crate) const fn code(self) -> i64 {
                match self { $(Self::$variant => $code),+ }
            }

            /// The value of a code, unless a newer program wrote it.
            pub(crate) const fn from_code(code: i64) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

stored_enum!(
    /// State of a job. Codes equal the wire's.
    JobState {
        Queued = 1,
        Running = 2,
        Paused = 3,
        Succeeded = 4,
        Failed = 5,
        Cancelled = 6,
        Partial = 7,
    }
);

impl JobState {
    /// Whether the job has ended.
    pub(crate) const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Partial)
    }

    /// The word for people.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Partial => "partial",
        }
    }
}

stored_enum!(
    /// State of a stage. Codes equal the wire's.
    StageState {
        Waiting = 1,
        Running = 2,
        Succeeded = 3,
        Reused = 4,
        Failed = 5,
        Cancelled = 6,
        Skipped = 7,
    }
);

impl StageState {
    /// Whether the stage has ended.
    pub(crate) const fn is_terminal(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }

    /// Whether its outputs can be read.
    pub(crate) const fn has_outputs(self) -> bool {
        matches!(self, Self::Succeeded | Self::Reused)
    }
}

stored_enum!(
    /// State of a shard.
    ShardState {
        /// May be leased from its `not_before` on.
        Pending = 1,
        Leased = 2,
        Committed = 3,
        /// Set aside: it failed for good.
        Failed = 4,
        /// Its job was cancelled, or another shard of its stage failed for good.
        Cancelled = 5,
    }
);

stored_enum!(
    /// How a lease ended.
    LeaseOutcome {
        Completed = 1,
        Failed = 2,
        Expired = 3,
        /// Taken back: job cancelled or stage failed.
        Revoked = 4,
    }
);

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

/// An artifact with the name that it has for its reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamedOutput {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) size_bytes: u64,
}

/// A model that a worker found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResolvedModel {
    pub(crate) name: String,
    pub(crate) fingerprint: String,
    pub(crate) architecture: String,
    /// Of its weights in memory, in the number format of the task; 0: unknown.
    #[serde(default)]
    pub(crate) weight_bytes: u64,
    /// That number format.
    #[serde(default)]
    pub(crate) dtype: String,
    /// Of a layer; 0: unknown.
    #[serde(default)]
    pub(crate) attention_heads: u32,
}

/// A trained model, for the store to register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewModel {
    pub(crate) title: String,
    /// Of its content: the same content is the same model.
    pub(crate) fingerprint: String,
    pub(crate) files: Vec<NamedOutput>,
}

/// A registered model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModelRecord {
    pub(crate) id: ModelId,
    /// The first of the jobs that made it.
    pub(crate) job: JobId,
    pub(crate) title: String,
    pub(crate) created: Millis,
    pub(crate) fingerprint: String,
    pub(crate) files: Vec<NamedOutput>,
}

/// Rows `[start, end)` of a stage's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowRange {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl RowRange {
    pub(crate) const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What one shard produced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardOutput {
    pub(crate) artifacts: Vec<NamedOutput>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) resolved: Vec<ResolvedModel>,
    /// Rows cut to a model's maximum length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) truncated_rows: Option<u64>,
    /// Units of the shard, which are rows where it is one of rows; the store adds them when the stage ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) units: Option<u64>,
    /// Rows among the outputs that have no result, and the first of them by their place and the reason.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) failed_rows: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) named_failures: Vec<(u64, String)>,
    /// A model to register with the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<NewModel>,
}

/// What a stage produced: one entry a shard, in row order.
pub(crate) type StageOutputs = Vec<ShardOutput>;

/// A job to write.
#[derive(Clone, Debug)]
pub(crate) struct NewJob {
    pub(crate) id: JobId,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) kind: String,
    pub(crate) title: String,
    /// Encoded `JobSpec`.
    pub(crate) spec: Vec<u8>,
    /// The higher goes first.
    pub(crate) priority: i32,
    pub(crate) stages: Vec<NewStage>,
    /// Artifacts that its spec reads.
    pub(crate) inputs: Vec<String>,
    /// Registered models that it names.
    pub(crate) models: Vec<ModelId>,
}

/// A stage to write. Its index is its place in [`NewJob::stages`].
#[derive(Clone, Debug)]
pub(crate) struct NewStage {
    pub(crate) name: String,
    pub(crate) kind: String,
    /// Estimate until the stage opens.
    pub(crate) units_total: u64,
    /// A row that fails everywhere is set aside, and the rest of the stage goes on.
    pub(crate) spares_rows: bool,
}

/// Where a shard can run and where it would rather run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Requirements {
    /// Runs on the coordinator.
    #[serde(default)]
    pub(crate) local: bool,
    /// Backend that must run it; empty: any.
    #[serde(default)]
    pub(crate) backend: String,
    /// Fingerprints of the models that it uses.
    #[serde(default)]
    pub(crate) models: Vec<String>,
    /// Artifacts that it reads.
    #[serde(default)]
    pub(crate) inputs: Vec<String>,
    /// Asks an endpoint, where every answer is paid for.
    #[serde(default)]
    pub(crate) endpoint: bool,
    /// Bytes of weights that each of its workers will hold; 0: unknown.
    #[serde(default)]
    pub(crate) memory_bytes: u64,
    /// Several workers compute it together.
    #[serde(default)]
    pub(crate) gang: Option<Gang>,
}

impl Requirements {
    /// Workers that compute it together.
    pub(crate) fn ranks(&self) -> u32 {
        self.gang.map_or(1, |gang| gang.ranks)
    }
}

/// How the ranks of a gang share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GangKind {
    /// Each computes its share of every micro-batch's rows.
    Data,
    /// Each holds a slice of every weight.
    Tensor,
}

impl GangKind {
    /// What backends that can do it announce; the words are the plugin contract's.
    pub(crate) const fn feature(self) -> &'static str {
        match self {
            Self::Data => "data-parallel",
            Self::Tensor => "tensor-parallel",
        }
    }
}

/// Workers that compute a shard together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gang {
    pub(crate) kind: GangKind,
    /// At least 2.
    pub(crate) ranks: u32,
}

/// One lease of a gang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GangMember {
    pub(crate) lease: LeaseId,
    pub(crate) worker: WorkerId,
}

/// A shard to write when its stage opens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NewShard {
    /// Encoded task, opaque to the store; without its rows.
    pub(crate) task: Vec<u8>,
    pub(crate) units: u64,
    /// Which rows, where it is one of rows.
    pub(crate) rows: Option<RowRange>,
    pub(crate) requirements: Requirements,
}

/// What becomes of a job next, decided by the planner and applied in one transaction. A step whose
/// stage or job is no longer in the state that the planner saw changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// waiting -> running, with these shards.
    Open {
        stage: u32,
        fingerprint: Option<String>,
        shards: Vec<NewShard>,
        /// For people: why it runs as it does.
        message: String,
    },
    /// waiting -> reused, with these outputs.
    Reuse { stage: u32, fingerprint: String, outputs: StageOutputs },
    /// waiting -> skipped.
    Skip { stage: u32, message: String },
    /// waiting -> failed: it could not even be opened.
    Refuse { stage: u32, message: String },
    /// The job's terminal state.
    Finish { state: JobState, message: String },
}

/// A job's row.
#[derive(Clone, Debug)]
pub(crate) struct JobRow {
    pub(crate) id: JobId,
    pub(crate) kind: String,
    pub(crate) title: String,
    pub(crate) state: JobState,
    pub(crate) message: String,
    pub(crate) created: Millis,
    pub(crate) updated: Millis,
    pub(crate) ended: Option<Millis>,
    /// The model that it made.
    pub(crate) model: Option<ModelId>,
}

/// A stage's row.
#[derive(Clone, Debug)]
pub(crate) struct StageRow {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) state: StageState,
    pub(crate) message: String,
    /// Present once the stage has succeeded or was reused.
    pub(crate) outputs: Option<StageOutputs>,
    pub(crate) shards_done: u32,
    pub(crate) shards_total: u32,
    pub(crate) units_done: u64,
    pub(crate) units_total: u64,
    /// Summed time from lease to commit of its committed shards.
    pub(crate) seconds: f64,
}

/// A job with everything that the planner decides on.
#[derive(Clone, Debug)]
pub(crate) struct JobRecord {
    pub(crate) row: JobRow,
    /// Encoded `JobSpec`.
    pub(crate) spec: Vec<u8>,
    /// By index.
    pub(crate) stages: Vec<StageRow>,
    /// Shards set aside.
    pub(crate) failures: Vec<SetAside>,
    /// Registered models that it names.
    pub(crate) models: Vec<ModelRecord>,
    /// What its first pending shard of several ranks asks for.
    pub(crate) pending_gang: Option<Gang>,
}

/// A shard that failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SetAside {
    pub(crate) shard: ShardId,
    pub(crate) stage: String,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) attempts: u32,
    /// The rows that have no result because of it.
    pub(crate) rows: Option<RowRange>,
}

/// Answer to a submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Submitted {
    New,
    /// The key was known.
    Existing(JobId),
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

/// What the planner's steps led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Something changed: it is worth planning again.
    pub(crate) progressed: bool,
    /// Leases that ended with it.
    pub(crate) revoked: Vec<Revoked>,
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

/// Which events are asked for; empty: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventFilter {
    pub(crate) stage: String,
    pub(crate) shard: String,
}

/// What a failure or an expiry led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FailOutcome {
    /// Jobs with a stage that ended.
    pub(crate) ended: Vec<JobId>,
    /// Leases that ended with it.
    pub(crate) revoked: Vec<Revoked>,
}

/// A line of a job's history.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) seq: i64,
    pub(crate) time: Millis,
    pub(crate) stage: String,
    pub(crate) shard: String,
    pub(crate) worker: String,
    pub(crate) level: String,
    pub(crate) message: String,
}
