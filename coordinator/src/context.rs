//! What every service and the scheduler share.

use std::sync::Arc;

use cappy_proto::JobId;
use tokio_util::sync::CancellationToken;

use crate::{
    artifacts::ArtifactStore,
    changes::Changes,
    config::Config,
    membership::Cluster,
    metrics::{Metrics, add},
    rendezvous::Rendezvous,
    scheduler::SchedulerHandle,
    store::{FailOutcome, JobStore, Revoked, StoreError},
};

#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Arc<dyn JobStore>,
    pub(crate) artifacts: ArtifactStore,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) rendezvous: Arc<Rendezvous>,
    pub(crate) changes: Arc<Changes>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) scheduler: SchedulerHandle,
    /// Cancelled when the coordinator ends: what would stream for ever stops.
    pub(crate) shutdown: CancellationToken,
}

impl Context {
    /// Lets the planner look at a job, and its watchers too.
    pub(crate) fn job_changed(&self, job: &JobId) {
        self.changes.notify(job);
        self.scheduler.look_at(job);
    }

    /// Tells the holders of leases that were taken back.
    pub(crate) fn tell_revoked(&self, revoked: &[Revoked], reason: &str) {
        add(&self.metrics.leases_lost, revoked.len() as u64);
        for lease in revoked {
            self.cluster.revoke(&lease.lease, reason);
            self.changes.notify(&lease.job);
        }
    }

    /// Follows up on a failure or an expiry.
    pub(crate) fn follow_up(&self, outcome: &FailOutcome, reason: &str) {
        self.tell_revoked(&outcome.revoked, reason);
        outcome.ended.iter().for_each(|job| self.job_changed(job));
    }

    /// Makes a file of the artifact store known to the job store, unless it was removed meanwhile.
    pub(crate) async fn record_artifact(&self, id: &str, size_bytes: u64) -> Result<(), StoreError> {
        let _kept = self.artifacts.keeping().await;
        match self.artifacts.size(id).await {
            Ok(Some(size)) if size == size_bytes => self.store.record_artifact(id, size_bytes).await,
            _ => Err(StoreError::UnknownArtifact { id: id.to_owned() }),
        }
    }
}
