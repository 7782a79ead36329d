//! Which shard goes to which worker.
//!
//! The problem: free slots are few, pending shards many. A job of higher priority goes first; jobs of one priority share
//! the slots evenly, an older job first where they are even; within a job, shards go in stage order. Among the workers
//! that can run a shard, the one that has its models in memory is best, then the one that has most of its inputs, then
//! the one with most free slots. A worker on which the shard just failed is taken only if there is no other.
//!
//! A shard for several ranks gets all of its workers at once, or none. While some are missing, the free slots of those
//! that it will have are kept for it (`gang.rs`), so that it does not starve beside small shards.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use cappy_proto::{ShardId, WorkerId};

use super::gang::{self, Gathered};
use crate::store::{GangKind, PendingJob, PendingShard, Straggler};

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
    /// What its backends can do as a rank of a group.
    pub(crate) groups: BTreeSet<(String, GangKind)>,
    /// It computes with others already, or is promised to; it can do so once at a time, since what ranks exchange must
    /// come in the same order on all of them.
    pub(crate) in_gang: bool,
    /// Bytes that models may take on it; 0: unknown.
    pub(crate) memory_bytes: u64,
    /// Fingerprints of models in memory.
    pub(crate) resident: HashSet<String>,
    /// Artifacts that it has read or made.
    pub(crate) artifacts: HashSet<String>,
}

impl Offer {
    fn can_run(&self, shard: &PendingShard) -> bool {
        let backend = &shard.requirements.backend;
        (backend.is_empty() || self.backends.contains(backend)) && self.holds(shard)
    }

    /// Whether the shard's models fit, as far as either is known.
    pub(super) fn holds(&self, shard: &PendingShard) -> bool {
        self.memory_bytes == 0 || shard.requirements.memory_bytes <= self.memory_bytes
    }
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) shard: ShardId,
    /// One, or as many as the shard has ranks.
    pub(crate) workers: Vec<WorkerId>,
}

/// Pairs pending shards with free slots, and takes the slots, also those that are kept. `jobs` are oldest first; shards
/// that run on the coordinator are not looked at. `offers` are of all workers: those without a free slot count where a
/// gang must wait.
pub(crate) fn place(jobs: &[PendingJob], offers: &mut [Offer]) -> Vec<Candidate> {
    struct Queue<'a> {
        priority: Reverse<i32>,
        /// Slots that the job has.
        slots: u32,
        order: i64,
        /// Popped from the end.
        shards: Vec<&'a PendingShard>,
    }
    impl Queue<'_> {
        /// What goes first is least. Where jobs are even, one that needs several slots at once goes first: otherwise the
        /// others would take each slot that becomes free for it.
        fn rank(&self) -> (Reverse<i32>, u32, bool, i64) {
            let gang = self.shards.last().is_some_and(|shard| shard.requirements.gang.is_some());
            (self.priority, self.slots, !gang, self.order)
        }
    }
    let mut queues: Vec<Queue<'_>> = jobs
        .iter()
        .map(|job| Queue {
            priority: Reverse(job.priority),
            slots: job.leased,
            order: job.job,
            shards: job.shards.iter().filter(|shard| !shard.requirements.local).rev().collect(),
        })
        .collect();
    let mut placed = Vec::new();
    while offers.iter().any(|offer| offer.free_slots > 0) {
        let next =
            queues.iter_mut().filter(|queue| !queue.shards.is_empty()).min_by_key(|queue| queue.rank());
        let Some(queue) = next else { break };
        let shard = queue.shards.pop().expect("the queue is not empty");
        let chosen = match shard.requirements.gang {
            None => best(offers, shard, |_| true).into_iter().collect(),
            Some(wanted) => match gang::gather(shard, wanted, offers) {
                Gathered::Now(chosen) => chosen,
                Gathered::Later(kept) => {
                    for place in kept {
                        offers[place].free_slots = offers[place].free_slots.saturating_sub(1);
                        offers[place].in_gang = true;
                    }
                    continue;
                }
                Gathered::Nobody => continue,
            },
        };
        if chosen.is_empty() {
            continue;
        }
        let mut workers = Vec::with_capacity(chosen.len());
        for place in chosen {
            let offer = &mut offers[place];
            offer.free_slots -= 1;
            offer.in_gang |= shard.requirements.gang.is_some();
            queue.slots += 1;
            workers.push(offer.worker.clone());
        }
        placed.push(Candidate { shard: shard.id.clone(), workers });
    }
    placed
}

/// The place of the best free worker for a shard of one rank, among those that `may` have it.
fn best(offers: &[Offer], shard: &PendingShard, may: impl Fn(&Offer) -> bool) -> Option<usize> {
    let able = offers.iter().enumerate().filter(|(_, offer)| offer.free_slots > 0 && offer.can_run(shard));
    able.filter(|(_, offer)| may(offer))
        .max_by(|(_, a), (_, b)| preference(a, shard).cmp(&preference(b, shard)))
        .map(|(place, _)| place)
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
        let other = |offer: &Offer| shard.last_worker.as_ref() != Some(&offer.worker);
        if let Some(place) = best(offers, shard, other) {
            offers[place].free_slots -= 1;
            let workers = vec![offers[place].worker.clone()];
            pairs.push(Candidate { shard: shard.id.clone(), workers });
        }
    }
    pairs
}

/// Greater is better; the id makes the choice the same each time.
pub(super) fn preference<'a>(
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
            groups: BTreeSet::new(),
            in_gang: false,
            memory_bytes: 0,
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
        let workers: Vec<WorkerId> =
            place(&jobs, &mut offers).into_iter().flat_map(|pair| pair.workers).collect();
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
        assert_eq!(placed[0].workers, [second.worker]);
        assert_eq!(place(&jobs, &mut [first.clone()])[0].workers, [first.worker]);
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
        assert_eq!(
            pairs,
            [Candidate { shard: late.shard.id.clone(), workers: vec![offers[0].worker.clone()] }]
        );
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
                    let offer = offers.iter().find(|offer| pair.workers.contains(&offer.worker)).unwrap();
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
