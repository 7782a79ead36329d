//! What waits for a model, and what of it runs next: a pure core without threads or clocks of its own.
//!
//! Two lanes. Interactive units go first, oldest first, in batches small enough to be answered soon. Bulk units go
//! when nothing interactive waits, or when they have waited too long; the oldest with those nearest to it in length.
//! A unit that is asked for again while it waits or runs is computed once, for all who asked.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::batching::Budget;

/// Something to compute.
pub trait Unit: Eq + Hash {
    /// What it costs.
    fn tokens(&self) -> usize;
    /// Whether both may run in one batch.
    fn joins(&self, other: &Self) -> bool;
}

/// Somebody who waits for a unit.
pub trait Waiter {
    /// It no longer does.
    fn gone(&self) -> bool;
}

/// Which work goes before which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Somebody waits for the answer.
    Interactive,
    /// Much work; its end matters.
    Bulk,
}

/// How large a batch may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of interactive units.
    pub interactive: Budget,
    /// Of bulk units.
    pub bulk: Budget,
    /// After waiting so long, a bulk batch goes before interactive ones.
    pub bulk_patience: Duration,
}

/// See the module.
pub struct Queue<U, W> {
    entries: HashMap<Arc<U>, Entry<W>>,
    interactive: BTreeMap<u64, Arc<U>>,
    bulk: BTreeMap<u64, Arc<U>>,
    /// The bulk lane as (tokens, sequence number).
    by_length: BTreeSet<(usize, u64)>,
    next: u64,
    bulk_served: Instant,
}

struct Entry<W> {
    waiters: Vec<W>,
    /// Its place in a lane; `None` while it runs.
    waiting: Option<(Lane, u64)>,
    lane: Lane,
}

impl<U: Unit, W: Waiter> Queue<U, W> {
    /// Nothing waits.
    pub fn new(now: Instant) -> Self {
        Self {
            entries: HashMap::new(),
            interactive: BTreeMap::new(),
            bulk: BTreeMap::new(),
            by_length: BTreeSet::new(),
            next: 0,
            bulk_served: now,
        }
    }

