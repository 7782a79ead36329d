//! What a job consists of and what happens to it next. Pure: everything here is a function of the job's spec and of a
//! snapshot of its stages, so it is the same after a restart and on another coordinator.
//!
//! [`check`] refuses a bad spec with every mistake at once; `kinds`, a file a kind of job, lays out its [`Graph`] of
//! stages, most of which are of the few sorts in `stages`; [`next_steps`] decides, whenever a stage has ended, which
//! stages open (cut into shards and fingerprinted), which are skipped, and when the job is over; [`progress`]
//! estimates; [`result_files`] lists files.

mod check;
mod fingerprint;
mod graph;
mod kinds;
mod next;
mod progress;
mod results;
mod stages;
#[cfg(test)]
mod testing;

use cappy_proto::v1;
use prost::Message as _;

pub(crate) use check::{Violation, check};
pub(crate) use graph::{DeviceMemory, Graph, Registry};
pub(crate) use kinds::{kind_of, kind_of_mut};
pub(crate) use next::next_steps;
pub(crate) use progress::{ClusterFacts, RunningLease, progress};
pub(crate) use results::result_files;

use crate::store::{JobRecord, RowRange};

/// A stored job's spec. None: another version wrote it.
pub(crate) fn spec_of(record: &JobRecord) -> Option<v1::JobSpec> {
    v1::JobSpec::decode(record.spec.as_slice()).ok()
}

/// The stages of a stored job. None: another version of the coordinator wrote it.
pub(crate) fn graph_of(record: &JobRecord) -> Option<Graph> {
    let spec = spec_of(record)?;
    let graph = kind_of(&spec)?.graph(Registry(&record.models));
    graph.is_of(&record.stages).then_some(graph)
}

/// The backend that a stored job asks for; empty: any.
pub(crate) fn backend_of(record: &JobRecord) -> String {
    let spec = spec_of(record);
    spec.as_ref().and_then(kind_of).map(|kind| kind.run().0.to_owned()).unwrap_or_default()
}

/// The artifacts that a spec reads, with their fields.
pub(crate) fn required_artifacts(spec: &v1::JobSpec) -> Vec<(String, &v1::Artifact)> {
    let Some(kind) = kind_of(spec) else { return Vec::new() };
    let path = |(field, artifact)| (format!("spec.{}.{field}", kind.word()), artifact);
    kind.inputs().into_iter().map(path).collect()
}

/// A task with the rows of its shard filled in.
pub(crate) fn with_rows(mut task: v1::ShardTask, rows: Option<RowRange>) -> v1::ShardTask {
    use v1::shard_task::Task;
    let Some(rows) = rows else { return task };
    match &mut task.task {
        Some(Task::Generate(task)) => (task.row_start, task.row_end) = (rows.start, rows.end),
        Some(Task::Score(task)) => (task.row_start, task.row_end) = (rows.start, rows.end),
        Some(Task::ResolveModels(_) | Task::Train(_)) | None => {}
    }
    task
}
