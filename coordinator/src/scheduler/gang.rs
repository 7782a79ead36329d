//! Which workers compute a shard together: all of them at once, or none yet.
//!
//! Nothing is held while waiting but slots that are free, and those only from one round to the next, so two gangs cannot
//! wait for each other. A worker is in one gang at a time; the slots of a running gang become free together.

use std::collections::BTreeSet;

use super::placement::{Offer, preference};
use crate::store::{Gang, PendingShard};

/// Places in a list of offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gathered {
    /// These have a slot, the best first.
    Now(Vec<usize>),
    /// These will have; what is free of them is to be kept.
    Later(Vec<usize>),
    /// There are too few, or they are in other gangs, whose slots will be free together.
    Nobody,
}

/// The workers for a shard of several ranks: all with one backend that can share the work so.
pub(super) fn gather(shard: &PendingShard, gang: Gang, offers: &[Offer]) -> Gathered {
    let wanted = &shard.requirements.backend;
    let backends: BTreeSet<&str> = offers
        .iter()
        .flat_map(|offer| &offer.groups)
        .filter(|(backend, kind)| *kind == gang.kind && (wanted.is_empty() || wanted == backend))
        .map(|(backend, _)| backend.as_str())
        .collect();
    let ranks = gang.ranks as usize;
    let mut later = Gathered::Nobody;
    for backend in backends {
        let able = |offer: &Offer| {
            !offer.in_gang && offer.holds(shard) && offer.groups.contains(&(backend.to_owned(), gang.kind))
        };
        let mut places: Vec<usize> = (0..offers.len()).filter(|place| able(&offers[*place])).collect();
        places.sort_by(|a, b| {
            let rank = |place: usize| (offers[place].free_slots > 0, preference(&offers[place], shard));
            rank(*b).cmp(&rank(*a))
        });
        places.truncate(ranks);
        if places.len() < ranks {
            continue;
        }
        if places.iter().all(|place| offers[*place].free_slots > 0) {
            return Gathered::Now(places);
        }
        if later == Gathered::Nobody {
            later = Gathered::Later(places);
        }
    }
    later
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use cappy_proto::{ShardId, WorkerId};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        scheduler::place,
        store::{GangKind, PendingJob, Requirements},
    };

    fn offer(free_slots: u32, able: bool) -> Offer {
        Offer {
            worker: WorkerId::generate(),
            free_slots,
            backends: ["candle", "libtorch"].map(str::to_owned).into(),
            groups: able.then(|| ("libtorch".to_owned(), GangKind::Tensor)).into_iter().collect(),
            in_gang: false,
            memory_bytes: 0,
            resident: HashSet::new(),
            artifacts: HashSet::new(),
        }
    }

    fn shard(ranks: u32) -> PendingShard {
        let gang = (ranks > 1).then_some(Gang { kind: GangKind::Tensor, ranks });
        let requirements = Requirements { gang, ..Default::default() };
        PendingShard { id: ShardId::generate(), requirements, last_worker: None }
    }

    fn job(order: i64, leased: u32, shards: Vec<PendingShard>) -> PendingJob {
        PendingJob { job: order, priority: 0, leased, shards }
    }

    #[test]
    fn a_gang_gets_all_of_its_workers_or_none_and_keeps_what_is_free_for_it() {
        let small = shard(1);
        let jobs = [job(1, 0, vec![small.clone()]), job(2, 0, vec![shard(2)])];
        let mut offers = [offer(1, true), offer(0, true)];
        assert_eq!(place(&jobs, &mut offers), [], "the one free slot is kept, though the other job is older");
        let mut offers = [offer(1, true), offer(0, true), offer(1, false)];
        let placed = place(&jobs, &mut offers);
        assert_eq!((placed.len(), &placed[0].shard), (1, &small.id), "where the gang cannot run, others do");
        assert_eq!(placed[0].workers, [offers[2].worker.clone()]);

        let placed = place(&jobs, &mut [offer(1, true), offer(2, true)]);
        assert_eq!(placed.iter().map(|pair| pair.workers.len()).collect::<Vec<_>>(), [2, 1]);
        // Nobody can ever be the second rank: nothing is kept.
        let placed = place(&jobs, &mut [offer(1, true), offer(1, false)]);
        assert_eq!((placed.len(), &placed[0].shard), (1, &small.id));
    }

    #[test]
    fn a_worker_is_in_one_gang_at_a_time_and_the_memory_must_do() {
        let jobs = [job(1, 0, vec![shard(2), shard(2), shard(1)])];
        let mut offers = [offer(3, true), offer(3, true)];
        let placed = place(&jobs, &mut offers);
        assert_eq!(placed.iter().map(|pair| pair.workers.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(
            offers.iter().map(|offer| offer.free_slots).sum::<u32>(),
            3,
            "nothing is kept beside a gang"
        );

        let mut large = shard(2);
        large.requirements.memory_bytes = 8;
        let jobs = [job(1, 0, vec![large])];
        let with = |memory_bytes| Offer { memory_bytes, ..offer(1, true) };
        assert_eq!(place(&jobs, &mut [with(9), with(7)]), []);
        assert_eq!(place(&jobs, &mut [with(9), with(7), with(0)])[0].workers.len(), 2, "0 is unknown");
    }

    #[test]
    fn two_gangs_do_not_take_slots_from_each_other() {
        let (first, second) = (shard(2), shard(2));
        let jobs = [job(1, 0, vec![first.clone()]), job(2, 0, vec![second.clone()])];
        let mut offers = [offer(1, true), offer(1, true), offer(1, true)];
        let placed = place(&jobs, &mut offers);
        assert_eq!(placed.iter().map(|pair| &pair.shard).collect::<Vec<_>>(), [&first.id]);
        assert_eq!(offers.iter().map(|offer| offer.free_slots).sum::<u32>(), 1);
    }

    /// Shards come and go at random; every round places what it can.
    fn rounds() -> impl Strategy<Value = (Vec<u32>, Vec<bool>)> {
        (proptest::collection::vec(1..3u32, 2..5), proptest::collection::vec(any::<bool>(), 200))
    }

    proptest! {
        /// Beside a job of endless small shards a gang starts after at most as many rounds as it takes for the shards that
        /// run to end.
        #[test]
        fn a_gang_does_not_starve_beside_small_shards((slots, ends) in rounds(), older in any::<bool>()) {
            let gang = shard(2);
            let workers: Vec<Offer> = slots.iter().map(|slots| offer(*slots, true)).collect();
            let mut running: Vec<u32> = slots.clone();
            let mut ends = ends.into_iter();
            let mut rounds = 0;
            loop {
                let small: Vec<PendingShard> = (0..8).map(|_| shard(1)).collect();
                let orders = if older { (1, 2) } else { (2, 1) };
                let mut jobs = [
                    job(orders.0, running.iter().sum(), small),
                    job(orders.1, 0, vec![gang.clone()]),
                ];
                jobs.sort_by_key(|job| job.job);
                let mut offers: Vec<Offer> = workers
                    .iter()
                    .zip(slots.iter().zip(&running))
                    .map(|(worker, (slots, running))| Offer { free_slots: slots - running, ..worker.clone() })
                    .collect();
                let placed = place(&jobs, &mut offers);
                if let Some(found) = placed.iter().find(|pair| pair.shard == gang.id) {
                    prop_assert_eq!(found.workers.len(), 2);
                    break;
                }
                for pair in &placed {
                    prop_assert_eq!(pair.workers.len(), 1);
                    let at = workers.iter().position(|worker| worker.worker == pair.workers[0]).unwrap();
                    running[at] += 1;
                }
                // At least one shard ends a round, else any of them.
                let mut ended = false;
                for running in &mut running {
                    if *running > 0 && ends.next().unwrap_or(true) {
                        *running -= 1;
                        ended = true;
                    }
                }
                if !ended && let Some(running) = running.iter_mut().find(|running| **running > 0) {
                    *running -= 1;
                }
                rounds += 1;
                prop_assert!(rounds <= 64, "the gang starves");
            }
        }
    }
}
