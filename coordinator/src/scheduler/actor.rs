//! The loop: expire, plan, place. Woken by what happens, and by a timer for what does not.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use cappy_proto::{JobId, WorkerId, v1};
use prost::Message as _;
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Offer, place, speculate};
use crate::{
    context::Context,
    local::{LocalError, LocalTask},
    metrics::add,
    planner,
    store::{
        AttemptFailure, FailureClass, Gang, GangKind, Granted, LeaseKey, PendingShard, StageOutputs, Step,
        StoreError,
    },
};

/// Pending shards of a job that one round looks at.
const LOOKAHEAD: u32 = 64;
/// How often every job that has not ended is planned anew, whether or not anything was said about it: another
/// coordinator may have committed its shards.
const REPLAN_INTERVAL: Duration = Duration::from_secs(10);
/// What a lease hears that ends with another.
pub(crate) const LOST_RANK: &str = "the stage failed, or another worker that computed it too was lost";
/// Time that pure stages get to finish at shutdown; one that does not is leased again later.
const LOCAL_GRACE: Duration = Duration::from_secs(5);

/// Wakes the scheduler.
#[derive(Clone, Debug, Default)]
pub(crate) struct SchedulerHandle {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    wake: Notify,
    changed: Mutex<HashSet<JobId>>,
}

