//! The end of an attempt that failed: the shard is tried again, cut in halves to find the row that fails, or set aside.

use std::time::Duration;

use cappy_proto::{JobId, LeaseId, ShardId};
use rusqlite::{Transaction, params};

use super::{
    leases::{end_lease, log_shard, open_leases, revoke_leases_of},
    rows::{self, row_range, to_i64, to_u32},
    steps,
};
use crate::{
    scheduler::{Failures, RetryPolicy, Verdict, after_failure, after_split, is_about_rows},
    store::{clock::millis, *},
};

/// Rows of a stage that may be set aside; where more fail, the stage does.
pub(super) const MAX_ROWS_SET_ASIDE: i64 = 100;

/// What a shard is, as far as its failures go.
struct Failing {
    job: JobId,
    stage: u32,
    stage_name: String,
    spares_rows: bool,
    before: Failures,
    rows: Option<RowRange>,
    worker: String,
}

/// Counts the failure of a lease that is held, and decides on its shard.
pub(super) fn end_attempt(
    tx: &Transaction<'_>,
    now: Millis,
    key: &LeaseKey,
    failure: &AttemptFailure,
    outcome: LeaseOutcome,
    retry: &RetryPolicy,
) -> Result<FailOutcome> {
    let shard = failing(tx, key)?;
    let (failures, verdict) = after_failure(shard.before, failure.class, retry);
    end_lease(tx, now, &key.lease, outcome)?;
    tx.execute("UPDATE jobs SET updated_ms = ?1 WHERE id = ?2", params![now, shard.job.as_str()])?;
    let what = if outcome == LeaseOutcome::Expired { "lease expired" } else { "attempt failed" };
    let level = if verdict == Verdict::SetAside { "error" } else { "warn" };
    let line = format!("{what} ({}): {}", failure.code, failure.message);
    log_shard(tx, now, shard.job.as_str(), &shard.stage_name, &key.shard, &shard.worker, level, &line)?;

    // What one rank of a gang lost, the others cannot go on without.
    let revoked = if is_gang(tx, &key.lease)? {
        revoke_leases_of(tx, now, &shard.job, &key.shard)?
    } else {
        Vec::new()
    };
    let after = match verdict {
        // An expired lease waits for nothing: the time-to-live was the pause.
        Verdict::Retry { .. } if outcome == LeaseOutcome::Expired => Duration::ZERO,
        Verdict::Retry { after } => after,
        Verdict::SetAside => {
            let mut outcome = set_aside(tx, now, key, failure, failures, &shard, retry)?;
            outcome.revoked.extend(revoked);
            return Ok(outcome);
        }
    };
    // Where another worker has it too, the shard goes on with that one.
    let state = if open_leases(tx, &key.shard)? > 0 { ShardState::Leased } else { ShardState::Pending };
    write(tx, &key.shard, state, failures, now + millis(after), failure)?;
    Ok(FailOutcome { ended: Vec::new(), revoked })
}

fn is_gang(tx: &Transaction<'_>, lease: &LeaseId) -> Result<bool> {
    Ok(tx
        .query_row("SELECT gang IS NOT NULL FROM leases WHERE id = ?1", [lease.as_str()], |row| row.get(0))?)
}

fn failing(tx: &Transaction<'_>, key: &LeaseKey) -> Result<Failing> {
    let (job, mut shard) = tx.query_row(
        "SELECT s.job_id, s.stage, g.name, g.spares_rows, s.attempts, s.interruptions, s.row_start, s.row_end,
                l.worker_id
         FROM shards s JOIN stages g ON g.job_id = s.job_id AND g.idx = s.stage
             JOIN leases l ON l.id = ?2 AND l.shard_id = s.id WHERE s.id = ?1",
        [key.shard.as_str(), key.lease.as_str()],
        |row| {
            let shard = Failing {
                job: JobId::generate(),
                stage: to_u32(row.get(1)?),
                stage_name: row.get(2)?,
                spares_rows: row.get(3)?,
                before: Failures { attempts: to_u32(row.get(4)?), interruptions: to_u32(row.get(5)?) },
                rows: row_range(row.get(6)?, row.get(7)?),
                worker: row.get(8)?,
            };
            Ok((row.get::<_, String>(0)?, shard))
        },
    )?;
    shard.job = rows::job_id(&job)?;
    Ok(shard)
}

fn write(
    tx: &Transaction<'_>,
    shard: &ShardId,
    state: ShardState,
    failures: Failures,
    not_before: Millis,
    failure: &AttemptFailure,
) -> Result<()> {
    tx.execute(
        "UPDATE shards SET state = ?1, attempts = ?2, interruptions = ?3, not_before_ms = ?4, failure_code = ?5,
                failure_message = ?6
         WHERE id = ?7 AND state = ?8",
        params![
            state.code(),
            failures.attempts,
            failures.interruptions,
            not_before,
            failure.code,
            failure.message,
            shard.as_str(),
            ShardState::Leased.code(),
        ],
    )?;
    Ok(())
}

