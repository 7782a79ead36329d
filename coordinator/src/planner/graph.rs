//! The stages of a job as a graph, whatever its kind: what each computes, what it needs, which files it gives to people.

use cappy_proto::v1;

use super::results::ResultPath;
use crate::store::{ModelRecord, NamedOutput, NewShard, NewStage, ShardOutput, StageOutputs, StageRow};

/// Place of a stage in its job's graph, which is also its index in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StageId(usize);

impl StageId {
    pub(super) const fn index(self) -> usize {
        self.0
    }
}

/// What a stage computes. One implementation a kind of stage (`stages/`), or beside the one kind of job that has it.
pub(super) trait Work {
    /// The word for people and for cost estimates: `generate`.
    fn kind(&self) -> &'static str;
    /// Stages whose outputs it reads.
    fn needs(&self) -> Vec<StageId>;
    /// Its shards and fingerprint, once all that it needs has outputs.
    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError>;
    /// Made of whatever there is: opens when all that it needs has ended and anything of it has outputs.
    fn opens_on_any(&self) -> bool {
        false
    }
}

/// An opening stage: its shards, and its fingerprint unless it must always run.
#[derive(Default)]
pub(super) struct Opening {
    pub(super) fingerprint: Option<String>,
    pub(super) shards: Vec<NewShard>,
    /// For people: why it runs as it does.
    pub(super) message: String,
}

/// The stage cannot be opened, although all that it needs is complete.
#[derive(Debug, thiserror::Error)]
#[error("stage cannot start: {0}")]
pub(super) struct OpenError(pub(super) String);

/// Which of a stage's outputs are result files.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Publish {
    /// None: they are for later stages.
    Nothing,
    /// All outputs, in row order, are this one file.
    Rows(String),
    /// Each output under its own name, below this folder (empty: at the top).
    Named(String),
    /// One output under another path.
    Only { output: &'static str, path: String },
}

/// A stage.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) work: Box<dyn Work>,
    /// Estimate until it opens.
    pub(super) units: u64,
    pub(super) publish: Publish,
    /// Its outputs are what the job is for: without any such stage the job has failed.
    pub(super) delivers: bool,
    /// Whoever reads its outputs can do without some rows: a row that fails everywhere is set aside and the rest goes
    /// on. Otherwise such a row fails the stage.
    pub(super) spares_rows: bool,
}

impl Node {
    pub(super) fn new(name: impl Into<String>, units: u64, work: impl Work + 'static) -> Self {
        Self {
            name: name.into(),
            work: Box::new(work),
            units: units.max(1),
            publish: Publish::Nothing,
            delivers: false,
            spares_rows: false,
        }
    }

    pub(super) fn publish(self, publish: Publish) -> Self {
        Self { publish, ..self }
    }

    pub(super) fn delivers(self) -> Self {
        Self { delivers: true, ..self }
    }

    pub(super) fn spares_rows(self) -> Self {
        Self { spares_rows: true, ..self }
    }
}

/// All stages of a job, needs before users.
pub(crate) struct Graph {
    pub(super) nodes: Vec<Node>,
    /// Result files that the job was given.
    pub(super) given: Vec<ResultPath>,
    /// What a delivering stage stands for: `subset`, `file`; empty: the whole job.
    pub(super) part: &'static str,
}

impl Graph {
    /// An empty graph whose delivering stages are called `part`.
    pub(super) fn of_parts(part: &'static str) -> Self {
        Self { nodes: Vec::new(), given: Vec::new(), part }
    }

    /// Adds a stage behind all that it needs.
    pub(super) fn add(&mut self, node: Node) -> StageId {
        self.nodes.push(node);
        StageId(self.nodes.len() - 1)
    }

    /// As the store keeps them.
    pub(crate) fn stages(&self) -> Vec<NewStage> {
        self.nodes
            .iter()
            .map(|node| NewStage {
                name: node.name.clone(),
                kind: node.work.kind().to_owned(),
                units_total: node.units,
                spares_rows: node.spares_rows,
            })
            .collect()
    }

