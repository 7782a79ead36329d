//! Leases: granting, prolonging, committing, failing, expiring. A lease with its fencing token is in the WHERE clause of
//! every UPDATE that ends an attempt. A shard that lags may be leased a second time; whoever commits first wins, and the
//! other lease ends with it. A shard for several ranks is leased to all of its workers in one transaction; the leases of
//! such a gang end together, however the first of them ends.

use std::time::Duration;

use cappy_proto::{JobId, LeaseId, ShardId, WorkerId};
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{
    artifacts, attempts,
    rows::{self, Entry, collect, log, row_range, to_i64, to_u32, to_u64},
    steps,
};
use crate::{
    scheduler::RetryPolicy,
    store::{clock::millis, *},
};

/// Leases that one sweep takes back.
const EXPIRE_BATCH: u32 = 256;

/// Leases a shard that nobody holds.
pub(super) fn lease(
    tx: &Transaction<'_>,
    now: Millis,
    shard: &ShardId,
    worker: &WorkerId,
    ttl: Duration,
) -> Result<Option<Granted>> {
    let granted = lease_gang(tx, now, shard, std::slice::from_ref(worker), ttl)?;
    Ok(granted.and_then(|granted| granted.into_iter().next()))
}

/// Leases a shard that nobody holds to all of `workers` at once: one of them makes a lease as any other, several a gang.
pub(super) fn lease_gang(
    tx: &Transaction<'_>,
    now: Millis,
    shard: &ShardId,
    workers: &[WorkerId],
    ttl: Duration,
) -> Result<Option<Vec<Granted>>> {
    let Some(first) = workers.first() else { return Ok(None) };
    let changed = tx.execute(
        "UPDATE shards SET state = ?1, worker_id = ?2
         WHERE id = ?3 AND state = ?4 AND not_before_ms <= ?5 AND ranks = ?6
           AND EXISTS (SELECT 1 FROM jobs WHERE jobs.id = shards.job_id AND jobs.state IN (1, 2))",
        params![
            ShardState::Leased.code(),
            first.as_str(),
            shard.as_str(),
            ShardState::Pending.code(),
            now,
            to_i64(workers.len() as u64)
        ],
    )?;
    if changed == 0 {
        return Ok(None);
    }
    let gang = (workers.len() > 1).then(LeaseId::generate);
    let mut leases = Vec::with_capacity(workers.len());
    for worker in workers {
        tx.execute("UPDATE shards SET fencing_token = fencing_token + 1 WHERE id = ?1", [shard.as_str()])?;
        leases.push(grant(tx, now, shard, worker, gang.as_ref(), ttl)?);
    }
    let granted = &leases[0];
    let (job, stage) = (granted.job.as_str(), granted.stage_name.as_str());
    tx.execute(
        "UPDATE jobs SET state = ?1, updated_ms = ?2 WHERE id = ?3",
        params![JobState::Running.code(), now, job],
    )?;
    let again = granted.fencing_token > 1;
    let line = match (again, gang.is_some()) {
        (false, false) => return Ok(Some(leases)),
        (true, false) => format!("leased again (attempt {})", granted.attempt),
        (false, true) => format!("leased to {} workers together", workers.len()),
        (true, true) => {
            format!("leased again to {} workers together (attempt {})", workers.len(), granted.attempt)
        }
    };
    log_shard(tx, now, job, stage, shard, first.as_str(), "info", &line)?;
    Ok(Some(leases))
}

/// The leases of the gang that a lease which is held belongs to, the first granted first.
pub(super) fn gang(tx: &Transaction<'_>, key: &LeaseKey) -> Result<Vec<GangMember>> {
    let current = current(tx, key)?;
    if !current.held {
        return Err(current.fenced(key));
    }
    collect(
        tx,
        "SELECT o.id, o.worker_id FROM leases l JOIN leases o ON o.shard_id = l.shard_id AND o.gang = l.gang
         WHERE l.id = ?1 AND o.ended_ms IS NULL ORDER BY o.fencing_token",
        [key.lease.as_str()],
        |row| {
            Ok(GangMember {
                lease: rows::lease_id(&row.get::<_, String>(0)?)?,
                worker: rows::worker_id(&row.get::<_, String>(1)?)?,
            })
        },
    )
}

