//! Cuts the rows of a stage into shards and wraps tasks.

use cappy_proto::v1::{self, shard_task::Task};
use prost::Message as _;

use crate::{
    local::{ArtifactRef, LocalTask},
    planner::fingerprint::Fingerprint,
    store::{NewShard, Requirements, RowRange},
};

/// A stage is cut into about this many shards, within limits: enough for a cluster to share and for little
/// to be lost with a worker, few enough that batches stay full.
const SHARDS_AIMED: u64 = 8;
/// A stage never has more shards than this, however large the rows' number.
const MAX_SHARDS: u64 = 4096;

/// What runs a job's tasks.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(in crate::planner) backend: String,
    pub(in crate::planner) dtype: String,
}

impl Run {
    pub(in crate::planner) fn new(backend: &str, dtype: &str) -> Self {
        Self { backend: backend.to_owned(), dtype: dtype.to_owned() }
    }

    /// Begins the fingerprint of a stage that workers compute.
    pub(super) fn fingerprint(&self, kind: &str) -> Fingerprint {
        Fingerprint::of(kind).text("backend", &self.backend).text("dtype", &self.dtype)
    }

    /// A shard for a worker.
    pub(super) fn remote(&self, task: Task, units: u64, requirements: Requirements) -> NewShard {
        let task =
            v1::ShardTask { task: Some(task), backend: self.backend.clone(), dtype: self.dtype.clone() };
        let requirements = Requirements { local: false, backend: self.backend.clone(), ..requirements };
        NewShard { task: task.encode_to_vec(), units, rows: None, requirements }
    }

    /// The shards of a stage over `rows`, each of `least` to `most`; all have the same task, told apart by their rows.
    pub(super) fn over_rows(
        &self,
        task: Task,
        rows: u64,
        limits: (u64, u64),
        requirements: Requirements,
    ) -> Vec<NewShard> {
        let whole = self.remote(task, 0, requirements);
        ranges(rows, limits)
            .map(|range| NewShard { units: range.len(), rows: Some(range), ..whole.clone() })
            .collect()
    }
}

/// A shard for the coordinator itself.
pub(in crate::planner) fn local(task: &LocalTask, units: u64) -> NewShard {
    let requirements = Requirements { local: true, ..Default::default() };
    NewShard { task: task.encode(), units: units.max(1), rows: None, requirements }
}

/// A local task names everything that decides its outputs.
pub(in crate::planner) fn local_fingerprint(task: &LocalTask) -> String {
    Fingerprint::of("local").field("task", &task.encode()).finish()
}

pub(super) fn ids(artifacts: &[v1::Artifact]) -> Vec<String> {
    artifacts.iter().map(|artifact| artifact.id.clone()).collect()
}

pub(in crate::planner) fn refs(artifacts: &[v1::Artifact]) -> Vec<ArtifactRef> {
    artifacts.iter().map(ArtifactRef::from).collect()
}

/// `[start, end)` ranges that cover `rows`, of near equal size.
fn ranges(rows: u64, (least, most): (u64, u64)) -> impl Iterator<Item = RowRange> {
    let size = rows.div_ceil(SHARDS_AIMED).clamp(least, most).max(rows.div_ceil(MAX_SHARDS)).max(1);
    let shards = rows.div_ceil(size);
    (0..shards).map(move |shard| RowRange { start: shard * rows / shards, end: (shard + 1) * rows / shards })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_every_row_once() {
        for limits in [(32, 128), (1, 16)] {
            for rows in [0, 1, 31, 33, 100, 1000, 58_736, 10_000_000] {
                let mut next = 0;
                let mut count = 0;
                for range in ranges(rows, limits) {
                    assert_eq!(range.start, next);
                    assert!(range.end > range.start, "{rows}");
                    next = range.end;
                    count += 1;
                }
                assert_eq!(next, rows);
                assert!(count <= MAX_SHARDS, "{rows} rows: {count} shards");
            }
        }
        assert_eq!(ranges(100, (32, 128)).count(), 4);
        assert_eq!(ranges(1000, (32, 128)).count(), 8);
        assert_eq!(ranges(1000, (1, 16)).count(), 63);
    }
}