/// The shard has failed for good. Where rows can be spared, it is cut in halves until the row that fails stands alone;
/// only that is set aside.
fn set_aside(
    tx: &Transaction<'_>,
    now: Millis,
    key: &LeaseKey,
    failure: &AttemptFailure,
    failures: Failures,
    shard: &Failing,
    retry: &RetryPolicy,
) -> Result<FailOutcome> {
    let mut revoked = revoke_leases_of(tx, now, &shard.job, &key.shard)?;
    let spared = shard.rows.filter(|_| shard.spares_rows && is_about_rows(&failure.code));
    if let Some(rows) = spared.filter(|rows| rows.len() > 1) {
        halve(tx, now, key, failure, shard, rows, retry)?;
        return Ok(FailOutcome { ended: Vec::new(), revoked });
    }
    write(tx, &key.shard, ShardState::Failed, failures, now, failure)?;
    let Some(rows) = spared else {
        revoked.extend(steps::fail_stage(tx, now, &shard.job, shard.stage, &failure.message)?);
        return Ok(FailOutcome { ended: vec![shard.job.clone()], revoked });
    };
    let lost: i64 = tx.query_row(
        "SELECT count(*) FROM shards WHERE job_id = ?1 AND stage = ?2 AND state = ?3",
        params![shard.job.as_str(), shard.stage, ShardState::Failed.code()],
        |row| row.get(0),
    )?;
    if lost > MAX_ROWS_SET_ASIDE {
        let message = format!("more than {MAX_ROWS_SET_ASIDE} rows failed; the last: {}", failure.message);
        revoked.extend(steps::fail_stage(tx, now, &shard.job, shard.stage, &message)?);
        return Ok(FailOutcome { ended: vec![shard.job.clone()], revoked });
    }
    let line = format!("row {} set aside; the others go on", rows.start);
    log_shard(tx, now, shard.job.as_str(), &shard.stage_name, &key.shard, &shard.worker, "error", &line)?;
    let ended = steps::finish_if_over(tx, now, &shard.job, shard.stage)?;
    Ok(FailOutcome { ended: ended.then(|| shard.job.clone()).into_iter().collect(), revoked })
}

/// The shard keeps its first half; another gets the second.
fn halve(
    tx: &Transaction<'_>,
    now: Millis,
    key: &LeaseKey,
    failure: &AttemptFailure,
    shard: &Failing,
    rows: RowRange,
    retry: &RetryPolicy,
) -> Result<()> {
    let middle = rows.start + rows.len() / 2;
    let halves = [RowRange { end: middle, ..rows }, RowRange { start: middle, ..rows }];
    let [first, second] = halves.map(|half| (half, after_split(half.len(), retry)));
    tx.execute(
        "INSERT INTO shards (id, job_id, stage, idx, local, task, requirements, units, state, row_start, row_end,
                             attempts, interruptions, worker_id, failure_code, failure_message, ranks)
         SELECT ?1, job_id, stage, (SELECT max(idx) + 1 FROM shards o WHERE o.job_id = s.job_id AND o.stage = s.stage),
                local, task, requirements, ?2, ?3, ?4, ?5, ?6, ?7, worker_id, ?8, ?9, ranks
         FROM shards s WHERE s.id = ?10",
        params![
            ShardId::generate().as_str(),
            to_i64(second.0.len()),
            ShardState::Pending.code(),
            to_i64(second.0.start),
            to_i64(second.0.end),
            second.1.attempts,
            second.1.interruptions,
            failure.code,
            failure.message,
            key.shard.as_str(),
        ],
    )?;
    write(tx, &key.shard, ShardState::Pending, first.1, now, failure)?;
    tx.execute(
        "UPDATE shards SET units = ?1, row_start = ?2, row_end = ?3 WHERE id = ?4",
        params![to_i64(first.0.len()), to_i64(first.0.start), to_i64(first.0.end), key.shard.as_str()],
    )?;
    tx.execute(
        "UPDATE stages SET shards_total = shards_total + 1 WHERE job_id = ?1 AND idx = ?2",
        params![shard.job.as_str(), shard.stage],
    )?;
    let line =
        format!("rows {} to {} are cut in halves to find the row that fails", rows.start, rows.end - 1);
    log_shard(tx, now, shard.job.as_str(), &shard.stage_name, &key.shard, &shard.worker, "warn", &line)
}
