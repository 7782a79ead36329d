//! The planner's steps, and the end of a job.

use cappy_proto::{JobId, ShardId};
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{
    artifacts, jobs, models,
    rows::{self, Entry, collect, log, to_u64},
};
use crate::store::*;

pub(super) fn apply(tx: &Transaction<'_>, now: Millis, job: &JobId, steps: &[Step]) -> Result<Applied> {
    let mut applied = Applied::default();
    if jobs::row(tx, job)?.state.is_terminal() {
        return Ok(applied);
    }
    for step in steps {
        applied.progressed |= match step {
            Step::Open { stage, fingerprint, shards, message } => {
                open(tx, now, job, *stage, fingerprint.as_deref(), shards, message)?
            }
            Step::Reuse { stage, fingerprint, outputs } => reuse(tx, now, job, *stage, fingerprint, outputs)?,
            Step::Skip { stage, message } => end_waiting(tx, now, job, *stage, StageState::Skipped, message)?,
            Step::Refuse { stage, message } => {
                end_waiting(tx, now, job, *stage, StageState::Failed, message)?
            }
            Step::Finish { state, message } => {
                applied.revoked.extend(finish(tx, now, job, *state, message)?);
                true
            }
        };
    }
    tx.execute("UPDATE jobs SET updated_ms = ?1 WHERE id = ?2", params![now, job.as_str()])?;
    Ok(applied)
}

/// A job that runs a stage with this fingerprint now.
fn computing(tx: &Transaction<'_>, job: &JobId, fingerprint: &str) -> Result<Option<String>> {
    Ok(tx
        .query_row(
            "SELECT s.job_id FROM stages s JOIN jobs j ON j.id = s.job_id
             WHERE s.fingerprint = ?1 AND s.state = ?2 AND s.job_id != ?3 AND j.state IN (1, 2) LIMIT 1",
            params![fingerprint, StageState::Running.code(), job.as_str()],
            |row| row.get(0),
        )
        .optional()?)
}

/// The stage waits for another job that computes the same.
fn wait_for(
    tx: &Transaction<'_>,
    now: Millis,
    job: &JobId,
    stage: u32,
    fingerprint: &str,
    other: &str,
) -> Result<()> {
    let message = format!("waits for job {other}, which computes the same");
    let changed = tx.execute(
        "UPDATE stages SET fingerprint = ?1, message = ?2
         WHERE job_id = ?3 AND idx = ?4 AND state = ?5 AND message != ?2",
        params![fingerprint, message, job.as_str(), stage, StageState::Waiting.code()],
    )?;
    if changed > 0 {
        log_stage(tx, now, job, stage, "info", &message)?;
    }
    Ok(())
}

fn open(
    tx: &Transaction<'_>,
    now: Millis,
    job: &JobId,
    stage: u32,
    fingerprint: Option<&str>,
    shards: &[NewShard],
    message: &str,
) -> Result<bool> {
    if let Some(fingerprint) = fingerprint
        && let Some(other) = computing(tx, job, fingerprint)?
    {
        wait_for(tx, now, job, stage, fingerprint, &other)?;
        return Ok(false);
    }
    let units: u64 = shards.iter().map(|shard| shard.units).sum();
    let opened = tx.execute(
        "UPDATE stages SET state = ?1, fingerprint = ?2, shards_total = ?3, units_total = ?4, message = ?8
         WHERE job_id = ?5 AND idx = ?6 AND state = ?7",
        params![
            StageState::Running.code(),
            fingerprint,
            rows::to_i64(shards.len() as u64),
            rows::to_i64(units),
            job.as_str(),
            stage,
            StageState::Waiting.code(),
            message,
        ],
    )?;
    if opened == 0 {
        return Ok(false);
    }
    let mut insert = tx.prepare_cached(
        "INSERT INTO shards (id, job_id, stage, idx, local, task, requirements, units, state, row_start, row_end,
                             ranks)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?;
    for (index, shard) in shards.iter().enumerate() {
        insert.execute(params![
            ShardId::generate().as_str(),
            job.as_str(),
            stage,
            rows::to_i64(index as u64),
            shard.requirements.local,
            shard.task,
            rows::encode(&shard.requirements)?,
            rows::to_i64(shard.units),
            ShardState::Pending.code(),
            shard.rows.map(|rows| rows::to_i64(rows.start)),
            shard.rows.map(|rows| rows::to_i64(rows.end)),
            shard.requirements.ranks(),
        ])?;
    }
    let opened = format!("opened with {} shards", shards.len());
    let line = if message.is_empty() { opened } else { format!("{opened}; {message}") };
    log_stage(tx, now, job, stage, "info", &line)?;
    finish_if_over(tx, now, job, stage)?;
    Ok(true)
}