impl SchedulerHandle {
    /// A stage of the job has ended, or the job is new.
    pub(crate) fn look_at(&self, job: &JobId) {
        self.inner.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone());
        self.wake();
    }

    /// A slot is free, or a worker came.
    pub(crate) fn wake(&self) {
        self.inner.wake.notify_one();
    }

    fn take_changed(&self) -> HashSet<JobId> {
        std::mem::take(&mut *self.inner.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// See the module.
pub(crate) struct Scheduler {
    context: Context,
    /// The coordinator as the holder of local leases.
    own_id: WorkerId,
    local_slots: Arc<Semaphore>,
    local: JoinSet<()>,
}

impl Scheduler {
    pub(crate) fn new(context: Context) -> Self {
        let local_slots = Arc::new(Semaphore::new(context.config.local_slots.max(1)));
        Self { context, own_id: WorkerId::generate(), local_slots, local: JoinSet::new() }
    }

    /// Runs until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut replanned: Option<Instant> = None;
        loop {
            if replanned.is_none_or(|at| at.elapsed() >= REPLAN_INTERVAL) {
                match self.context.store.active_jobs().await {
                    Ok(jobs) => jobs.iter().for_each(|job| self.context.scheduler.look_at(job)),
                    Err(error) => report("list the active jobs", &error),
                }
                replanned = Some(Instant::now());
            }
            self.round().await;
            while self.local.try_join_next().is_some() {}
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.context.scheduler.inner.wake.notified() => {}
                () = tokio::time::sleep(self.context.config.sweep_interval) => {}
            }
        }
        let _ = tokio::time::timeout(LOCAL_GRACE, async { while self.local.join_next().await.is_some() {} })
            .await;
        self.local.abort_all();
    }

    async fn round(&mut self) {
        match self.context.store.expire(&self.context.config.retry()).await {
            Ok(outcome) => self.context.follow_up(&outcome, "its deadline passed"),
            Err(error) => report("expire leases", &error),
        }
        let mut changed = self.context.scheduler.take_changed();
        if !changed.is_empty() {
            // Where a stage ended, others may have waited for it.
            match self.context.store.waiting_for_others().await {
                Ok(waiting) => changed.extend(waiting),
                Err(error) => report("list the waiting jobs", &error),
            }
        }
        for job in changed {
            if let Err(error) = self.advance(&job).await
                && !matches!(error, StoreError::NotFound { .. })
            {
                report("plan a job", &error);
                // Looked at again with the next sweep.
                self.context
                    .scheduler
                    .inner
                    .changed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(job);
            }
        }
        if let Err(error) = self.grant().await {
            report("grant leases", &error);
        }
    }

    /// Applies the planner's steps until there is nothing left to do but wait.
    async fn advance(&self, job: &JobId) -> Result<(), StoreError> {
        loop {
            let record = self.context.store.job(job).await?;
            if record.row.state.is_terminal() {
                return Ok(());
            }
            let steps = match planner::graph_of(&record) {
                Some(graph) => planner::next_steps(
                    &graph,
                    &record,
                    self.context.cluster.memory(&planner::backend_of(&record)),
                ),
                None => vec![Step::Finish {
                    state: crate::store::JobState::Failed,
                    message: "the job was written by another version of the coordinator".into(),
                }],
            };
            if steps.is_empty() {
                return Ok(());
            }
            let mut decided = Vec::with_capacity(steps.len());
            for step in steps {
                decided.push(self.reuse(step).await?);
            }
            let applied = self.context.store.apply(job, decided).await?;
            self.context.tell_revoked(&applied.revoked, "the job ended");
            self.context.changes.notify(job);
            if !applied.progressed {
                // Whatever could open waits for another job that computes the same.
                return Ok(());
            }
        }
    }

    /// Takes over an earlier stage's outputs instead of opening, if all its artifacts are still there.
    async fn reuse(&self, step: Step) -> Result<Step, StoreError> {
        let Step::Open { stage, fingerprint: Some(fingerprint), .. } = &step else { return Ok(step) };
        let Some(outputs) = self.context.store.reusable(fingerprint).await? else { return Ok(step) };
        if !self.all_stored(&outputs).await {
            self.context.store.forget_outputs(fingerprint).await?;
            return Ok(step);
        }
        add(&self.context.metrics.stages_reused, 1);
        Ok(Step::Reuse { stage: *stage, fingerprint: fingerprint.clone(), outputs })
    }

    async fn all_stored(&self, outputs: &StageOutputs) -> bool {
        for output in outputs.iter().flat_map(|shard| &shard.artifacts) {
            if !matches!(self.context.artifacts.size(&output.id).await, Ok(Some(size)) if size == output.size_bytes)
            {
                return false;
            }
        }
        true
    }

    async fn grant(&mut self) -> Result<(), StoreError> {
        let mut offers = self.context.cluster.offers();
        let free = offers.iter().any(|offer| offer.free_slots > 0);
        if !free && self.local_slots.available_permits() == 0 {
            return Ok(());
        }
        let jobs = self.context.store.pending(LOOKAHEAD).await?;
        let ttl = self.context.config.lease_ttl;
        for pair in place(&jobs, &mut offers) {
            let Some(granted) = self.context.store.lease_gang(&pair.shard, &pair.workers, ttl).await? else {
                continue;
            };
            add(&self.context.metrics.leases_granted, granted.len() as u64);
            let shard = jobs.iter().flat_map(|job| &job.shards).find(|shard| shard.id == pair.shard);
            for (worker, granted) in pair.workers.iter().zip(&granted) {
                // Where one of a gang is gone already, the leases of the others have ended with its own.
                if !self.send(worker, granted, shard).await? {
                    break;
                }
            }
            granted.iter().take(1).for_each(|granted| self.context.changes.notify(&granted.job));
        }
        if offers.iter().any(|offer| offer.free_slots > 0) {
            self.speculate(&mut offers).await?;
        }
        for shard in jobs.iter().flat_map(|job| &job.shards).filter(|shard| shard.requirements.local) {
            let Ok(slot) = Arc::clone(&self.local_slots).try_acquire_owned() else { break };
            let Some(granted) = self.context.store.lease(&shard.id, &self.own_id, ttl).await? else {
                continue;
            };
            add(&self.context.metrics.leases_granted, 1);
            let (context, own_id) = (self.context.clone(), self.own_id.clone());
            self.local.spawn(async move {
                run_local(&context, &own_id, granted).await;
                drop(slot);
                context.scheduler.wake();
            });
        }
        Ok(())
    }

    /// Gives slots that nothing else wants to shards that lag.
    async fn speculate(&self, offers: &mut [Offer]) -> Result<(), StoreError> {
        let stragglers = self.context.store.stragglers().await?;
        for pair in speculate(&stragglers, offers, self.context.config.speculate_after) {
            let ttl = self.context.config.lease_ttl;
            let Some(worker) = pair.workers.first() else { continue };
            let Some(granted) = self.context.store.lease_again(&pair.shard, worker, ttl).await? else {
                continue;
            };
            add(&self.context.metrics.leases_granted, 1);
            add(&self.context.metrics.leases_speculative, 1);
            let shard =
                stragglers.iter().map(|straggler| &straggler.shard).find(|shard| shard.id == pair.shard);
            self.send(worker, &granted, shard).await?;
            self.context.changes.notify(&granted.job);
        }
        Ok(())
    }

    /// Sends a lease to its worker. False: it could not, and the attempt has ended.
    async fn send(
        &self,
        worker: &WorkerId,
        granted: &Granted,
        shard: Option<&PendingShard>,
    ) -> Result<bool, StoreError> {
        let failure = match v1::ShardTask::decode(granted.task.as_slice()) {
            Ok(task) => {
                let task = planner::with_rows(task, granted.rows);
                let inputs = shard.map(|shard| shard.requirements.inputs.as_slice()).unwrap_or_default();
                let gang = shard.and_then(|shard| shard.requirements.gang);
                let gang = gang.map(|gang| gang_message(gang, self.context.config.exchange_timeout));
                if self.context.cluster.send_lease(worker, granted, task, inputs, gang) {
                    return Ok(true);
                }
                AttemptFailure {
                    class: FailureClass::Infrastructure,
                    code: "worker_gone".into(),
                    message: "the worker left before it could take the lease".into(),
                }
            }
            Err(_) => AttemptFailure {
                class: FailureClass::Permanent,
                code: "internal".into(),
                message: "the task was written by another version of the coordinator".into(),
            },
        };
        let outcome = self.context.store.fail(&key(granted), failure, &self.context.config.retry()).await?;
        self.context.follow_up(&outcome, LOST_RANK);
        Ok(false)
    }
}

