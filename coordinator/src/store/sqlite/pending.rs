//! What waits for a worker, and what lags: the snapshots that placement decides on.

use std::time::Duration;

use rusqlite::{Transaction, params};

use super::rows::{self, collect, to_u32};
use crate::store::*;

/// Lagging shards that one look finds.
const MAX_STRAGGLERS: u32 = 64;

pub(super) fn pending(tx: &Transaction<'_>, now: Millis, per_job: u32) -> Result<Vec<PendingJob>> {
    // A job that computes what a more urgent one waits for is as urgent.
    let jobs: Vec<(i64, String, i32)> = collect(
        tx,
        "SELECT seq, id, max(priority, coalesce((
             SELECT max(other.priority) FROM stages mine
                 JOIN stages waits ON waits.fingerprint = mine.fingerprint AND waits.state = 1
                 JOIN jobs other ON other.id = waits.job_id AND other.state IN (1, 2)
             WHERE mine.job_id = jobs.id AND mine.state = 2), priority))
         FROM jobs WHERE state IN (1, 2) ORDER BY seq",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    let mut out = Vec::new();
    for (seq, job, priority) in jobs {
        let mut shards = Vec::new();
        for local in [true, false] {
            shards.extend(collect(
                tx,
                "SELECT id, requirements, worker_id FROM shards
                 WHERE job_id = ?1 AND state = ?2 AND local = ?3 AND not_before_ms <= ?4
                 ORDER BY stage, row_start, idx LIMIT ?5",
                params![job, ShardState::Pending.code(), local, now, per_job],
                shard,
            )?);
        }
        if shards.is_empty() {
            continue;
        }
        let leased: i64 = tx.query_row(
            "SELECT count(*) FROM leases l JOIN shards s ON s.id = l.shard_id
             WHERE s.job_id = ?1 AND s.state = ?2 AND s.local = 0 AND l.ended_ms IS NULL",
            params![job, ShardState::Leased.code()],
            |row| row.get(0),
        )?;
        out.push(PendingJob { job: seq, priority, leased: to_u32(leased), shards });
    }
    Ok(out)
}

fn shard(row: &rusqlite::Row<'_>) -> Result<PendingShard> {
    Ok(PendingShard {
        id: rows::shard_id(&row.get::<_, String>(0)?)?,
        requirements: rows::decode(&row.get::<_, String>(1)?)?,
        last_worker: row.get::<_, Option<String>>(2)?.as_deref().map(rows::worker_id).transpose()?,
    })
}

/// Shards at the end of their stage (nothing of it is pending) that one worker holds, with what the stage's other
/// shards took; longest held first.
pub(super) fn stragglers(tx: &Transaction<'_>, now: Millis) -> Result<Vec<Straggler>> {
    collect(
        tx,
        "SELECT s.id, s.requirements, l.worker_id, ?1 - l.granted_ms, g.seconds / g.units_done * s.units
         FROM shards s JOIN leases l ON l.shard_id = s.id AND l.ended_ms IS NULL
             JOIN stages g ON g.job_id = s.job_id AND g.idx = s.stage
             JOIN jobs j ON j.id = s.job_id
         WHERE s.state = 2 AND s.local = 0 AND j.state IN (1, 2) AND g.units_done > 0
             AND NOT EXISTS (SELECT 1 FROM shards p
                             WHERE p.job_id = s.job_id AND p.state = 1 AND p.local = 0 AND p.stage = s.stage)
             AND 1 = (SELECT count(*) FROM leases o WHERE o.shard_id = s.id AND o.ended_ms IS NULL)
         ORDER BY l.granted_ms LIMIT ?2",
        params![now, MAX_STRAGGLERS],
        |row| {
            let held_ms: i64 = row.get(3)?;
            Ok(Straggler {
                shard: shard(row)?,
                held: Duration::from_millis(rows::to_u64(held_ms)),
                expected: Duration::from_secs_f64(row.get::<_, f64>(4)?.clamp(0.0, 1e9)),
            })
        },
    )
}
