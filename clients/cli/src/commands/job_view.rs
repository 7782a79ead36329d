//! How a job looks: as JSON for programs, as text for people.

use std::fmt::Write as _;

use cappy_proto::v1::{Failure, Job, JobState, Stage, StageState};
use serde_json::{Value, json};

use crate::{
    printer::{plain_table, trimmed},
    progress::duration,
};

/// `succeeded`, `running`, ...
pub fn state_name(job: &Job) -> String {
    short(JobState::try_from(job.state).unwrap_or_default().as_str_name(), "JOB_STATE_")
}

/// Whether the job has ended.
pub fn is_over(job: &Job) -> bool {
    matches!(
        JobState::try_from(job.state),
        Ok(JobState::Succeeded | JobState::Failed | JobState::Cancelled | JobState::Partial)
    )
}

/// The whole job.
pub fn json(job: &Job) -> Value {
    let progress = job.progress.clone().unwrap_or_default();
    json!({
        "id": job.id,
        "kind": job.kind,
        "title": job.title,
        "state": state_name(job),
        "created": time(job.create_time.as_ref()),
        "updated": time(job.update_time.as_ref()),
        "ended": time(job.end_time.as_ref()),
        "progress": progress.fraction,
        "eta_seconds": (progress.eta_seconds >= 0.0).then_some(progress.eta_seconds),
        "activity": progress.activity,
        "message": job.message,
        "priority": job.spec.as_ref().map(|spec| spec.priority),
        "model": (!job.model_id.is_empty()).then_some(&job.model_id),
        "stages": job.stages.iter().map(stage_json).collect::<Vec<_>>(),
        "failures": job.failures.iter().map(failure_json).collect::<Vec<_>>(),
    })
}

fn stage_json(stage: &Stage) -> Value {
    json!({
        "name": stage.name,
        "state": stage_state(stage),
        "shards_done": stage.shards_done,
        "shards": stage.shards_total,
        "message": stage.message,
    })
}

fn failure_json(failure: &Failure) -> Value {
    json!({
        "stage": failure.stage,
        "shard": failure.shard_id,
        "code": failure.code,
        "message": failure.message,
        "attempts": failure.attempts,
        "rows": (failure.row_start < failure.row_end).then_some([failure.row_start, failure.row_end]),
    })
}

fn stage_state(stage: &Stage) -> String {
    short(StageState::try_from(stage.state).unwrap_or_default().as_str_name(), "STAGE_STATE_")
}

/// For people: a headline, the stages, what failed.
pub fn text(job: &Job) -> String {
    let mut out = format!("{}  {}  {}\n", job.id, state_name(job), job.title);
    if !job.message.is_empty() {
        let _ = writeln!(out, "{}", job.message);
    }
    if !job.model_id.is_empty() {
        let _ = writeln!(out, "model {}", job.model_id);
    }
    if let Some(progress) = &job.progress
        && !is_over(job)
    {
        let _ = write!(out, "{:.0}%", progress.fraction * 100.0);
        if progress.eta_seconds >= 0.0 {
            let _ = write!(out, ", {} left", duration(progress.eta_seconds));
        }
        let _ = writeln!(out, "  {}", progress.activity);
    }
    let mut table = plain_table();
    table.set_header(["STAGE", "STATE", "SHARDS", ""]);
    for stage in &job.stages {
        let shards = format!("{}/{}", stage.shards_done, stage.shards_total);
        table.add_row([stage.name.clone(), stage_state(stage), shards, stage.message.clone()]);
    }
    out.push_str(&trimmed(&table));
    out.push_str(&failures(job));
    out
}

/// A line a failure.
pub fn failures(job: &Job) -> String {
    job.failures.iter().fold(String::new(), |mut out, failure| {
        let rows = match failure.row_end.saturating_sub(failure.row_start) {
            0 => String::new(),
            1 => format!(" row {}", failure.row_start),
            _ => format!(" rows {} to {}", failure.row_start, failure.row_end - 1),
        };
        let _ = writeln!(out, "{}{rows}: {} ({})", failure.stage, failure.message, failure.code);
        out
    })
}

/// RFC 3339 in UTC; null when unset.
pub fn time(time: Option<&prost_types::Timestamp>) -> Value {
    time.map_or(Value::Null, |time| Value::String(time.to_string()))
}

fn short(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_lowercase()
}
