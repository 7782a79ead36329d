//! Rows to values and back, and the history.

use cappy_proto::{JobId, LeaseId, ModelId, ShardId, WorkerId};
use rusqlite::{OptionalExtension as _, Row, Transaction, params};
use serde::{Serialize, de::DeserializeOwned};

use crate::store::*;

pub(super) fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn to_u64(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn to_u32(value: i64) -> u32 {
    u32::try_from(value.max(0)).unwrap_or(u32::MAX)
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

pub(super) fn decode<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

macro_rules! parse_id {
    ($name:ident, $type:ty) => {
        pub(super) fn $name(text: &str) -> Result<$type> {
            text.parse().map_err(|error: cappy_proto::IdError| StoreError::Corrupt(error.to_string()))
        }
    };
}
parse_id!(job_id, JobId);
parse_id!(shard_id, ShardId);
parse_id!(lease_id, LeaseId);
parse_id!(worker_id, WorkerId);
parse_id!(model_id, ModelId);

fn unknown_code(what: &str, code: i64) -> StoreError {
    StoreError::Corrupt(format!("unknown {what} {code}"))
}

pub(super) const JOB_COLUMNS: &str = "id, kind, title, state, message, created_ms, updated_ms, ended_ms,
    (SELECT model_id FROM job_models m WHERE m.job_id = jobs.id AND m.made = 1) AS model_id";

pub(super) fn job_row(row: &Row<'_>) -> Result<JobRow> {
    let state: i64 = row.get("state")?;
    Ok(JobRow {
        id: job_id(&row.get::<_, String>("id")?)?,
        kind: row.get("kind")?,
        title: row.get("title")?,
        state: JobState::from_code(state).ok_or_else(|| unknown_code("job state", state))?,
        message: row.get("message")?,
        created: row.get("created_ms")?,
        updated: row.get("updated_ms")?,
        ended: row.get("ended_ms")?,
        model: row.get::<_, Option<String>>("model_id")?.as_deref().map(model_id).transpose()?,
    })
}

pub(super) fn stage_row(row: &Row<'_>) -> Result<StageRow> {
    let state: i64 = row.get("state")?;
    let outputs: Option<String> = row.get("outputs")?;
    Ok(StageRow {
        index: to_u32(row.get("idx")?),
        name: row.get("name")?,
        kind: row.get("kind")?,
        state: StageState::from_code(state).ok_or_else(|| unknown_code("stage state", state))?,
        message: row.get("message")?,
        outputs: outputs.as_deref().map(decode).transpose()?,
        shards_done: to_u32(row.get("shards_done")?),
        shards_total: to_u32(row.get("shards_total")?),
        units_done: to_u64(row.get("units_done")?),
        units_total: to_u64(row.get("units_total")?),
        seconds: row.get("seconds")?,
    })
}

/// Rows of a shard, from its two columns.
pub(super) fn row_range(start: Option<i64>, end: Option<i64>) -> Option<RowRange> {
    Some(RowRange { start: to_u64(start?), end: to_u64(end?) })
}

/// All rows of a query, each read by `read`.
pub(super) fn collect<T>(
    tx: &Transaction<'_>,
    sql: &str,
    params: impl rusqlite::Params,
    read: impl Fn(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        out.push(read(row)?);
    }
    Ok(out)
}

pub(super) fn artifact_size(tx: &Transaction<'_>, id: &str) -> Result<Option<u64>> {
    let size: Option<i64> =
        tx.query_row("SELECT size_bytes FROM artifacts WHERE id = ?1", [id], |row| row.get(0)).optional()?;
    Ok(size.map(to_u64))
}

/// One line for a job's history.
#[derive(Default)]
pub(super) struct Entry<'a> {
    pub(super) stage: &'a str,
    pub(super) shard: &'a str,
    pub(super) worker: &'a str,
    pub(super) level: &'static str,
    pub(super) message: &'a str,
}

pub(super) fn log(tx: &Transaction<'_>, now: Millis, job: &str, entry: &Entry<'_>) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO events (job_id, time_ms, stage, shard_id, worker_id, level, message)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![job, now, entry.stage, entry.shard, entry.worker, entry.level, entry.message])?;
    Ok(())
}

pub(super) fn events(
    tx: &Transaction<'_>,
    job: &JobId,
    after: i64,
    limit: u32,
    only: &EventFilter,
) -> Result<Vec<Event>> {
    collect(
        tx,
        "SELECT seq, time_ms, stage, shard_id, worker_id, level, message FROM events
         WHERE job_id = ?1 AND seq > ?2 AND (?4 = '' OR stage = ?4) AND (?5 = '' OR shard_id = ?5)
         ORDER BY seq LIMIT ?3",
        params![job.as_str(), after, limit, only.stage, only.shard],
        |row| {
            Ok(Event {
                seq: row.get(0)?,
                time: row.get(1)?,
                stage: row.get(2)?,
                shard: row.get(3)?,
                worker: row.get(4)?,
                level: row.get(5)?,
                message: row.get(6)?,
            })
        },
    )
}