fn reuse(
    tx: &Transaction<'_>,
    now: Millis,
    job: &JobId,
    stage: u32,
    fingerprint: &str,
    outputs: &StageOutputs,
) -> Result<bool> {
    // Removed between the planner's look and now: planned again, it is computed again.
    for artifact in outputs.iter().flat_map(|shard| &shard.artifacts) {
        if rows::artifact_size(tx, &artifact.id)? != Some(artifact.size_bytes) {
            return Ok(false);
        }
    }
    let changed = tx.execute(
        "UPDATE stages SET state = ?1, fingerprint = ?2, outputs = ?3, shards_total = ?4, shards_done = ?4,
                units_done = units_total, message = 'reused from an earlier job'
         WHERE job_id = ?5 AND idx = ?6 AND state = ?7",
        params![
            StageState::Reused.code(),
            fingerprint,
            rows::encode(outputs)?,
            rows::to_i64(outputs.len() as u64),
            job.as_str(),
            stage,
            StageState::Waiting.code(),
        ],
    )?;
    if changed > 0 {
        for artifact in outputs.iter().flat_map(|shard| &shard.artifacts) {
            artifacts::hold(tx, job.as_str(), &artifact.id)?;
        }
        register(tx, now, job, stage, outputs)?;
        log_stage(tx, now, job, stage, "info", "reused the artifacts of an earlier job")?;
    }
    Ok(changed > 0)
}

fn end_waiting(
    tx: &Transaction<'_>,
    now: Millis,
    job: &JobId,
    stage: u32,
    state: StageState,
    message: &str,
) -> Result<bool> {
    let changed = tx.execute(
        "UPDATE stages SET state = ?1, message = ?2 WHERE job_id = ?3 AND idx = ?4 AND state = ?5",
        params![state.code(), message, job.as_str(), stage, StageState::Waiting.code()],
    )?;
    if changed > 0 {
        let level = if state == StageState::Failed { "error" } else { "warn" };
        log_stage(tx, now, job, stage, level, message)?;
    }
    Ok(changed > 0)
}

