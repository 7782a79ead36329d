//! Stored jobs as the wire shows them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cappy_proto::v1;

use crate::{
    context::Context,
    planner,
    store::{JobRecord, JobRow, Millis, ModelRecord},
};

pub(super) fn time(millis: Millis) -> Option<prost_types::Timestamp> {
    let time: SystemTime = UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0));
    Some(time.into())
}

/// A line of a list: without stages, progress and spec.
pub(super) fn row(row: &JobRow) -> v1::Job {
    v1::Job {
        id: row.id.to_string(),
        kind: row.kind.clone(),
        title: row.title.clone(),
        state: i32::try_from(row.state.code()).unwrap_or(0),
        create_time: time(row.created),
        update_time: time(row.updated),
        end_time: row.ended.and_then(time),
        message: row.message.clone(),
        model_id: row.model.as_ref().map(ToString::to_string).unwrap_or_default(),
        ..Default::default()
    }
}

/// A registered model without its files.
pub(super) fn model(model: &ModelRecord) -> v1::RegisteredModel {
    v1::RegisteredModel {
        id: model.id.to_string(),
        job_id: model.job.to_string(),
        title: model.title.clone(),
        create_time: time(model.created),
        fingerprint: model.fingerprint.clone(),
        size_bytes: model.files.iter().map(|file| file.size_bytes).sum(),
    }
}

/// The whole job as it is now.
pub(super) fn job(context: &Context, record: &JobRecord) -> v1::Job {
    let spec = planner::spec_of(record);
    let kind = spec.as_ref().and_then(planner::kind_of);
    let backend = kind.map(|kind| kind.run().0).unwrap_or_default();
    let running = context.cluster.running(&record.row.id);
    let waits_for = record.pending_gang;
    let facts = planner::ClusterFacts { waits_for, ..context.cluster.facts(backend) };
    let progress = planner::progress(record.row.state, &record.stages, &running, backend, facts);
    let stages: Vec<v1::Stage> = record
        .stages
        .iter()
        .map(|stage| {
            let partly: f64 = running
                .iter()
                .filter(|lease| lease.stage == stage.index)
                .map(|lease| lease.done * lease.units as f64)
                .sum();
            v1::Stage {
                name: stage.name.clone(),
                kind: stage.kind.clone(),
                state: i32::try_from(stage.state.code()).unwrap_or(0),
                shards_done: stage.shards_done,
                shards_total: stage.shards_total,
                units_done: (stage.units_done + partly as u64).min(stage.units_total),
                units_total: stage.units_total,
                message: stage.message.clone(),
            }
        })
        .collect();
    let without_result = record.stages.iter().flat_map(|stage| {
        let named = stage.outputs.iter().flatten().flat_map(|shard| &shard.named_failures);
        named.map(|(row, message)| v1::Failure {
            stage: stage.name.clone(),
            code: "no_result".into(),
            message: message.clone(),
            row_start: *row,
            row_end: row + 1,
            ..Default::default()
        })
    });
    let failures = record
        .failures
        .iter()
        .map(|failure| v1::Failure {
            stage: failure.stage.clone(),
            shard_id: failure.shard.to_string(),
            code: failure.code.clone(),
            message: failure.message.clone(),
            attempts: failure.attempts,
            row_start: failure.rows.map_or(0, |rows| rows.start),
            row_end: failure.rows.map_or(0, |rows| rows.end),
        })
        .chain(without_result)
        .collect();
    v1::Job {
        progress: Some(v1::JobProgress {
            fraction: progress.fraction,
            eta_seconds: progress.eta_seconds.unwrap_or(-1.0),
            activity: progress.activity,
            shards_done: stages.iter().map(|stage| stage.shards_done).sum(),
            shards_total: stages.iter().map(|stage| stage.shards_total).sum(),
            workers_busy: context.cluster.busy_workers(&record.row.id),
        }),
        stages,
        failures,
        spec,
        ..row(&record.row)
    }
}