    /// Adds somebody who waits for a unit.
    pub fn push(&mut self, unit: U, waiter: W, lane: Lane, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&unit) {
            entry.waiters.push(waiter);
            // Somebody waits for it now: it leaves the bulk lane.
            if lane == Lane::Interactive
                && let Some((Lane::Bulk, place)) = entry.waiting
            {
                let unit = self.bulk.remove(&place).expect("a waiting unit has its place");
                self.by_length.remove(&(unit.tokens(), place));
                (entry.lane, entry.waiting) = (Lane::Interactive, Some((Lane::Interactive, place)));
                self.interactive.insert(place, unit);
            }
            return;
        }
        let unit = Arc::new(unit);
        self.entries.insert(Arc::clone(&unit), Entry { waiters: vec![waiter], waiting: None, lane });
        if lane == Lane::Bulk && self.bulk.is_empty() {
            self.bulk_served = now;
        }
        self.enqueue(unit);
    }

    fn enqueue(&mut self, unit: Arc<U>) {
        let place = self.next;
        self.next += 1;
        let entry = self.entries.get_mut(&unit).expect("what is enqueued has an entry");
        entry.waiting = Some((entry.lane, place));
        match entry.lane {
            Lane::Interactive => drop(self.interactive.insert(place, unit)),
            Lane::Bulk => {
                self.by_length.insert((unit.tokens(), place));
                self.bulk.insert(place, unit);
            }
        }
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.interactive.is_empty() && self.bulk.is_empty()
    }

    /// The next batch, none of whose units is waited for in vain; empty when nothing waits.
    pub fn next(&mut self, limits: &Limits, now: Instant) -> Vec<Arc<U>> {
        let overdue = !self.bulk.is_empty() && now.duration_since(self.bulk_served) >= limits.bulk_patience;
        let first = if overdue { [Lane::Bulk, Lane::Interactive] } else { [Lane::Interactive, Lane::Bulk] };
        first
            .into_iter()
            .map(|lane| match lane {
                Lane::Interactive => self.oldest(limits.interactive),
                Lane::Bulk => {
                    let batch = self.alike(limits.bulk);
                    if !batch.is_empty() {
                        self.bulk_served = now;
                    }
                    batch
                }
            })
            .find(|batch| !batch.is_empty())
            .unwrap_or_default()
    }

    /// Interactive units in the order in which they came.
    fn oldest(&mut self, budget: Budget) -> Vec<Arc<U>> {
        let mut batch = Batch::new(budget);
        let mut places = Vec::new();
        for (&place, unit) in &self.interactive {
            let wanted = !self.entries[unit].waiters.iter().all(Waiter::gone);
            match batch.offer(unit, wanted) {
                Offer::Skipped => {}
                Offer::Full => break,
                Offer::Taken | Offer::Unwanted => places.push(place),
            }
        }
        for place in places {
            let unit = self.interactive.remove(&place).expect("it was found there");
            self.take(unit);
        }
        batch.units
    }

    /// The oldest bulk unit, and those nearest to it in length.
    fn alike(&mut self, budget: Budget) -> Vec<Arc<U>> {
        let mut batch = Batch::new(budget);
        while let Some((_, unit)) = self.bulk.first_key_value() {
            let unit = Arc::clone(unit);
            let wanted = !self.entries[&unit].waiters.iter().all(Waiter::gone);
            let place = *self.bulk.first_entry().expect("it was found there").key();
            self.leave_bulk(place);
            if matches!(batch.offer(&unit, wanted), Offer::Taken) {
                let seed = (unit.tokens(), place);
                let mut shorter = self.by_length.range(..seed).rev().peekable();
                let mut longer = self.by_length.range(seed..).peekable();
                let mut places = Vec::new();
                loop {
                    let nearer = match (shorter.peek(), longer.peek()) {
                        (Some(below), Some(above)) if above.0 - seed.0 < seed.0 - below.0 => longer.next(),
                        (Some(_), _) => shorter.next(),
                        (None, _) => longer.next(),
                    };
                    let Some(&(_, place)) = nearer else { break };
                    let unit = &self.bulk[&place];
                    let wanted = !self.entries[unit].waiters.iter().all(Waiter::gone);
                    match batch.offer(unit, wanted) {
                        Offer::Skipped => {}
                        Offer::Full => break,
                        Offer::Taken | Offer::Unwanted => places.push(place),
                    }
                }
                places.into_iter().for_each(|place| self.leave_bulk(place));
                break;
            }
        }
        batch.units
    }

    fn leave_bulk(&mut self, place: u64) {
        let unit = self.bulk.remove(&place).expect("it was found there");
        self.by_length.remove(&(unit.tokens(), place));
        self.take(unit);
    }

    /// A unit leaves its lane: it runs, or is forgotten when nobody wants it.
    fn take(&mut self, unit: Arc<U>) {
        let entry = self.entries.get_mut(&unit).expect("what waited has an entry");
        entry.waiting = None;
        if entry.waiters.iter().all(Waiter::gone) {
            self.entries.remove(&unit);
        }
    }

    /// Whether nobody waits for any of these any more.
    pub fn abandoned(&self, units: &[Arc<U>]) -> bool {
        units.iter().all(|unit| self.entries[unit].waiters.iter().all(Waiter::gone))
    }

    /// A unit that ran is done: those who wait for it.
    pub fn finish(&mut self, unit: &Arc<U>) -> Vec<W> {
        self.entries.remove(unit).map(|entry| entry.waiters).unwrap_or_default()
    }

    /// A unit that ran was given up because nobody waited: it waits again if somebody does now.
    pub fn give_back(&mut self, unit: &Arc<U>) {
        let entry = self.entries.get_mut(unit).expect("what ran has an entry");
        if entry.waiters.iter().all(Waiter::gone) {
            self.entries.remove(unit);
        } else {
            self.enqueue(Arc::clone(unit));
        }
    }
}

/// A batch being put together.
struct Batch<U> {
    units: Vec<Arc<U>>,
    tokens: usize,
    budget: Budget,
}

enum Offer {
    Taken,
    /// Nobody waits for it: it leaves the queue without running.
    Unwanted,
    /// It does not go with the others.
    Skipped,
    Full,
}

impl<U: Unit> Batch<U> {
    fn new(budget: Budget) -> Self {
        Self { units: Vec::new(), tokens: 0, budget }
    }

