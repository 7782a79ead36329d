//! Leases: granting, prolonging, committing, failing, expiring. The fencing token is in the WHERE clause of every
//! UPDATE that ends an attempt.

use std::time::Duration;

use cappy_proto::{JobId, LeaseId, ShardId, WorkerId};
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{
    rows::{self, Entry, collect, log, row_range, to_i64, to_u32, to_u64},
    steps,
};
use crate::{
    scheduler::{Failures, RetryPolicy, Verdict, after_failure},
    store::{clock::millis, *},
};

/// Leases that one sweep takes back.
const EXPIRE_BATCH: u32 = 256;

pub(super) fn pending(tx: &Transaction<'_>, now: Millis, per_job: u32) -> Result<Vec<PendingJob>> {
    let jobs: Vec<(i64, String, i32)> =
        collect(tx, "SELECT seq, id, priority FROM jobs WHERE state IN (1, 2) ORDER BY seq", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
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
                |row| {
                    Ok(PendingShard {
                        id: rows::shard_id(&row.get::<_, String>(0)?)?,
                        requirements: rows::decode(&row.get::<_, String>(1)?)?,
                        last_worker: row
                            .get::<_, Option<String>>(2)?
                            .as_deref()
                            .map(rows::worker_id)
                            .transpose()?,
                    })
                },
            )?);
        }
        if shards.is_empty() {
            continue;
        }
        let leased: i64 = tx.query_row(
            "SELECT count(*) FROM shards WHERE job_id = ?1 AND state = ?2 AND local = 0",
            params![job, ShardState::Leased.code()],
            |row| row.get(0),
        )?;
        out.push(PendingJob { job: seq, priority, leased: to_u32(leased), shards });
    }
    Ok(out)
}

pub(super) fn lease(
    tx: &Transaction<'_>,
    now: Millis,
    shard: &ShardId,
    worker: &WorkerId,
    ttl: Duration,
) -> Result<Option<Granted>> {
    let lease = LeaseId::generate();
    let changed = tx.execute(
        "UPDATE shards SET state = ?1, lease_id = ?2, worker_id = ?3, fencing_token = fencing_token + 1,
                granted_ms = ?4, deadline_ms = ?5
         WHERE id = ?6 AND state = ?7 AND not_before_ms <= ?4
           AND EXISTS (SELECT 1 FROM jobs WHERE jobs.id = shards.job_id AND jobs.state IN (1, 2))",
        params![
            ShardState::Leased.code(),
            lease.as_str(),
            worker.as_str(),
            now,
            now + millis(ttl),
            shard.as_str(),
            ShardState::Pending.code(),
        ],
    )?;
    if changed == 0 {
        return Ok(None);
    }
    let (job, attempts, interruptions, mut granted) = tx.query_row(
        "SELECT fencing_token, job_id, stage, attempts, interruptions, task, units, row_start, row_end
         FROM shards WHERE id = ?1",
        [shard.as_str()],
        |row| {
            let attempts: i64 = row.get(3)?;
            let granted = Granted {
                lease: lease.clone(),
                fencing_token: to_u64(row.get(0)?),
                shard: shard.clone(),
                job: JobId::generate(),
                stage: to_u32(row.get(2)?),
                stage_name: String::new(),
                attempt: to_u32(attempts) + 1,
                task: row.get(5)?,
                units: to_u64(row.get(6)?),
                rows: row_range(row.get(7)?, row.get(8)?),
            };
            Ok((row.get::<_, String>(1)?, attempts, row.get::<_, i64>(4)?, granted))
        },
    )?;
    granted.job = rows::job_id(&job)?;
    tx.execute(
        "INSERT INTO leases (id, shard_id, fencing_token, worker_id, granted_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![lease.as_str(), shard.as_str(), to_i64(granted.fencing_token), worker.as_str(), now],
    )?;
    tx.execute(
        "UPDATE jobs SET state = ?1, updated_ms = ?2 WHERE id = ?3",
        params![JobState::Running.code(), now, job],
    )?;
    granted.stage_name = tx.query_row(
        "SELECT name FROM stages WHERE job_id = ?1 AND idx = ?2",
        params![job, granted.stage],
        |row| row.get(0),
    )?;
    if attempts + interruptions > 0 {
        let message = format!("leased again (attempt {})", attempts + 1);
        log_shard(tx, now, &job, &granted.stage_name, shard, worker.as_str(), "info", &message)?;
    }
    Ok(Some(granted))
}

pub(super) fn extend(
    tx: &Transaction<'_>,
    now: Millis,
    worker: &WorkerId,
    leases: &[LeaseId],
    ttl: Duration,
) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    for lease in leases {
        // A lease whose deadline has passed but that nobody took back is still the holder's.
        let found: Option<(String, i64, i64)> = tx
            .prepare_cached(
                "UPDATE shards SET deadline_ms = ?1, worker_id = ?2
                 WHERE id = (SELECT shard_id FROM leases WHERE id = ?3 AND ended_ms IS NULL)
                   AND lease_id = ?3 AND state = ?4
                 RETURNING job_id, stage, units",
            )?
            .query_row(
                params![now + millis(ttl), worker.as_str(), lease.as_str(), ShardState::Leased.code()],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()?;
        let Some((job, stage, units)) = found else { continue };
        held.push(Held {
            lease: lease.clone(),
            job: rows::job_id(&job)?,
            stage: to_u32(stage),
            units: to_u64(units),
        });
    }
    Ok(held)
}

