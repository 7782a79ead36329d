//! Which shard goes to which worker.
//!
//! The problem: free slots are few, pending shards many. A job of higher priority goes first; jobs of one priority share
//! the slots evenly, an older job first where they are even; within a job, shards go in stage order. Among the workers that can run a shard, the one that has its models
//! in memory is best, then the one that has most of its inputs, then the one with most free slots. A worker on which
//! the shard just failed is taken only if there is no other.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashSet},
};

use cappy_proto::{ShardId, WorkerId};

use crate::store::{PendingJob, PendingShard};

/// What a worker offers.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) worker: WorkerId,
    pub(crate) free_slots: u32,
    pub(crate) backends: BTreeSet<String>,
    /// Fingerprints of models in memory.
    pub(crate) resident: HashSet<String>,
    /// Artifacts that it has read or made.
    pub(crate) artifacts: HashSet<String>,
}

impl Offer {
    fn can_run(&self, shard: &PendingShard) -> bool {
        let backend = &shard.requirements.backend;
        backend.is_empty() || self.backends.contains(backend)
    }
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) shard: ShardId,
    pub(crate) worker: WorkerId,
}

/// Pairs pending shards with free slots. `jobs` are oldest first; shards that run on the coordinator are not looked at.
pub(crate) fn place(jobs: &[PendingJob], mut offers: Vec<Offer>) -> Vec<Candidate> {
    struct Queue<'a> {
        /// What goes first is least.
        rank: (Reverse<i32>, u32, i64),
        shards: Vec<&'a PendingShard>,
    }
    let mut queues: Vec<Queue<'_>> = jobs
        .iter()
        .map(|job| Queue {
            rank: (Reverse(job.priority), job.leased, job.job),
            // Popped from the end.
            shards: job.shards.iter().filter(|shard| !shard.requirements.local).rev().collect(),
        })
        .collect();
    let mut placed = Vec::new();
    while offers.iter().any(|offer| offer.free_slots > 0) {
        let next = queues.iter_mut().filter(|queue| !queue.shards.is_empty()).min_by_key(|queue| queue.rank);
        let Some(queue) = next else { break };
        let shard = queue.shards.pop().expect("the queue is not empty");
        let best = offers
            .iter_mut()
            .filter(|offer| offer.free_slots > 0 && offer.can_run(shard))
            .max_by(|a, b| preference(a, shard).cmp(&preference(b, shard)));
        let Some(offer) = best else { continue };
        offer.free_slots -= 1;
        queue.rank.1 += 1;
        placed.push(Candidate { shard: shard.id.clone(), worker: offer.worker.clone() });
    }
    placed
}

/// Greater is better; the id makes the choice the same each time.
fn preference<'a>(
    offer: &'a Offer,
    shard: &PendingShard,
) -> (bool, usize, usize, u32, Reverse<&'a WorkerId>) {
    let wanted = &shard.requirements;
    (
        shard.last_worker.as_ref() != Some(&offer.worker),
        wanted.models.iter().filter(|model| offer.resident.contains(*model)).count(),
        wanted.inputs.iter().filter(|input| offer.artifacts.contains(*input)).count(),
        offer.free_slots,
        Reverse(&offer.worker),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Requirements;

    fn job(order: i64, leased: u32, shards: Vec<PendingShard>) -> PendingJob {
        PendingJob { job: order, priority: 0, leased, shards }
    }

    fn shard(requirements: Requirements) -> PendingShard {
        PendingShard { id: ShardId::generate(), requirements, last_worker: None }
    }

    fn plain(count: usize) -> Vec<PendingShard> {
        (0..count).map(|_| shard(Requirements::default())).collect()
    }

    fn offer(free_slots: u32) -> Offer {
        Offer {
            worker: WorkerId::generate(),
            free_slots,
            backends: ["candle".to_owned()].into(),
            resident: HashSet::new(),
            artifacts: HashSet::new(),
        }
    }

    #[test]
    fn jobs_share_slots_evenly_and_the_older_goes_first() {
        let (old, new) = (plain(5), plain(5));
        let jobs = [job(1, 0, old.clone()), job(2, 0, new.clone())];
        let placed: Vec<ShardId> = place(&jobs, vec![offer(3)]).into_iter().map(|pair| pair.shard).collect();
        assert_eq!(placed, [old[0].id.clone(), new[0].id.clone(), old[1].id.clone()]);
        let jobs = [job(1, 4, old.clone()), job(2, 1, new.clone())];
        let placed: Vec<ShardId> = place(&jobs, vec![offer(2)]).into_iter().map(|pair| pair.shard).collect();
        assert_eq!(placed, [new[0].id.clone(), new[1].id.clone()], "the job with less running catches up");
    }

    #[test]
    fn a_worker_that_has_the_model_then_the_inputs_is_preferred() {
        let wants = Requirements {
            models: vec!["m".into()],
            inputs: vec!["a".into(), "b".into()],
            ..Default::default()
        };
        let (idle, mut has_inputs, mut has_model) = (offer(4), offer(2), offer(1));
        has_inputs.artifacts = ["a".to_owned()].into();
        has_model.resident = ["m".to_owned()].into();
        let jobs = [job(1, 0, vec![shard(wants.clone()), shard(wants.clone()), shard(wants)])];
        let offers = vec![idle.clone(), has_inputs.clone(), has_model.clone()];
        let workers: Vec<WorkerId> = place(&jobs, offers).into_iter().map(|pair| pair.worker).collect();
        assert_eq!(workers, [has_model.worker, has_inputs.worker.clone(), has_inputs.worker]);
    }

    #[test]
    fn a_shard_goes_only_where_it_can_run_and_rather_not_where_it_failed() {
        let wants = Requirements { backend: "libtorch".into(), ..Default::default() };
        let local = Requirements { local: true, ..Default::default() };
        let candle = offer(1);
        let jobs = [job(1, 0, vec![shard(wants), shard(local)]), job(2, 0, plain(1))];
        let placed = place(&jobs, vec![candle.clone()]);
        assert_eq!(placed.len(), 1, "the shard that nobody can run does not hold up the next job");
        assert_eq!(placed[0].shard, jobs[1].shards[0].id);

        let (first, second) = (offer(1), offer(1));
        let mut failed = shard(Requirements::default());
        failed.last_worker = Some(first.worker.clone());
        let jobs = [job(1, 0, vec![failed])];
        let placed = place(&jobs, vec![first.clone(), second.clone()]);
        assert_eq!(placed[0].worker, second.worker);
        assert_eq!(place(&jobs, vec![first.clone()])[0].worker, first.worker);
    }
}
