//! Which artifacts are known, who holds them, and which nobody does.

use std::time::Duration;

use cappy_proto::JobId;
use rusqlite::{Transaction, params};

use super::rows::{self, collect, to_i64, to_u64};
use crate::store::{clock::millis, *};

/// Makes an artifact known, or says that somebody is about to use it.
pub(super) fn record(tx: &Transaction<'_>, now: Millis, id: &str, size_bytes: u64) -> Result<()> {
    tx.execute(
        "INSERT INTO artifacts (id, size_bytes, created_ms, touched_ms) VALUES (?1, ?2, ?3, ?3)
         ON CONFLICT (id) DO UPDATE SET touched_ms = max(touched_ms, ?3)",
        params![id, to_i64(size_bytes), now],
    )?;
    Ok(())
}

pub(super) fn touch(tx: &Transaction<'_>, now: Millis, id: &str) -> Result<Option<u64>> {
    let size = rows::artifact_size(tx, id)?;
    if size.is_some() {
        tx.execute("UPDATE artifacts SET touched_ms = ?1 WHERE id = ?2", params![now, id])?;
    }
    Ok(size)
}

/// Lets a job hold an artifact, which must be known.
pub(super) fn hold(tx: &Transaction<'_>, job: &str, id: &str) -> Result<()> {
    let known = tx.execute("UPDATE artifacts SET touched_ms = 0 WHERE id = ?1", [id])?;
    if known == 0 {
        return Err(StoreError::UnknownArtifact { id: id.to_owned() });
    }
    tx.prepare_cached(
        "INSERT INTO job_artifacts (job_id, artifact_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
    )?
    .execute([job, id])?;
    Ok(())
}

/// Forgets artifacts that no job holds and that nobody is about to use.
pub(super) fn take_garbage(
    tx: &Transaction<'_>,
    now: Millis,
    grace: Duration,
    limit: u32,
) -> Result<Vec<String>> {
    collect(
        tx,
        "DELETE FROM artifacts WHERE id IN (SELECT id FROM artifacts a WHERE a.touched_ms <= ?1
             AND NOT EXISTS (SELECT 1 FROM job_artifacts h WHERE h.artifact_id = a.id) LIMIT ?2)
         RETURNING id",
        params![now - millis(grace), limit],
        |row| Ok(row.get(0)?),
    )
}

pub(super) fn stored_bytes(tx: &Transaction<'_>) -> Result<u64> {
    Ok(to_u64(tx.query_row("SELECT coalesce(sum(size_bytes), 0) FROM artifacts", [], |row| row.get(0))?))
}

/// Ended jobs by what removing each alone would free, most first.
pub(super) fn heaviest(tx: &Transaction<'_>, limit: u32) -> Result<Vec<(JobId, u64)>> {
    collect(
        tx,
        "SELECT h.job_id, sum(a.size_bytes) AS bytes FROM job_artifacts h
             JOIN artifacts a ON a.id = h.artifact_id JOIN jobs j ON j.id = h.job_id
         WHERE j.state NOT IN (1, 2, 3) AND NOT EXISTS
             (SELECT 1 FROM job_artifacts o WHERE o.artifact_id = h.artifact_id AND o.job_id != h.job_id)
         GROUP BY h.job_id ORDER BY bytes DESC LIMIT ?1",
        [limit],
        |row| Ok((rows::job_id(&row.get::<_, String>(0)?)?, to_u64(row.get(1)?))),
    )
}
