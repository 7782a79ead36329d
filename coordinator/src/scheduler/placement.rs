//! Which shard goes to which worker.
//!
//! The problem: free slots are few, pending shards many. A job of higher priority goes first; jobs of one priority share
//! the slots evenly, an older job first where they are even; within a job, shards go in stage order. Among the workers that can run a shard, the one that has its models
//! in memory is best, then the one that has most of its inputs, then the one with most free slots. A worker on which
//! the shard just failed is taken only if there is no other.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use cappy_proto::{ShardId, WorkerId};

use crate::store::{PendingJob, PendingShard, Straggler};

/// A shard that is not done after this may be tried by a second worker.
pub(crate) const SPECULATE_AFTER: Duration = Duration::from_secs(30);
/// How many times longer than the others of its stage a shard takes before it lags.
const SLOWNESS: u32 = 2;

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

/// Pairs pending shards with free slots, and takes the slots. `jobs` are oldest first; shards that run on the coordinator
/// are not looked at.
pub(crate) fn place(jobs: &[PendingJob], offers: &mut [Offer]) -> Vec<Candidate> {
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

/// Pairs lagging shards with slots that nothing else wants: a shard that has taken `SLOWNESS` times what the others of its
/// stage took, and not less than `floor`, is tried by a second worker too. Not where answers are paid for.
pub(crate) fn speculate(stragglers: &[Straggler], offers: &mut [Offer], floor: Duration) -> Vec<Candidate> {
    let mut pairs = Vec::new();
    for straggler in stragglers {
        let shard = &straggler.shard;
        let late = straggler.held >= floor && straggler.held >= straggler.expected.saturating_mul(SLOWNESS);
        if !late || shard.requirements.endpoint {
            continue;
        }
        let best = offers
            .iter_mut()
            .filter(|offer| offer.free_slots > 0 && offer.can_run(shard))
            .filter(|offer| shard.last_worker.as_ref() != Some(&offer.worker))
            .max_by(|a, b| preference(a, shard).cmp(&preference(b, shard)));
        if let Some(offer) = best {
            offer.free_slots -= 1;
            pairs.push(Candidate { shard: shard.id.clone(), worker: offer.worker.clone() });
        }
    }
    pairs
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
    use proptest::prelude::*;

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
        let placed: Vec<ShardId> = place(&jobs, &mut [offer(3)]).into_iter().map(|pair| pair.shard).collect();
        assert_eq!(placed, [old[0].id.clone(), new[0].id.clone(), old[1].id.clone()]);
        let jobs = [job(1, 4, old.clone()), job(2, 1, new.clone())];
        let placed: Vec<ShardId> = place(&jobs, &mut [offer(2)]).into_iter().map(|pair| pair.shard).collect();
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
        let mut offers = [idle.clone(), has_inputs.clone(), has_model.clone()];
        let workers: Vec<WorkerId> = place(&jobs, &mut offers).into_iter().map(|pair| pair.worker).collect();
        assert_eq!(workers, [has_model.worker, has_inputs.worker.clone(), has_inputs.worker]);
    }

    #[test]
    fn a_shard_goes_only_where_it_can_run_and_rather_not_where_it_failed() {
        let wants = Requirements { backend: "libtorch".into(), ..Default::default() };
        let local = Requirements { local: true, ..Default::default() };
        let candle = offer(1);
        let jobs = [job(1, 0, vec![shard(wants), shard(local)]), job(2, 0, plain(1))];
        let placed = place(&jobs, &mut [candle.clone()]);
        assert_eq!(placed.len(), 1, "the shard that nobody can run does not hold up the next job");
        assert_eq!(placed[0].shard, jobs[1].shards[0].id);

        let (first, second) = (offer(1), offer(1));
        let mut failed = shard(Requirements::default());
        failed.last_worker = Some(first.worker.clone());
        let jobs = [job(1, 0, vec![failed])];
        let placed = place(&jobs, &mut [first.clone(), second.clone()]);
        assert_eq!(placed[0].worker, second.worker);
        assert_eq!(place(&jobs, &mut [first.clone()])[0].worker, first.worker);
    }

    #[test]
    fn the_last_shards_of_a_stage_are_tried_by_an_idle_worker_when_they_lag() {
        let holder = WorkerId::generate();
        let straggler = |held, expected, endpoint| Straggler {
            shard: PendingShard {
                id: ShardId::generate(),
                requirements: Requirements { endpoint, ..Default::default() },
                last_worker: Some(holder.clone()),
            },
            held: Duration::from_secs(held),
            expected: Duration::from_secs(expected),
        };
        let floor = Duration::from_secs(30);
        let late = straggler(60, 20, false);
        let shards =
            [late.clone(), straggler(60, 40, false), straggler(20, 1, false), straggler(60, 1, true)];
        let mut offers = [offer(2), Offer { worker: holder.clone(), ..offer(4) }];
        let pairs = speculate(&shards, &mut offers, floor);
        assert_eq!(pairs, [Candidate { shard: late.shard.id.clone(), worker: offers[0].worker.clone() }]);
        assert_eq!(offers[0].free_slots, 1);
        assert_eq!(speculate(&shards, &mut offers[1..], floor), [], "not by the one that lags");
    }

    /// Jobs as (priority, shards running, shards pending), some of which only some workers can run.
    fn snapshot() -> impl Strategy<Value = Vec<(i32, u32, Vec<bool>)>> {
        proptest::collection::vec((-1..2i32, 0..4u32, proptest::collection::vec(any::<bool>(), 0..8)), 0..6)
    }

    fn jobs_of(snapshot: &[(i32, u32, Vec<bool>)]) -> Vec<PendingJob> {
        let shard_for = |libtorch: &bool| {
            let backend = if *libtorch { "libtorch" } else { "candle" };
            shard(Requirements { backend: backend.into(), ..Default::default() })
        };
        snapshot
            .iter()
            .enumerate()
            .map(|(order, (priority, leased, shards))| PendingJob {
                job: order as i64,
                priority: *priority,
                leased: *leased,
                shards: shards.iter().map(shard_for).collect(),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn slots_are_used_once_and_never_idle_beside_work_or_given_to_the_less_urgent(
            snapshot in snapshot(), slots in proptest::collection::vec((0..4u32, any::<bool>()), 0..4)
        ) {
            let jobs = jobs_of(&snapshot);
            let mut offers: Vec<Offer> = slots
                .iter()
                .map(|(slots, both)| {
                    let mut offer = offer(*slots);
                    offer.backends.extend(both.then(|| "libtorch".to_owned()));
                    offer
                })
                .collect();
            let before: u32 = offers.iter().map(|offer| offer.free_slots).sum();
            let placed = place(&jobs, &mut offers);
            let after: u32 = offers.iter().map(|offer| offer.free_slots).sum();
            prop_assert_eq!(placed.len() as u32, before - after);
            let taken: HashSet<&ShardId> = placed.iter().map(|pair| &pair.shard).collect();
            prop_assert_eq!(taken.len(), placed.len());
            let left = |job: &PendingJob| job.shards.iter().filter(|shard| !taken.contains(&shard.id)).cloned().collect();
            for job in &jobs {
                let left: Vec<PendingShard> = left(job);
                for shard in &left {
                    prop_assert!(offers.iter().all(|offer| offer.free_slots == 0 || !offer.can_run(shard)));
                }
                // Whoever was passed over: nobody less urgent got a slot that could have run it.
                for pair in &placed {
                    let got = jobs.iter().find(|job| job.shards.iter().any(|shard| shard.id == pair.shard)).unwrap();
                    let offer = offers.iter().find(|offer| offer.worker == pair.worker).unwrap();
                    let passed_over = left.iter().any(|shard| offer.can_run(shard));
                    prop_assert!(got.priority >= job.priority || !passed_over);
                }
            }
        }

        #[test]
        fn equals_share_evenly_and_none_starves(
            leased in proptest::collection::vec(0..4u32, 1..6), slots in 0..30u32
        ) {
            let pending = 40;
            let jobs: Vec<PendingJob> =
                leased.iter().enumerate().map(|(order, leased)| job(order as i64, *leased, plain(pending))).collect();
            let placed = place(&jobs, &mut [offer(slots)]);
            let running: Vec<u32> = jobs
                .iter()
                .map(|job| {
                    let got = placed.iter().filter(|pair| job.shards.iter().any(|shard| shard.id == pair.shard));
                    job.leased + got.count() as u32
                })
                .collect();
            let most = *running.iter().max().unwrap();
            for (job, running) in jobs.iter().zip(&running) {
                prop_assert!(*running + 1 >= most || *running == job.leased + slots || most == *leased.iter().max().unwrap());
                // With a slot for each job that has less than the others, each gets one.
                if job.leased == 0 && slots as usize >= jobs.len() {
                    prop_assert!(*running > 0);
                }
            }
        }
    }
}