pub(super) fn complete(
    tx: &Transaction<'_>,
    now: Millis,
    key: &LeaseKey,
    output: &ShardOutput,
) -> Result<Completed> {
    for artifact in &output.artifacts {
        if rows::artifact_size(tx, &artifact.id)? != Some(artifact.size_bytes) {
            return Err(StoreError::UnknownArtifact { id: artifact.id.clone() });
        }
    }
    let committed: Option<(String, i64, i64, i64, String)> = tx
        .query_row(
            "UPDATE shards SET state = ?1, output = ?2, deadline_ms = NULL
             WHERE id = ?3 AND lease_id = ?4 AND fencing_token = ?5 AND state = ?6
             RETURNING job_id, stage, units, granted_ms, worker_id",
            params![
                ShardState::Committed.code(),
                rows::encode(output)?,
                key.shard.as_str(),
                key.lease.as_str(),
                to_i64(key.fencing_token),
                ShardState::Leased.code(),
            ],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
        )
        .optional()?;
    let Some((job, stage, units, granted, worker)) = committed else {
        let shard = current(tx, key)?;
        return if shard.same_lease && shard.state == ShardState::Committed {
            Ok(Completed { newly_committed: false, job: shard.job, stage_ended: false })
        } else {
            Err(shard.fenced(key))
        };
    };
    end_lease(tx, now, &key.lease, LeaseOutcome::Completed)?;
    let seconds = (now - granted).max(0) as f64 / 1000.0;
    let (done, total, stage_name): (i64, i64, String) = tx.query_row(
        "UPDATE stages SET shards_done = shards_done + 1, units_done = units_done + ?1, seconds = seconds + ?2
         WHERE job_id = ?3 AND idx = ?4 RETURNING shards_done, shards_total, name",
        params![units, seconds, job, stage],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    tx.execute("UPDATE jobs SET updated_ms = ?1 WHERE id = ?2", params![now, job])?;
    let message = format!("shard {done} of {total} committed after {seconds:.1} s");
    log_shard(tx, now, &job, &stage_name, &key.shard, &worker, "info", &message)?;
    let job = rows::job_id(&job)?;
    if done == total {
        steps::finish_stage(tx, now, &job, to_u32(stage))?;
    }
    Ok(Completed { newly_committed: true, job, stage_ended: done == total })
}

pub(super) fn fail(
    tx: &Transaction<'_>,
    now: Millis,
    key: &LeaseKey,
    failure: &AttemptFailure,
    retry: &RetryPolicy,
) -> Result<FailOutcome> {
    let shard = current(tx, key)?;
    if !shard.same_lease || shard.state != ShardState::Leased {
        let outcome: Option<i64> = tx
            .query_row(
                "SELECT outcome FROM leases WHERE id = ?1 AND shard_id = ?2 AND fencing_token = ?3",
                params![key.lease.as_str(), key.shard.as_str(), to_i64(key.fencing_token)],
                |row| row.get(0),
            )
            .optional()?
            .flatten();
        return if outcome.and_then(LeaseOutcome::from_code) == Some(LeaseOutcome::Failed) {
            Ok(FailOutcome::default())
        } else {
            Err(shard.fenced(key))
        };
    }
    end_attempt(tx, now, key, failure, LeaseOutcome::Failed, retry)
}

pub(super) fn any_due(tx: &Transaction<'_>, now: Millis) -> Result<bool> {
    Ok(tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM shards WHERE state = 2 AND deadline_ms <= ?1)",
        [now],
        |row| row.get(0),
    )?)
}

pub(super) fn expire(tx: &Transaction<'_>, now: Millis, retry: &RetryPolicy) -> Result<FailOutcome> {
    let due = collect(
        tx,
        "SELECT id, lease_id, fencing_token, worker_id, job_id FROM shards
         WHERE state = 2 AND deadline_ms <= ?1 ORDER BY deadline_ms LIMIT ?2",
        params![now, EXPIRE_BATCH],
        |row| {
            let key = LeaseKey {
                lease: rows::lease_id(&row.get::<_, String>(1)?)?,
                fencing_token: to_u64(row.get(2)?),
                shard: rows::shard_id(&row.get::<_, String>(0)?)?,
            };
            Ok((key, rows::worker_id(&row.get::<_, String>(3)?)?, rows::job_id(&row.get::<_, String>(4)?)?))
        },
    )?;
    let failure = AttemptFailure {
        class: FailureClass::Infrastructure,
        code: "lease_expired".into(),
        message: "its worker was not heard from before the lease's deadline".into(),
    };
    let mut all = FailOutcome::default();
    for (key, worker, job) in due {
        // A stage that failed earlier in this loop has taken its other leases back already.
        if current(tx, &key)?.state != ShardState::Leased {
            continue;
        }
        let outcome = end_attempt(tx, now, &key, &failure, LeaseOutcome::Expired, retry)?;
        all.ended.extend(outcome.ended);
        all.revoked.extend(outcome.revoked);
        all.revoked.push(Revoked { lease: key.lease, worker, job });
    }
    Ok(all)
}

