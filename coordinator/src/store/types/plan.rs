//! What the planner has written: jobs, stages, shards, and the steps from one state to the next.

use cappy_proto::{JobId, ModelId};
use serde::{Deserialize, Serialize};

use super::{JobState, Revoked, RowRange, StageOutputs};

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

/// What the planner's steps led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Something changed: it is worth planning again.
    pub(crate) progressed: bool,
    /// Leases that ended with it.
    pub(crate) revoked: Vec<Revoked>,
}