    fn offer(&mut self, unit: &Arc<U>, wanted: bool) -> Offer {
        if !wanted {
            return Offer::Unwanted;
        }
        if let Some(first) = self.units.first() {
            if self.tokens + unit.tokens() > self.budget.tokens || self.units.len() >= self.budget.rows {
                return Offer::Full;
            }
            if !first.joins(unit) {
                return Offer::Skipped;
            }
        }
        self.tokens += unit.tokens();
        self.units.push(Arc::clone(unit));
        Offer::Taken
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct Text(usize, u8);

    impl Unit for Text {
        fn tokens(&self) -> usize {
            self.0
        }
        fn joins(&self, other: &Self) -> bool {
            self.1 == other.1
        }
    }

    #[derive(Clone, Default)]
    struct Caller(Rc<Cell<bool>>);

    impl Waiter for Caller {
        fn gone(&self) -> bool {
            self.0.get()
        }
    }

    fn limits(interactive: usize, bulk: usize) -> Limits {
        let budget = |tokens| Budget { tokens, rows: 4 };
        Limits {
            interactive: budget(interactive),
            bulk: budget(bulk),
            bulk_patience: Duration::from_millis(100),
        }
    }

    fn taken(queue: &mut Queue<Text, Caller>, limits: &Limits, now: Instant) -> Vec<usize> {
        queue.next(limits, now).iter().map(|unit| unit.0).collect()
    }

    #[test]
    fn interactive_work_goes_first_and_bulk_work_is_not_forgotten() {
        let start = Instant::now();
        let mut queue = Queue::new(start);
        for length in [30, 10, 31, 50, 29] {
            queue.push(Text(length, 0), Caller::default(), Lane::Bulk, start);
        }
        for length in [7, 5, 6] {
            queue.push(Text(length, 0), Caller::default(), Lane::Interactive, start);
        }
        let limits = limits(13, 100);
        assert_eq!(taken(&mut queue, &limits, start), [7, 5], "oldest first, within the budget");
        // A bulk batch holds the oldest, and what is nearest to it in length.
        let later = start + Duration::from_millis(100);
        assert_eq!(
            taken(&mut queue, &limits, later),
            [30, 29, 31, 10],
            "overdue, and four rows are the most"
        );
        assert_eq!(taken(&mut queue, &limits, later), [6], "one bulk batch, then whoever waits");
        assert_eq!(taken(&mut queue, &limits, later), [50]);
        assert!(queue.is_empty() && queue.next(&limits, later).is_empty());
    }

    #[test]
    fn equal_units_run_once_and_an_eager_caller_pulls_them_forward() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        let limits = limits(100, 1000);
        queue.push(Text(20, 0), Caller::default(), Lane::Bulk, now);
        queue.push(Text(90, 0), Caller::default(), Lane::Interactive, now);
        queue.push(Text(20, 0), Caller::default(), Lane::Interactive, now);
        assert_eq!(taken(&mut queue, &limits, now), [20], "it came first, and 90 more are too many");
        queue.push(Text(20, 0), Caller::default(), Lane::Bulk, now);
        let batch = queue.next(&limits, now);
        assert_eq!(batch[0].0, 90, "20 runs already");
        let running = Arc::new(Text(20, 0));
        assert_eq!(queue.finish(&running).len(), 3);
        assert_eq!(queue.finish(&batch[0]).len(), 1);
        assert!(queue.entries.is_empty());
    }

    #[test]
    fn what_nobody_wants_does_not_run_and_what_is_wanted_again_does() {
        let now = Instant::now();
        let mut queue = Queue::new(now);
        let limits = limits(100, 100);
        let callers: Vec<Caller> = (0..4).map(|_| Caller::default()).collect();
        for (length, caller) in (10..).zip(&callers) {
            let lane = if length % 2 == 0 { Lane::Interactive } else { Lane::Bulk };
            queue.push(Text(length, 0), caller.clone(), lane, now);
        }
        callers[0].0.set(true);
        callers[1].0.set(true);
        let batch = queue.next(&limits, now);
        assert_eq!(batch.iter().map(|unit| unit.0).collect::<Vec<_>>(), [12]);
        assert!(!queue.abandoned(&batch));
        callers[2].0.set(true);
        assert!(queue.abandoned(&batch));
        queue.push(Text(12, 0), Caller::default(), Lane::Interactive, now);
        queue.give_back(&batch[0]);
        assert_eq!(taken(&mut queue, &limits, now), [12], "somebody came meanwhile");
        assert_eq!(taken(&mut queue, &limits, now), [13]);
        assert_eq!(queue.entries.len(), 2, "only what runs is known");
    }

    proptest! {
        #[test]
        fn every_unit_runs_once_in_batches_that_fit(
            units in prop::collection::vec((1usize..60, 0u8..3, any::<bool>()), 0..120),
            tokens in 1usize..200,
        ) {
            let now = Instant::now();
            let mut queue = Queue::new(now);
            let mut wanted = std::collections::HashSet::new();
            for &(length, group, bulk) in &units {
                let lane = if bulk { Lane::Bulk } else { Lane::Interactive };
                queue.push(Text(length, group), Caller::default(), lane, now);
                wanted.insert(Text(length, group));
            }
            let limits = limits(tokens, tokens);
            let mut waiters = 0;
            loop {
                let batch = queue.next(&limits, now);
                let Some(first) = batch.first() else { break };
                let total: usize = batch.iter().map(|unit| unit.0).sum();
                prop_assert!(batch.len() == 1 || (total <= tokens && batch.len() <= 4));
                prop_assert!(batch.iter().all(|unit| unit.joins(first)));
                for unit in &batch {
                    prop_assert!(wanted.remove(&**unit), "twice: {unit:?}");
                    waiters += queue.finish(unit).len();
                }
            }
            prop_assert!(wanted.is_empty() && queue.entries.is_empty());
            prop_assert_eq!(waiters, units.len());
        }
    }
}