/// Counts the failure of a lease that is current, and puts its shard back or aside.
fn end_attempt(
    tx: &Transaction<'_>,
    now: Millis,
    key: &LeaseKey,
    failure: &AttemptFailure,
    outcome: LeaseOutcome,
    retry: &RetryPolicy,
) -> Result<FailOutcome> {
    let (job, stage, attempts, interruptions, worker, stage_name): (String, i64, i64, i64, String, String) =
        tx.query_row(
            "SELECT s.job_id, s.stage, s.attempts, s.interruptions, s.worker_id, g.name
             FROM shards s JOIN stages g ON g.job_id = s.job_id AND g.idx = s.stage WHERE s.id = ?1",
            [key.shard.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?)),
        )?;
    let before = Failures { attempts: to_u32(attempts), interruptions: to_u32(interruptions) };
    let (failures, verdict) = after_failure(before, failure.class, retry);
    // An expired lease waits for nothing: the time-to-live was the pause.
    let pause = match verdict {
        Verdict::Retry { after } if outcome != LeaseOutcome::Expired => after,
        _ => Duration::ZERO,
    };
    let state = if verdict == Verdict::SetAside { ShardState::Failed } else { ShardState::Pending };
    tx.execute(
        "UPDATE shards SET state = ?1, attempts = ?2, interruptions = ?3, not_before_ms = ?4, deadline_ms = NULL,
                lease_id = NULL, failure_code = ?5, failure_message = ?6
         WHERE id = ?7 AND lease_id = ?8 AND fencing_token = ?9 AND state = ?10",
        params![
            state.code(),
            failures.attempts,
            failures.interruptions,
            now + millis(pause),
            failure.code,
            failure.message,
            key.shard.as_str(),
            key.lease.as_str(),
            to_i64(key.fencing_token),
            ShardState::Leased.code(),
        ],
    )?;
    end_lease(tx, now, &key.lease, outcome)?;
    tx.execute("UPDATE jobs SET updated_ms = ?1 WHERE id = ?2", params![now, job])?;

    let set_aside = state == ShardState::Failed;
    let level = if set_aside { "error" } else { "warn" };
    let what = match outcome {
        LeaseOutcome::Expired => "lease expired",
        _ => "attempt failed",
    };
    let line = format!("{what} ({}): {}", failure.code, failure.message);
    log_shard(tx, now, &job, &stage_name, &key.shard, &worker, level, &line)?;
    let job: JobId = rows::job_id(&job)?;
    if !set_aside {
        return Ok(FailOutcome::default());
    }
    let revoked = steps::fail_stage(tx, now, &job, to_u32(stage), &failure.message)?;
    Ok(FailOutcome { ended: vec![job], revoked })
}

struct Current {
    job: JobId,
    state: ShardState,
    same_lease: bool,
}

impl Current {
    fn fenced(&self, key: &LeaseKey) -> StoreError {
        let reason = match self.state {
            ShardState::Committed => "another attempt committed the shard",
            ShardState::Cancelled => "the job was cancelled or the stage failed",
            ShardState::Failed => "the shard was set aside",
            ShardState::Leased => "the shard was leased again",
            ShardState::Pending => "its deadline passed",
        };
        StoreError::Fenced { lease: key.lease.clone(), reason }
    }
}

fn current(tx: &Transaction<'_>, key: &LeaseKey) -> Result<Current> {
    let found: Option<(String, i64, Option<String>, i64)> = tx
        .query_row(
            "SELECT job_id, state, lease_id, fencing_token FROM shards WHERE id = ?1",
            [key.shard.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
        )
        .optional()?;
    let Some((job, state, lease, token)) = found else {
        return Err(StoreError::NotFound { what: "shard", id: key.shard.to_string() });
    };
    Ok(Current {
        job: rows::job_id(&job)?,
        state: ShardState::from_code(state)
            .ok_or_else(|| StoreError::Corrupt(format!("unknown shard state {state}")))?,
        same_lease: lease.as_deref() == Some(key.lease.as_str()) && to_u64(token) == key.fencing_token,
    })
}

fn end_lease(tx: &Transaction<'_>, now: Millis, lease: &LeaseId, outcome: LeaseOutcome) -> Result<()> {
    tx.execute(
        "UPDATE leases SET ended_ms = ?1, outcome = ?2 WHERE id = ?3",
        params![now, outcome.code(), lease.as_str()],
    )?;
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one line of a log is made of this much")]
fn log_shard(
    tx: &Transaction<'_>,
    now: Millis,
    job: &str,
    stage: &str,
    shard: &ShardId,
    worker: &str,
    level: &'static str,
    message: &str,
) -> Result<()> {
    log(tx, now, job, &Entry { stage, shard: shard.as_str(), worker, level, message })
}
