//! The job store in one SQLite file.
//!
//! WAL with `synchronous = FULL`: a commit is on the disk before it is acknowledged. One connection writes, in
//! immediate transactions, and one reads beside it. Several processes may share the file: whatever decides is in
//! the WHERE clause, never in memory.

mod artifacts;
mod attempts;
mod jobs;
mod leases;
mod migrations;
mod models;
mod pending;
mod rows;
mod steps;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use cappy_proto::{JobId, LeaseId, ModelId, ShardId, WorkerId};
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::clock::Clock;
use super::*;

/// How long a transaction waits for another process's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// [`JobStore`] in one SQLite file.
#[derive(Clone, Debug)]
pub(crate) struct SqliteStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
    clock: Clock,
}

impl SqliteStore {
    /// Opens or creates the file and brings its schema up to date.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder)
                .map_err(|source| StoreError::Open { path: path.display().to_string(), source })?;
        }
        let mut writer = connect(path)?;
        migrations::migrate(&mut writer)?;
        let latest: Option<Millis> =
            writer.query_row("SELECT max(updated_ms) FROM jobs", [], |row| row.get(0))?;
        let reader = connect(path)?;
        let clock = Clock::start(latest.unwrap_or(0));
        Ok(Self { inner: Arc::new(Inner { writer: Mutex::new(writer), reader: Mutex::new(reader), clock }) })
    }

    #[cfg(test)]
    pub(crate) fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    async fn write<T, F>(&self, body: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>, Millis) -> Result<T> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            let mut connection = inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(classify)?;
            let value = body(&transaction, inner.clock.now()).map_err(reclassify)?;
            transaction.commit().map_err(classify)?;
            Ok(value)
        })
        .await
        .map_err(|_| StoreError::Interrupted)?
    }

    async fn read<T, F>(&self, body: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>, Millis) -> Result<T> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            let mut connection = inner.reader.lock().unwrap_or_else(PoisonError::into_inner);
            let transaction = connection.transaction().map_err(classify)?;
            body(&transaction, inner.clock.now()).map_err(reclassify)
        })
        .await
        .map_err(|_| StoreError::Interrupted)?
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn classify(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => StoreError::Full(error),
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            StoreError::Busy(error)
        }
        _ => StoreError::Sqlite(error),
    }
}

fn reclassify(error: StoreError) -> StoreError {
    match error {
        StoreError::Sqlite(error) => classify(error),
        other => other,
    }
}

#[async_trait]
impl JobStore for SqliteStore {
    async fn submit(&self, job: NewJob) -> Result<Submitted> {
        self.write(move |tx, now| jobs::submit(tx, now, &job)).await
    }

    async fn find_job(&self, text: &str) -> Result<JobId> {
        let text = text.to_owned();
        self.read(move |tx, _| jobs::find(tx, &text)).await
    }

    async fn job(&self, id: &JobId) -> Result<JobRecord> {
        let id = id.clone();
        self.read(move |tx, _| jobs::record(tx, &id)).await
    }

    async fn list_jobs(&self, limit: u32, before: Option<&JobId>) -> Result<Vec<JobRow>> {
        let before = before.cloned();
        self.read(move |tx, _| jobs::list(tx, limit, before.as_ref())).await
    }

    async fn active_jobs(&self) -> Result<Vec<JobId>> {
        self.read(|tx, _| jobs::active(tx)).await
    }

    async fn cancel(&self, id: &JobId) -> Result<(bool, Vec<Revoked>)> {
        let id = id.clone();
        self.write(move |tx, now| steps::cancel(tx, now, &id)).await
    }

    async fn set_paused(&self, id: &JobId, paused: bool) -> Result<(bool, Vec<Revoked>)> {
        let id = id.clone();
        self.write(move |tx, now| jobs::set_paused(tx, now, &id, paused)).await
    }

    async fn delete(&self, id: &JobId) -> Result<Vec<ModelId>> {
        let id = id.clone();
        self.write(move |tx, _| jobs::delete(tx, &id)).await
    }

    async fn waiting_for_others(&self) -> Result<Vec<JobId>> {
        self.read(|tx, _| jobs::waiting_for_others(tx)).await
    }

    async fn apply(&self, job: &JobId, steps: Vec<Step>) -> Result<Applied> {
        let job = job.clone();
        self.write(move |tx, now| steps::apply(tx, now, &job, &steps)).await
    }

    async fn reusable(&self, fingerprint: &str) -> Result<Option<StageOutputs>> {
        let fingerprint = fingerprint.to_owned();
        self.read(move |tx, _| {
            let text: Option<String> = tx
                .query_row(
                    "SELECT outputs FROM stage_outputs WHERE fingerprint = ?1",
                    [&fingerprint],
                    |row| row.get(0),
                )
                .optional()?;
            text.as_deref().map(rows::decode).transpose()
        })
        .await
    }

    async fn forget_outputs(&self, fingerprint: &str) -> Result<()> {
        let fingerprint = fingerprint.to_owned();
        self.write(move |tx, _| {
            tx.execute("DELETE FROM stage_outputs WHERE fingerprint = ?1", [&fingerprint])?;
            Ok(())
        })
        .await
    }

    async fn pending(&self, per_job: u32) -> Result<Vec<PendingJob>> {
        self.read(move |tx, now| pending::pending(tx, now, per_job)).await
    }

    async fn lease(&self, shard: &ShardId, worker: &WorkerId, ttl: Duration) -> Result<Option<Granted>> {
        let (shard, worker) = (shard.clone(), worker.clone());
        self.write(move |tx, now| leases::lease(tx, now, &shard, &worker, ttl)).await
    }