/// Ends a running stage when no shard of it is left: all are committed, but for rows that were set aside. True: it has
/// ended.
pub(super) fn finish_if_over(tx: &Transaction<'_>, now: Millis, job: &JobId, stage: u32) -> Result<bool> {
    let count = |state: ShardState| -> Result<u64> {
        let count: i64 = tx.query_row(
            "SELECT count(*) FROM shards WHERE job_id = ?1 AND stage = ?2 AND state = ?3",
            params![job.as_str(), stage, state.code()],
            |row| row.get(0),
        )?;
        Ok(to_u64(count))
    };
    let (total, state): (i64, i64) = tx.query_row(
        "SELECT shards_total, state FROM stages WHERE job_id = ?1 AND idx = ?2",
        params![job.as_str(), stage],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let (committed, lost) = (count(ShardState::Committed)?, count(ShardState::Failed)?);
    if state != StageState::Running.code() || committed + lost < to_u64(total) {
        return Ok(false);
    }
    if committed == 0 && lost > 0 {
        fail_stage(tx, now, job, stage, "every row failed")?;
    } else {
        finish_stage(tx, now, job, stage, lost)?;
    }
    Ok(true)
}

/// Composes the outputs of a stage from its committed shards, and keeps them for reuse where no row is missing.
fn finish_stage(tx: &Transaction<'_>, now: Millis, job: &JobId, stage: u32, lost: u64) -> Result<()> {
    let outputs: StageOutputs = collect(
        tx,
        "SELECT output, units FROM shards WHERE job_id = ?1 AND stage = ?2 AND state = ?3 ORDER BY row_start, idx",
        params![job.as_str(), stage, ShardState::Committed.code()],
        |row| {
            let output: ShardOutput = rows::decode(&row.get::<_, Option<String>>(0)?.unwrap_or_default())?;
            Ok(ShardOutput { units: Some(to_u64(row.get(1)?)), ..output })
        },
    )?;
    register(tx, now, job, stage, &outputs)?;
    let outputs = rows::encode(&outputs)?;
    let message = match lost {
        0 => String::new(),
        1 => "1 row set aside".to_owned(),
        rows => format!("{rows} rows set aside"),
    };
    tx.execute(
        // What was said at its opening (why it runs as it does) stays.
        "UPDATE stages SET state = ?1, outputs = ?2,
                message = message || CASE WHEN message = '' OR ?3 = '' THEN '' ELSE '; ' END || ?3
         WHERE job_id = ?4 AND idx = ?5",
        params![StageState::Succeeded.code(), outputs, message, job.as_str(), stage],
    )?;
    if lost == 0 {
        tx.execute(
            "INSERT INTO stage_outputs (fingerprint, outputs, created_ms)
             SELECT fingerprint, outputs, ?1 FROM stages
             WHERE job_id = ?2 AND idx = ?3 AND fingerprint IS NOT NULL
             ON CONFLICT (fingerprint) DO NOTHING",
            params![now, job.as_str(), stage],
        )?;
    }
    let line = if message.is_empty() { "succeeded".to_owned() } else { format!("succeeded; {message}") };
    log_stage(tx, now, job, stage, "info", &line)
}

/// Registers the models among a stage's outputs.
fn register(
    tx: &Transaction<'_>,
    now: Millis,
    job: &JobId,
    stage: u32,
    outputs: &StageOutputs,
) -> Result<()> {
    for model in outputs.iter().filter_map(|shard| shard.model.as_ref()) {
        let id = models::register(tx, now, job, model)?;
        log_stage(tx, now, job, stage, "info", &format!("registered as model {id}"))?;
    }
    Ok(())
}

/// Ends a running stage because a shard of it failed for good; its other shards end with it.
pub(super) fn fail_stage(
    tx: &Transaction<'_>,
    now: Millis,
    job: &JobId,
    stage: u32,
    message: &str,
) -> Result<Vec<Revoked>> {
    tx.execute(
        "UPDATE stages SET state = ?1, message = ?2 WHERE job_id = ?3 AND idx = ?4 AND state = ?5",
        params![StageState::Failed.code(), message, job.as_str(), stage, StageState::Running.code()],
    )?;
    log_stage(tx, now, job, stage, "error", message)?;
    revoke(tx, now, job, Some(stage))
}

pub(super) fn cancel(tx: &Transaction<'_>, now: Millis, job: &JobId) -> Result<(bool, Vec<Revoked>)> {
    if jobs::row(tx, job)?.state.is_terminal() {
        return Ok((false, Vec::new()));
    }
    let revoked = finish(tx, now, job, JobState::Cancelled, "cancelled on request")?;
    Ok((true, revoked))
}

fn finish(
    tx: &Transaction<'_>,
    now: Millis,
    job: &JobId,
    state: JobState,
    message: &str,
) -> Result<Vec<Revoked>> {
    let changed = tx.execute(
        "UPDATE jobs SET state = ?1, message = ?2, updated_ms = ?3, ended_ms = ?3
         WHERE id = ?4 AND state IN (1, 2, 3)",
        params![state.code(), message, now, job.as_str()],
    )?;
    if changed == 0 {
        return Ok(Vec::new());
    }
    tx.execute(
        "UPDATE stages SET state = ?1 WHERE job_id = ?2 AND state IN (1, 2)",
        params![StageState::Cancelled.code(), job.as_str()],
    )?;
    let level = if state == JobState::Succeeded { "info" } else { "warn" };
    let line =
        if message.is_empty() { state.word().to_owned() } else { format!("{}: {message}", state.word()) };
    log(tx, now, job.as_str(), &Entry { level, message: &line, ..Default::default() })?;
    revoke(tx, now, job, None)
}

/// Ends all shards of a job, or of one stage, that have not ended.
fn revoke(tx: &Transaction<'_>, now: Millis, job: &JobId, stage: Option<u32>) -> Result<Vec<Revoked>> {
    let revoked = take_leases_back(tx, now, job, stage, true)?;
    tx.execute(
        "UPDATE shards SET state = ?1 WHERE job_id = ?2 AND state IN (1, 2) AND (?3 IS NULL OR stage = ?3)",
        params![ShardState::Cancelled.code(), job.as_str(), stage],
    )?;
    Ok(revoked)
}

/// Lets the workers' shards of a job that is paused wait again; what the coordinator itself computes is let end.
pub(super) fn give_back(tx: &Transaction<'_>, now: Millis, job: &JobId) -> Result<Vec<Revoked>> {
    let revoked = take_leases_back(tx, now, job, None, false)?;
    tx.execute(
        "UPDATE shards SET state = ?1 WHERE job_id = ?2 AND state = ?3 AND local = 0",
        params![ShardState::Pending.code(), job.as_str(), ShardState::Leased.code()],
    )?;
    Ok(revoked)
}

fn take_leases_back(
    tx: &Transaction<'_>,
    now: Millis,
    job: &JobId,
    stage: Option<u32>,
    local_too: bool,
) -> Result<Vec<Revoked>> {
    collect(
        tx,
        "UPDATE leases SET ended_ms = ?1, outcome = ?2
         WHERE ended_ms IS NULL AND shard_id IN (SELECT id FROM shards
             WHERE job_id = ?3 AND state = ?4 AND (?5 IS NULL OR stage = ?5) AND local <= ?6)
         RETURNING id, worker_id",
        params![now, LeaseOutcome::Revoked.code(), job.as_str(), ShardState::Leased.code(), stage, local_too],
        |row| {
            Ok(Revoked {
                lease: rows::lease_id(&row.get::<_, String>(0)?)?,
                worker: rows::worker_id(&row.get::<_, String>(1)?)?,
                job: job.clone(),
            })
        },
    )
}

fn log_stage(
    tx: &Transaction<'_>,
    now: Millis,
    job: &JobId,
    stage: u32,
    level: &'static str,
    message: &str,
) -> Result<()> {
    let name: String = tx.query_row(
        "SELECT name FROM stages WHERE job_id = ?1 AND idx = ?2",
        params![job.as_str(), stage],
        |row| row.get(0),
    )?;
    log(tx, now, job.as_str(), &Entry { stage: &name, level, message, ..Default::default() })
}