    /// Whether the stored stages are these.
    pub(super) fn is_of(&self, stages: &[StageRow]) -> bool {
        self.nodes.len() == stages.len()
            && self.nodes.iter().zip(stages).all(|(node, stage)| node.name == stage.name)
    }
}

/// What connected workers have room for: bytes that models may take on the largest of them. 0: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeviceMemory {
    /// Of those that have the job's backend.
    pub(crate) largest: u64,
    /// Of those that can hold a slice of a model.
    pub(crate) largest_of_ranks: u64,
}

/// What the stages before have produced, and what there is to run the next ones on.
pub(super) struct Outputs<'a> {
    pub(super) stages: &'a [StageRow],
    pub(super) memory: DeviceMemory,
}

impl<'a> Outputs<'a> {
    /// Of a stage that may have none.
    pub(super) fn try_of(&self, stage: StageId) -> Option<&'a StageOutputs> {
        self.stages.get(stage.index())?.outputs.as_ref()
    }

    pub(super) fn of(&self, stage: StageId) -> Result<&'a StageOutputs, OpenError> {
        self.try_of(stage).ok_or_else(|| {
            let name = self.stages.get(stage.index()).map_or("?", |stage| stage.name.as_str());
            OpenError(format!("`{name}` has no outputs"))
        })
    }

    /// All artifacts, in row order.
    pub(super) fn artifacts(&self, stage: StageId) -> Result<Vec<v1::Artifact>, OpenError> {
        Ok(self.of(stage)?.iter().flat_map(|shard| &shard.artifacts).map(artifact).collect())
    }

    /// The outputs of this name, in row order; there must be one.
    pub(super) fn named(&self, stage: StageId, name: &str) -> Result<Vec<v1::Artifact>, OpenError> {
        let shards = self.of(stage)?.iter().flat_map(|shard| &shard.artifacts);
        let found: Vec<v1::Artifact> = shards.filter(|output| output.name == name).map(artifact).collect();
        if found.is_empty() {
            Err(OpenError(format!("an earlier stage left no `{name}`")))
        } else {
            Ok(found)
        }
    }
}

/// Rows that a stage reads.
#[derive(Clone, Debug)]
pub(super) enum Rows {
    /// Uploaded with the job.
    Given { artifact: v1::Artifact, rows: u64 },
    /// Outputs of a stage, of which this many are expected.
    Made { stage: StageId, rows: u64 },
}

impl Rows {
    /// The rows of a file of the spec.
    pub(super) fn of_file(file: &v1::RowFile) -> Self {
        Self::Given { artifact: file.artifact.clone().unwrap_or_default(), rows: file.rows }
    }

    pub(super) fn need(&self) -> Option<StageId> {
        match self {
            Self::Given { .. } => None,
            Self::Made { stage, .. } => Some(*stage),
        }
    }

    pub(super) fn artifacts(&self, outputs: &Outputs<'_>) -> Result<Vec<v1::Artifact>, OpenError> {
        match self {
            Self::Given { artifact, .. } => Ok(vec![artifact.clone()]),
            Self::Made { stage, .. } => outputs.artifacts(*stage),
        }
    }

    /// How many there are; before they are made, how many are expected.
    pub(super) fn count(&self, outputs: &Outputs<'_>) -> u64 {
        match self {
            Self::Given { rows, .. } => *rows,
            Self::Made { stage, rows } => {
                // Rows that were set aside are not there.
                let made = |shards: &StageOutputs| {
                    shards.iter().map(|shard: &ShardOutput| shard.units).sum::<Option<u64>>()
                };
                outputs.try_of(*stage).and_then(made).unwrap_or(*rows)
            }
        }
    }

    pub(super) const fn expected(&self) -> u64 {
        match self {
            Self::Given { rows, .. } | Self::Made { rows, .. } => *rows,
        }
    }
}

/// Registered models that a job may name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registry<'a>(pub(crate) &'a [ModelRecord]);

impl<'a> Registry<'a> {
    pub(super) fn get(self, id: &str) -> Option<&'a ModelRecord> {
        self.0.iter().find(|model| model.id.as_str() == id)
    }
}

pub(super) fn artifact(output: &NamedOutput) -> v1::Artifact {
    v1::Artifact { id: output.id.clone(), size_bytes: output.size_bytes }
}