    async fn stragglers(&self) -> Result<Vec<Straggler>> {
        self.read(pending::stragglers).await
    }

    async fn lease_again(
        &self,
        shard: &ShardId,
        worker: &WorkerId,
        ttl: Duration,
    ) -> Result<Option<Granted>> {
        let (shard, worker) = (shard.clone(), worker.clone());
        self.write(move |tx, now| leases::lease_again(tx, now, &shard, &worker, ttl)).await
    }

    async fn lease_gang(
        &self,
        shard: &ShardId,
        workers: &[WorkerId],
        ttl: Duration,
    ) -> Result<Option<Vec<Granted>>> {
        let (shard, workers) = (shard.clone(), workers.to_vec());
        self.write(move |tx, now| leases::lease_gang(tx, now, &shard, &workers, ttl)).await
    }

    async fn gang(&self, key: &LeaseKey) -> Result<Vec<GangMember>> {
        let key = key.clone();
        self.read(move |tx, _| leases::gang(tx, &key)).await
    }

    async fn extend(&self, worker: &WorkerId, leases: &[LeaseId], ttl: Duration) -> Result<Vec<Held>> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let (worker, leases) = (worker.clone(), leases.to_vec());
        self.write(move |tx, now| leases::extend(tx, now, &worker, &leases, ttl)).await
    }

    async fn shorten(&self, worker: &WorkerId, grace: Duration) -> Result<()> {
        let worker = worker.clone();
        self.write(move |tx, now| {
            let deadline = now + super::clock::millis(grace);
            tx.execute(
                "UPDATE leases SET deadline_ms = ?1
                 WHERE worker_id = ?2 AND ended_ms IS NULL AND deadline_ms > ?1",
                params![deadline, worker.as_str()],
            )?;
            Ok(())
        })
        .await
    }

    async fn complete(&self, key: &LeaseKey, output: ShardOutput) -> Result<Completed> {
        let key = key.clone();
        self.write(move |tx, now| leases::complete(tx, now, &key, &output)).await
    }

    async fn fail(
        &self,
        key: &LeaseKey,
        failure: AttemptFailure,
        retry: &RetryPolicy,
    ) -> Result<FailOutcome> {
        let (key, retry) = (key.clone(), retry.clone());
        self.write(move |tx, now| leases::fail(tx, now, &key, &failure, &retry)).await
    }

    async fn expire(&self, retry: &RetryPolicy) -> Result<FailOutcome> {
        // Most sweeps find nothing; they must not take the writer.
        let due = self.read(leases::any_due).await?;
        if !due {
            return Ok(FailOutcome::default());
        }
        let retry = retry.clone();
        self.write(move |tx, now| leases::expire(tx, now, &retry)).await
    }

    async fn find_model(&self, text: &str) -> Result<ModelRecord> {
        let text = text.to_owned();
        self.read(move |tx, _| models::find(tx, &text)).await
    }

    async fn list_models(&self) -> Result<Vec<ModelRecord>> {
        self.read(|tx, _| models::list(tx)).await
    }

    async fn record_artifact(&self, id: &str, size_bytes: u64) -> Result<()> {
        let id = id.to_owned();
        self.write(move |tx, now| artifacts::record(tx, now, &id, size_bytes)).await
    }

    async fn touch_artifact(&self, id: &str) -> Result<Option<u64>> {
        let id = id.to_owned();
        self.write(move |tx, now| artifacts::touch(tx, now, &id)).await
    }

    async fn take_garbage(&self, grace: Duration, limit: u32) -> Result<Vec<String>> {
        self.write(move |tx, now| artifacts::take_garbage(tx, now, grace, limit)).await
    }

    async fn stored_bytes(&self) -> Result<u64> {
        self.read(|tx, _| artifacts::stored_bytes(tx)).await
    }

    async fn heaviest_jobs(&self, limit: u32) -> Result<Vec<(JobId, u64)>> {
        self.read(move |tx, _| artifacts::heaviest(tx, limit)).await
    }

    async fn artifact(&self, id: &str) -> Result<Option<u64>> {
        let id = id.to_owned();
        self.read(move |tx, _| rows::artifact_size(tx, &id)).await
    }

    async fn events(&self, job: &JobId, after: i64, limit: u32, only: &EventFilter) -> Result<Vec<Event>> {
        let (job, only) = (job.clone(), only.clone());
        self.read(move |tx, _| rows::events(tx, &job, after, limit, &only)).await
    }

    async fn note(&self, shard: &ShardId, worker: &WorkerId, message: &str) -> Result<()> {
        let (shard, worker, message) = (shard.clone(), worker.clone(), message.to_owned());
        self.write(move |tx, now| leases::note(tx, now, &shard, &worker, &message)).await
    }

    async fn count_leased(&self) -> Result<u64> {
        self.read(|tx, _| {
            let sql = "SELECT count(*) FROM leases l JOIN shards s ON s.id = l.shard_id
                       WHERE l.ended_ms IS NULL AND s.local = 0";
            Ok(rows::to_u64(tx.query_row(sql, [], |row| row.get(0))?))
        })
        .await
    }

    async fn count_jobs(&self) -> Result<Vec<(JobState, u64)>> {
        self.read(|tx, _| jobs::count(tx)).await
    }

    async fn check(&self) -> Result<()> {
        self.read(|tx, _| Ok(tx.query_row("SELECT 1", [], |_| Ok(()))?)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::store::suite::job_store_suite!(|folder: &Path| {
        let store = SqliteStore::open(&folder.join("jobs.sqlite")).unwrap();
        let clock = store.clock().clone();
        clock.freeze();
        (store, move |by| clock.advance(by))
    });
}
