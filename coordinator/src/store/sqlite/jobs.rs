//! Jobs: submission, look-up, pause, removal.

use cappy_proto::{JobId, ModelId};
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{
    artifacts, models,
    rows::{self, JOB_COLUMNS, collect, job_id, job_row, log, row_range, stage_row, to_u32},
    steps,
};
use crate::store::*;

/// Candidates that an ambiguous prefix lists.
const MAX_CANDIDATES: usize = 5;

pub(super) fn submit(tx: &Transaction<'_>, now: Millis, job: &NewJob) -> Result<Submitted> {
    if let Some(key) = &job.idempotency_key {
        let known: Option<(String, Vec<u8>)> = tx
            .query_row("SELECT id, spec FROM jobs WHERE idempotency_key = ?1", [key], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        if let Some((id, spec)) = known {
            let id = job_id(&id)?;
            if spec != job.spec {
                return Err(StoreError::KeyConflict { key: key.clone(), job: id });
            }
            return Ok(Submitted::Existing(id));
        }
    }
    tx.execute(
        "INSERT INTO jobs (id, idempotency_key, kind, title, spec, state, priority, created_ms, updated_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
        params![
            job.id.as_str(),
            job.idempotency_key,
            job.kind,
            job.title,
            job.spec,
            JobState::Queued.code(),
            job.priority,
            now
        ],
    )?;
    let mut insert = tx.prepare_cached(
        "INSERT INTO stages (job_id, idx, name, kind, state, units_total, spares_rows)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for (index, stage) in job.stages.iter().enumerate() {
        insert.execute(params![
            job.id.as_str(),
            rows::to_i64(index as u64),
            stage.name,
            stage.kind,
            StageState::Waiting.code(),
            rows::to_i64(stage.units_total),
            stage.spares_rows,
        ])?;
    }
    for artifact in &job.inputs {
        artifacts::hold(tx, job.id.as_str(), artifact)?;
    }
    for model in &job.models {
        models::link(tx, &job.id, model, false)?;
    }
    let message = format!("submitted: {} stages", job.stages.len());
    log(tx, now, job.id.as_str(), &rows::Entry { level: "info", message: &message, ..Default::default() })?;
    Ok(Submitted::New)
}

pub(super) fn find(tx: &Transaction<'_>, text: &str) -> Result<JobId> {
    job_id(&find_id(tx, "job", JobId::PREFIX, "jobs", text)?)
}

/// The id of a `what` in `table` that `text` names: an id, or a unique prefix of one with or without the kind's own.
pub(super) fn find_id(
    tx: &Transaction<'_>,
    what: &'static str,
    prefix: &str,
    table: &str,
    text: &str,
) -> Result<String> {
    let not_found = || StoreError::NotFound { what, id: text.chars().take(64).collect() };
    // Ids are lowercase letters, digits and `_`: anything else names nothing (and would be a pattern to LIKE).
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
        return Err(not_found());
    }
    let full = if text.starts_with(prefix) { text.to_owned() } else { format!("{prefix}{text}") };
    // `~` sorts after every character of an id.
    let mut ids: Vec<String> = collect(
        tx,
        &format!("SELECT id FROM {table} WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT ?3"),
        params![full, format!("{full}~"), rows::to_i64(MAX_CANDIDATES as u64)],
        |row| Ok(row.get(0)?),
    )?;
    match ids.len() {
        0 => Err(not_found()),
        1 => Ok(ids.remove(0)),
        _ => Err(StoreError::Ambiguous { what, prefix: text.to_owned(), candidates: ids }),
    }
}

pub(super) fn row(tx: &Transaction<'_>, id: &JobId) -> Result<JobRow> {
    let found =
        collect(tx, &format!("SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?1"), [id.as_str()], job_row)?;
    found.into_iter().next().ok_or_else(|| StoreError::NotFound { what: "job", id: id.to_string() })
}

pub(super) fn record(tx: &Transaction<'_>, id: &JobId) -> Result<JobRecord> {
    let row = row(tx, id)?;
    let spec = tx.query_row("SELECT spec FROM jobs WHERE id = ?1", [id.as_str()], |row| row.get(0))?;
    let stages = collect(
        tx,
        "SELECT idx, name, kind, state, message, outputs, shards_done, shards_total, units_done,
                units_total, seconds
         FROM stages WHERE job_id = ?1 ORDER BY idx",
        [id.as_str()],
        stage_row,
    )?;
    let failures = collect(
        tx,
        "SELECT s.id, g.name, s.failure_code, s.failure_message, s.attempts, s.row_start, s.row_end
         FROM shards s JOIN stages g ON g.job_id = s.job_id AND g.idx = s.stage
         WHERE s.job_id = ?1 AND s.state = ?2 ORDER BY s.stage, s.row_start, s.idx",
        params![id.as_str(), ShardState::Failed.code()],
        |row| {
            Ok(SetAside {
                shard: rows::shard_id(&row.get::<_, String>(0)?)?,
                stage: row.get(1)?,
                code: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
                message: row.get::<_, Option<String>>(3)?.unwrap_or_default(),
                attempts: to_u32(row.get(4)?),
                rows: row_range(row.get(5)?, row.get(6)?),
            })
        },
    )?;
    let gang: Option<String> = tx
        .query_row(
            "SELECT requirements FROM shards WHERE job_id = ?1 AND state = ?2 AND ranks > 1 AND local = 0
             ORDER BY stage, idx LIMIT 1",
            params![id.as_str(), ShardState::Pending.code()],
            |row| row.get(0),
        )
        .optional()?;
    let pending_gang = match gang {
        Some(text) => rows::decode::<Requirements>(&text)?.gang,
        None => None,
    };
    let models = models::named_by(tx, id)?;
    Ok(JobRecord { row, spec, stages, failures, models, pending_gang })
}