/// Leases a shard that one other worker holds.
pub(super) fn lease_again(
    tx: &Transaction<'_>,
    now: Millis,
    shard: &ShardId,
    worker: &WorkerId,
    ttl: Duration,
) -> Result<Option<Granted>> {
    let changed = tx.execute(
        "UPDATE shards SET fencing_token = fencing_token + 1
         WHERE id = ?1 AND state = ?2
           AND EXISTS (SELECT 1 FROM jobs WHERE jobs.id = shards.job_id AND jobs.state IN (1, 2))
           AND 1 = (SELECT count(*) FROM leases l WHERE l.shard_id = shards.id AND l.ended_ms IS NULL)
           AND NOT EXISTS (SELECT 1 FROM leases l
                           WHERE l.shard_id = shards.id AND l.ended_ms IS NULL AND l.worker_id = ?3)",
        params![shard.as_str(), ShardState::Leased.code(), worker.as_str()],
    )?;
    if changed == 0 {
        return Ok(None);
    }
    let granted = grant(tx, now, shard, worker, None, ttl)?;
    let message = "it lags: leased to an idle worker too; the first to finish counts";
    log_shard(tx, now, granted.job.as_str(), &granted.stage_name, shard, worker.as_str(), "info", message)?;
    Ok(Some(granted))
}

