//! Runs one leased shard: input files are on local disk, output files are left in a scratch directory.
//!
//! One file per kind of task; `rows/` reads and names input rows, `failure.rs` sorts what can go wrong.

mod examples;
mod failure;
mod generate;
mod progress;
mod resolve_models;
mod rows;
mod schedule;
mod score;
mod train;
mod validation;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use cappy_plugin_abi::GroupKind;
use cappy_proto::v1;

pub use failure::{ExecutionError, FailureClass};
pub use progress::Progress;
pub use rows::RowIndex;
pub use schedule::{Plan, Schedule, learning_rate};
pub use validation::{Evaluation, best, exhausted};

use crate::{engine::Engine, group::Gang};

/// What a shard is run with.
pub struct Attempt<'a> {
    /// Input artifacts by id.
    pub inputs: &'a HashMap<String, PathBuf>,
    /// Empty directory for the outputs; removed by the caller.
    pub scratch: &'a Path,
    /// Cancellation, and where progress is told.
    pub progress: &'a Progress,
    /// The other workers that compute the shard too.
    pub gang: Option<Gang<'a>>,
}

impl<'a> Attempt<'a> {
    /// The other workers, who must share the work in this way.
    pub(crate) fn gang(&self, kind: GroupKind) -> Result<Option<Gang<'a>>, ExecutionError> {
        match self.gang {
            Some(gang) if gang.kind != kind => Err(ExecutionError::permanent(
                "unsupported",
                "the task cannot be shared between workers in this way",
            )),
            gang => Ok(gang),
        }
    }

    /// Local files of input artifacts, in order.
    pub(crate) fn files(&self, artifacts: &[v1::Artifact]) -> Result<Vec<PathBuf>, ExecutionError> {
        artifacts
            .iter()
            .map(|artifact| {
                self.inputs.get(&artifact.id).cloned().ok_or_else(|| {
                    ExecutionError::internal(format!("input artifact {} was not fetched", artifact.id))
                })
            })
            .collect()
    }
}

/// What a shard gave.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Output files with the names that they have for their readers.
    pub outputs: Vec<(String, PathBuf)>,
    /// What it cost.
    pub stats: v1::ShardStats,
    /// Of a resolve task.
    pub resolved_models: Vec<v1::ResolvedModel>,
    /// Another rank of the group hands the outputs in.
    pub follows: bool,
}

/// Every artifact that a task reads.
pub fn inputs_of(task: &v1::ShardTask) -> Vec<v1::Artifact> {
    use v1::{model_ref::Source, shard_task::Task};
    let model_files = |model: &Option<v1::ModelRef>| match model
        .as_ref()
        .and_then(|model| model.source.as_ref())
    {
        Some(Source::Files(files)) => files.files.iter().filter_map(|file| file.artifact.clone()).collect(),
        _ => Vec::new(),
    };
    let (mut artifacts, model) = match &task.task {
        Some(Task::Generate(task)) => (task.input.clone(), model_files(&task.model)),
        Some(Task::Train(task)) => {
            let rows = task.examples.iter().chain(&task.validation).cloned().collect();
            (rows, model_files(&task.scorer))
        }
        Some(Task::Score(task)) => (task.input.clone(), model_files(&task.scorer)),
        Some(Task::ResolveModels(_)) | None => Default::default(),
    };
    artifacts.extend(model);
    let mut seen = std::collections::HashSet::new();
    artifacts.retain(|artifact| seen.insert(artifact.id.clone()));
    artifacts
}

/// Runs a task to its end. Blocks; for a thread of its own.
///
/// # Errors
/// Classified, with one line for people.
pub fn run(engine: &Engine, task: &v1::ShardTask, attempt: &Attempt<'_>) -> Result<Outcome, ExecutionError> {
    use v1::shard_task::Task;
    let started = std::time::Instant::now();
    let choice = crate::engine::Choice { backend: &task.backend, dtype: &task.dtype };
    let alone = matches!(&task.task, Some(Task::ResolveModels(_) | Task::Score(_)));
    if alone && attempt.gang.is_some() {
        return Err(ExecutionError::permanent("unsupported", "the task is for one worker, not for several"));
    }
    let mut outcome = match &task.task {
        Some(Task::ResolveModels(task)) => resolve_models::run(engine, task, choice, attempt),
        Some(Task::Generate(task)) => generate::run(engine, task, choice, attempt),
        Some(Task::Train(task)) => train::run(engine, task, choice, attempt),
        Some(Task::Score(task)) => score::run(engine, task, choice, attempt),
        None => Err(ExecutionError::permanent(
            "unsupported",
            "this worker does not know the task: it is older than the coordinator",
        )),
    }?;
    outcome.stats.seconds = started.elapsed().as_secs_f64();
    Ok(outcome)
}
