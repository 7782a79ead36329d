//! What readers are told: jobs, stages, what was set aside, history.

use cappy_proto::{JobId, ModelId, ShardId};

use super::{Gang, JobState, ModelRecord, RowRange, StageOutputs, StageState};

/// Milliseconds since the Unix epoch by the store's clock.
pub(crate) type Millis = i64;

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

/// Which events are asked for; empty: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventFilter {
    pub(crate) stage: String,
    pub(crate) shard: String,
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