/// Writes a lease with the shard's newest token.
fn grant(
    tx: &Transaction<'_>,
    now: Millis,
    shard: &ShardId,
    worker: &WorkerId,
    gang: Option<&LeaseId>,
    ttl: Duration,
) -> Result<Granted> {
    let lease = LeaseId::generate();
    let (job, mut granted) = tx.query_row(
        "SELECT s.fencing_token, s.stage, g.name, s.attempts, s.task, s.units, s.row_start, s.row_end, s.job_id
         FROM shards s JOIN stages g ON g.job_id = s.job_id AND g.idx = s.stage WHERE s.id = ?1",
        [shard.as_str()],
        |row| {
            let granted = Granted {
                lease: lease.clone(),
                fencing_token: to_u64(row.get(0)?),
                shard: shard.clone(),
                job: JobId::generate(),
                stage: to_u32(row.get(1)?),
                stage_name: row.get(2)?,
                attempt: to_u32(row.get(3)?) + 1,
                task: row.get(4)?,
                units: to_u64(row.get(5)?),
                rows: row_range(row.get(6)?, row.get(7)?),
                gang: gang.is_some(),
            };
            Ok((row.get::<_, String>(8)?, granted))
        },
    )?;
    granted.job = rows::job_id(&job)?;
    tx.execute(
        "INSERT INTO leases (id, shard_id, fencing_token, worker_id, granted_ms, deadline_ms, gang)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            lease.as_str(),
            shard.as_str(),
            to_i64(granted.fencing_token),
            worker.as_str(),
            now,
            now + millis(ttl),
            gang.map(LeaseId::as_str)
        ],
    )?;
    Ok(granted)
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
        let held_of: Option<(String, bool)> = tx
            .prepare_cached(
                "UPDATE leases SET deadline_ms = ?1, worker_id = ?2 WHERE id = ?3 AND ended_ms IS NULL
                 RETURNING shard_id, gang IS NOT NULL",
            )?
            .query_row(params![now + millis(ttl), worker.as_str(), lease.as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let Some((shard, gang)) = held_of else { continue };
        let (job, stage, units): (String, i64, i64) = tx
            .prepare_cached("SELECT job_id, stage, units FROM shards WHERE id = ?1")?
            .query_row([&shard], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        tx.prepare_cached("UPDATE shards SET worker_id = ?1 WHERE id = ?2")?
            .execute(params![worker.as_str(), shard])?;
        held.push(Held {
            lease: lease.clone(),
            job: rows::job_id(&job)?,
            shard: rows::shard_id(&shard)?,
            stage: to_u32(stage),
            units: to_u64(units),
            gang,
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
    let committed: Option<(String, i64, i64)> = tx
        .query_row(
            "UPDATE shards SET state = ?1, output = ?2, lease_id = ?3
             WHERE id = ?4 AND state = ?5 AND EXISTS (SELECT 1 FROM leases l WHERE l.id = ?3
                 AND l.shard_id = shards.id AND l.fencing_token = ?6 AND l.ended_ms IS NULL)
             RETURNING job_id, stage, units",
            params![
                ShardState::Committed.code(),
                rows::encode(output)?,
                key.lease.as_str(),
                key.shard.as_str(),
                ShardState::Leased.code(),
                to_i64(key.fencing_token),
            ],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    let Some((job, stage, units)) = committed else {
        let current = current(tx, key)?;
        return if current.outcome == Some(LeaseOutcome::Completed) {
            Ok(Completed {
                newly_committed: false,
                job: current.job,
                stage_ended: false,
                revoked: Vec::new(),
            })
        } else {
            Err(current.fenced(key))
        };
    };
    for artifact in &output.artifacts {
        artifacts::hold(tx, &job, &artifact.id)?;
    }
    end_lease(tx, now, &key.lease, LeaseOutcome::Completed)?;
    let job_id = rows::job_id(&job)?;
    let revoked = revoke_leases_of(tx, now, &job_id, &key.shard)?;
    let (granted, worker): (i64, String) = tx.query_row(
        "SELECT granted_ms, worker_id FROM leases WHERE id = ?1",
        [key.lease.as_str()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
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
    let stage_ended = steps::finish_if_over(tx, now, &job_id, to_u32(stage))?;
    Ok(Completed { newly_committed: true, job: job_id, stage_ended, revoked })
}

pub(super) fn fail(
    tx: &Transaction<'_>,
    now: Millis,
    key: &LeaseKey,
    failure: &AttemptFailure,
    retry: &RetryPolicy,
) -> Result<FailOutcome> {
    let current = current(tx, key)?;
    if current.held {
        return attempts::end_attempt(tx, now, key, failure, LeaseOutcome::Failed, retry);
    }
    match current.outcome {
        Some(LeaseOutcome::Failed) => Ok(FailOutcome::default()),
        _ => Err(current.fenced(key)),
    }
}

pub(super) fn any_due(tx: &Transaction<'_>, now: Millis) -> Result<bool> {
    Ok(tx.query_row(
        "SELECT EXISTS (SELECT 1 FROM leases WHERE ended_ms IS NULL AND deadline_ms <= ?1)",
        [now],
        |row| row.get(0),
    )?)
}

pub(super) fn expire(tx: &Transaction<'_>, now: Millis, retry: &RetryPolicy) -> Result<FailOutcome> {
    let due = collect(
        tx,
        "SELECT l.shard_id, l.id, l.fencing_token, l.worker_id, s.job_id
         FROM leases l JOIN shards s ON s.id = l.shard_id
         WHERE l.ended_ms IS NULL AND l.deadline_ms <= ?1 ORDER BY l.deadline_ms LIMIT ?2",
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
        if !current(tx, &key)?.held {
            continue;
        }
        let outcome = attempts::end_attempt(tx, now, &key, &failure, LeaseOutcome::Expired, retry)?;
        all.ended.extend(outcome.ended);
        all.revoked.extend(outcome.revoked);
        all.revoked.push(Revoked { lease: key.lease, worker, job });
    }
    Ok(all)
}

/// A lease as the store has it now.
struct Current {
    job: JobId,
    state: ShardState,
    held: bool,
    /// How the lease ended, if it is one of this shard with this token.
    outcome: Option<LeaseOutcome>,
}

impl Current {
    fn fenced(&self, key: &LeaseKey) -> StoreError {
        let reason = match self.state {
            ShardState::Committed => "another attempt committed the shard",
            ShardState::Cancelled => "the job was cancelled or the stage failed",
            ShardState::Failed => "the shard was set aside",
            ShardState::Leased => "the shard was leased again",
            ShardState::Pending => "it was taken back",
        };
        StoreError::Fenced { lease: key.lease.clone(), reason }
    }
}

fn current(tx: &Transaction<'_>, key: &LeaseKey) -> Result<Current> {
    let found: Option<(String, i64)> = tx
        .query_row("SELECT job_id, state FROM shards WHERE id = ?1", [key.shard.as_str()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let Some((job, state)) = found else {
        return Err(StoreError::NotFound { what: "shard", id: key.shard.to_string() });
    };
    let state = ShardState::from_code(state)
        .ok_or_else(|| StoreError::Corrupt(format!("unknown shard state {state}")))?;
    let lease: Option<(Option<i64>, Option<i64>)> = tx
        .query_row(
            "SELECT ended_ms, outcome FROM leases WHERE id = ?1 AND shard_id = ?2 AND fencing_token = ?3",
            params![key.lease.as_str(), key.shard.as_str(), to_i64(key.fencing_token)],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    Ok(Current {
        job: rows::job_id(&job)?,
        state,
        held: state == ShardState::Leased && matches!(lease, Some((None, _))),
        outcome: lease.and_then(|(_, outcome)| LeaseOutcome::from_code(outcome?)),
    })
}

pub(super) fn end_lease(
    tx: &Transaction<'_>,
    now: Millis,
    lease: &LeaseId,
    outcome: LeaseOutcome,
) -> Result<()> {
    tx.execute(
        "UPDATE leases SET ended_ms = ?1, outcome = ?2 WHERE id = ?3",
        params![now, outcome.code(), lease.as_str()],
    )?;
    Ok(())
}

/// Adds a warning to the history of a shard, unless its job is gone.
pub(super) fn note(
    tx: &Transaction<'_>,
    now: Millis,
    shard: &ShardId,
    worker: &WorkerId,
    message: &str,
) -> Result<()> {
    let found: Option<(String, String)> = tx
        .query_row(
            "SELECT s.job_id, g.name FROM shards s JOIN stages g ON g.job_id = s.job_id AND g.idx = s.stage
             WHERE s.id = ?1",
            [shard.as_str()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let Some((job, stage)) = found else { return Ok(()) };
    log_shard(tx, now, &job, &stage, shard, worker.as_str(), "warn", message)
}

/// Leases of a shard that have not ended.
pub(super) fn open_leases(tx: &Transaction<'_>, shard: &ShardId) -> Result<u32> {
    let count: i64 = tx.query_row(
        "SELECT count(*) FROM leases WHERE shard_id = ?1 AND ended_ms IS NULL",
        [shard.as_str()],
        |row| row.get(0),
    )?;
    Ok(to_u32(count))
}

/// Takes back every lease of a shard.
pub(super) fn revoke_leases_of(
    tx: &Transaction<'_>,
    now: Millis,
    job: &JobId,
    shard: &ShardId,
) -> Result<Vec<Revoked>> {
    collect(
        tx,
        "UPDATE leases SET ended_ms = ?1, outcome = ?2 WHERE shard_id = ?3 AND ended_ms IS NULL
         RETURNING id, worker_id",
        params![now, LeaseOutcome::Revoked.code(), shard.as_str()],
        |row| {
            Ok(Revoked {
                lease: rows::lease_id(&row.get::<_, String>(0)?)?,
                worker: rows::worker_id(&row.get::<_, String>(1)?)?,
                job: job.clone(),
            })
        },
    )
}

#[expect(clippy::too_many_arguments, reason = "one line of a log is made of this much")]
pub(super) fn log_shard(
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