fn gang_message(gang: Gang, exchange_timeout: Duration) -> v1::Gang {
    let kind = match gang.kind {
        GangKind::Data => v1::GangKind::Data,
        GangKind::Tensor => v1::GangKind::Tensor,
    };
    v1::Gang {
        kind: kind.into(),
        world: gang.ranks,
        exchange_timeout_ms: u32::try_from(exchange_timeout.as_millis()).unwrap_or(u32::MAX),
    }
}

/// Runs a pure stage under a lease that is kept alive meanwhile, and commits it.
async fn run_local(context: &Context, own_id: &WorkerId, granted: Granted) {
    let task = LocalTask::decode(&granted.task);
    let activity = task.as_ref().map(LocalTask::activity).unwrap_or_default();
    context.cluster.begin_local(&granted, activity);
    context.changes.notify(&granted.job);
    let artifacts = context.artifacts.clone();
    let work = tokio::task::spawn_blocking(move || task?.run(&artifacts));
    let keep_alive = async {
        loop {
            tokio::time::sleep(context.config.lease_ttl / 3).await;
            let leases = [granted.lease.clone()];
            if let Err(error) = context.store.extend(own_id, &leases, context.config.lease_ttl).await {
                report("prolong a local lease", &error);
            }
        }
    };
    let result = tokio::select! {
        result = work => result.unwrap_or_else(|panic| {
            tracing::error!(stage = granted.stage_name, %panic, "a pure stage panicked");
            Err(LocalError::Bad("the stage crashed; this is a bug, see the coordinator's log".into()))
        }),
        () = keep_alive => unreachable!("keeping alive does not end"),
    };
    let committed = match result {
        Ok(output) => commit_local(context, &granted, output).await,
        Err(error) => {
            tracing::warn!(
                stage = granted.stage_name,
                error = &error as &dyn std::error::Error,
                "stage failed"
            );
            context.store.fail(&key(&granted), error.into(), &context.config.retry()).await.map(|outcome| {
                add(&context.metrics.attempts_failed, 1);
                context.follow_up(&outcome, "the stage failed");
            })
        }
    };
    context.cluster.end_lease(&granted.lease, &[]);
    match committed {
        // Cancelled meanwhile: nothing to do.
        Ok(()) | Err(StoreError::Fenced { .. } | StoreError::NotFound { .. }) => {}
        Err(error) => report("commit a local shard", &error),
    }
    context.job_changed(&granted.job);
}

async fn commit_local(
    context: &Context,
    granted: &Granted,
    output: crate::store::ShardOutput,
) -> Result<(), StoreError> {
    for artifact in &output.artifacts {
        context.record_artifact(&artifact.id, artifact.size_bytes).await?;
    }
    context.store.complete(&key(granted), output).await?;
    add(&context.metrics.shards_committed, 1);
    Ok(())
}

fn key(granted: &Granted) -> LeaseKey {
    LeaseKey {
        lease: granted.lease.clone(),
        fencing_token: granted.fencing_token,
        shard: granted.shard.clone(),
    }
}

fn report(doing: &str, error: &StoreError) {
    tracing::error!(error = error as &dyn std::error::Error, "failed to {doing}");
}