pub(super) fn list(tx: &Transaction<'_>, limit: u32, before: Option<&JobId>) -> Result<Vec<JobRow>> {
    let before: i64 = match before {
        None => i64::MAX,
        Some(id) => tx
            .query_row("SELECT seq FROM jobs WHERE id = ?1", [id.as_str()], |row| row.get(0))
            .optional()?
            .ok_or_else(|| StoreError::NotFound { what: "job", id: id.to_string() })?,
    };
    collect(
        tx,
        &format!("SELECT {JOB_COLUMNS} FROM jobs WHERE seq < ?1 ORDER BY seq DESC LIMIT ?2"),
        params![before, limit],
        job_row,
    )
}

pub(super) fn active(tx: &Transaction<'_>) -> Result<Vec<JobId>> {
    collect(tx, "SELECT id FROM jobs WHERE state IN (1, 2, 3) ORDER BY seq", [], |row| {
        job_id(&row.get::<_, String>(0)?)
    })
}

/// Jobs with a stage that waits for another job to compute the same.
pub(super) fn waiting_for_others(tx: &Transaction<'_>) -> Result<Vec<JobId>> {
    collect(
        tx,
        "SELECT DISTINCT s.job_id FROM stages s JOIN jobs j ON j.id = s.job_id
         WHERE s.fingerprint IS NOT NULL AND s.state = 1 AND j.state IN (1, 2, 3)",
        [],
        |row| job_id(&row.get::<_, String>(0)?),
    )
}

pub(super) fn set_paused(
    tx: &Transaction<'_>,
    now: Millis,
    id: &JobId,
    paused: bool,
) -> Result<(bool, Vec<Revoked>)> {
    let state = row(tx, id)?.state;
    let next = match (state, paused) {
        (state, _) if state.is_terminal() => {
            let message = format!("job `{id}` has ended ({})", state.word());
            return Err(StoreError::WrongState(message));
        }
        (JobState::Paused, false) => {
            let running: bool = tx.query_row(
                "SELECT EXISTS (SELECT 1 FROM leases l JOIN shards s ON s.id = l.shard_id WHERE s.job_id = ?1)",
                [id.as_str()],
                |row| row.get(0),
            )?;
            // Begun is running, even if nothing happens to be leased now.
            if running { JobState::Running } else { JobState::Queued }
        }
        (JobState::Queued | JobState::Running, true) => JobState::Paused,
        _ => return Ok((false, Vec::new())),
    };
    tx.execute(
        "UPDATE jobs SET state = ?1, updated_ms = ?2 WHERE id = ?3",
        params![next.code(), now, id.as_str()],
    )?;
    let revoked = if paused { steps::give_back(tx, now, id)? } else { Vec::new() };
    let message = match (paused, revoked.len()) {
        (false, _) => "resumed".to_owned(),
        (true, 0) => "paused".to_owned(),
        (true, shards) => format!("paused: {shards} running shards were taken back from their workers"),
    };
    log(tx, now, id.as_str(), &rows::Entry { level: "info", message: &message, ..Default::default() })?;
    Ok((true, revoked))
}

pub(super) fn delete(tx: &Transaction<'_>, id: &JobId) -> Result<Vec<ModelId>> {
    let state = row(tx, id)?.state;
    if !state.is_terminal() {
        let message = format!("job `{id}` has not ended ({}); cancel it first", state.word());
        return Err(StoreError::WrongState(message));
    }
    let orphans = models::made_by_alone(tx, id)?;
    let fingerprints: Vec<String> = collect(
        tx,
        "SELECT DISTINCT fingerprint FROM stages WHERE job_id = ?1 AND fingerprint IS NOT NULL",
        [id.as_str()],
        |row| Ok(row.get(0)?),
    )?;
    tx.execute("DELETE FROM jobs WHERE id = ?1", [id.as_str()])?;
    for model in &orphans {
        models::remove(tx, model)?;
    }
    // What no job holds any more cannot be reused.
    for fingerprint in fingerprints {
        tx.execute(
            "DELETE FROM stage_outputs WHERE fingerprint = ?1 AND NOT EXISTS
                 (SELECT 1 FROM stages WHERE fingerprint = ?1 AND state IN (3, 4))",
            [fingerprint],
        )?;
    }
    Ok(orphans)
}

pub(super) fn count(tx: &Transaction<'_>) -> Result<Vec<(JobState, u64)>> {
    let counts: Vec<(i64, i64)> =
        collect(tx, "SELECT state, count(*) FROM jobs GROUP BY state", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    Ok(counts
        .into_iter()
        .filter_map(|(code, count)| Some((JobState::from_code(code)?, rows::to_u64(count))))
        .collect())
}
