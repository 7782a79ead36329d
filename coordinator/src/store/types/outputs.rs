//! What shards produce: artifacts, resolved models, a model to register. Kept as JSON.

use cappy_proto::{JobId, ModelId};
use serde::{Deserialize, Serialize};

use super::Millis;

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
