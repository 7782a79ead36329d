//! The line of units that wait for one model, and the thread that computes them while there are any.
//!
//! Callers hold the line; the thread ends when nothing waits. When both are gone the line is, and with it the model's
//! reference: a model is in use exactly as long as somebody waits for it.

use std::{
    collections::HashMap,
    panic,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cappy_plugin_abi::{Code, Control, Failure};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;

use super::{
    queue::{Lane, Limits, Queue, Unit, Waiter},
    status::{abandoned, busy},
};
use crate::{batching::Budget, pace::Pace};

/// A thread that has had nothing to do for so long ends.
const IDLE: Duration = Duration::from_millis(100);

/// Interactive batches are cut to what runs in this time: those in front are answered while the others still wait.
const INTERACTIVE_BATCH: Duration = Duration::from_millis(100);

/// Smaller interactive batches would cost more time than they save.
const INTERACTIVE_TOKENS: usize = 512;

/// Bulk work that has waited so long gets a batch although interactive work keeps coming.
const BULK_PATIENCE: Duration = Duration::from_millis(500);

/// Tokens that wait for a model in each lane.
const MAX_TOKENS: usize = 1 << 20;

/// Failed runs of parts of one batch, while the units that fail are told from those that do not.
const MAX_FAILED_PARTS: usize = 32;

/// What a model does with units.
pub trait Work: Send + Sync + 'static {
    /// Something to compute.
    type Unit: Unit + Send + Sync;
    /// What comes of it.
    type Answer: Clone + Send;
    /// Computes a batch, an answer a unit. Blocks.
    ///
    /// # Errors
    /// The backend's failure.
    fn run(&self, units: &[Arc<Self::Unit>], control: &dyn Control) -> Result<Vec<Self::Answer>, Failure>;
    /// Of the model.
    fn pace(&self) -> &Pace;
    /// The largest batch.
    fn budget(&self) -> Budget;
}

/// What every line of a worker keeps to.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Calls that wait for a model, or are computed, at the same time.
    pub calls: usize,
    /// How long an interactive call may wait behind bulk work, beyond a single row of it.
    pub interactive_wait: Duration,
}

/// A unit's answer, with what it took.
#[derive(Debug)]
pub struct Reply<A> {
    /// Which of the caller's units.
    pub index: usize,
    /// What came of it.
    pub result: Result<A, Failure>,
    /// Time until its batch began.
    pub queued: Duration,
    /// When its batch began, which names the batch.
    pub began: Instant,
    /// Time of its batch.
    pub computed: Duration,
}

struct Caller<A> {
    to: mpsc::UnboundedSender<Reply<A>>,
    index: usize,
    since: Instant,
}

impl<A> Waiter for Caller<A> {
    fn gone(&self) -> bool {
        self.to.is_closed()
    }
}

type Waiting<W> = Queue<<W as Work>::Unit, Caller<<W as Work>::Answer>>;

/// See the module.
pub struct Line<W: Work> {
    work: W,
    rules: Rules,
    state: Mutex<State<W>>,
    arrived: Condvar,
    calls: Arc<Semaphore>,
    interactive: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
}

struct State<W: Work> {
    queue: Waiting<W>,
    /// There is a thread.
    served: bool,
}

/// Units under way for one caller; dropped, they are given up.
pub struct Pending<A> {
    replies: mpsc::UnboundedReceiver<Reply<A>>,
    left: usize,
    _room: [OwnedSemaphorePermit; 2],
}

impl<A> Pending<A> {
    /// The next answer, in the order in which they come; `None` after the last.
    ///
    /// # Errors
    /// When the work was lost.
    pub async fn next(&mut self) -> Option<Result<Reply<A>, Status>> {
        self.left = self.left.checked_sub(1)?;
        Some(self.replies.recv().await.ok_or_else(abandoned))
    }
}

impl<W: Work> Line<W> {
    fn new(work: W, rules: Rules) -> Self {
        let state = State { queue: Queue::new(Instant::now()), served: false };
        Self {
            work,
            rules,
            state: Mutex::new(state),
            arrived: Condvar::new(),
            calls: Arc::new(Semaphore::new(rules.calls.max(1))),
            interactive: Arc::new(Semaphore::new(MAX_TOKENS)),
            bulk: Arc::new(Semaphore::new(MAX_TOKENS)),
        }
    }

    /// The model.
    pub fn work(&self) -> &W {
        &self.work
    }

    /// Room for a call: sheds it when too many wait. A call of a stream (`patient`) waits instead, which slows its
    /// sender down.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED.
    pub async fn admit(&self, patient: bool) -> Result<OwnedSemaphorePermit, Status> {
        let calls = Arc::clone(&self.calls);
        if patient {
            return calls.acquire_owned().await.map_err(|_| abandoned());
        }
        calls.try_acquire_owned().map_err(|_| self.full("calls"))
    }

    /// Puts units in line for a call that was admitted; `patient` as there.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when too many tokens wait.
    pub async fn submit(
        self: &Arc<Self>,
        call: OwnedSemaphorePermit,
        units: Vec<W::Unit>,
        lane: Lane,
        patient: bool,
    ) -> Result<Pending<W::Answer>, Status> {
        // One call larger than all the room there is goes when nothing else waits.
        let tokens = units.iter().map(Unit::tokens).sum::<usize>().clamp(1, MAX_TOKENS) as u32;
        let room = Arc::clone(match lane {
            Lane::Interactive => &self.interactive,
            Lane::Bulk => &self.bulk,
        });
        let room = if patient {
            room.acquire_many_owned(tokens).await.map_err(|_| abandoned())?
        } else {
            room.try_acquire_many_owned(tokens).map_err(|_| self.full("tokens"))?
        };
        let (to, replies) = mpsc::unbounded_channel();
        let now = Instant::now();
        if lane == Lane::Interactive {
            self.work.pace().called(self.rules.interactive_wait);
        }
        let left = units.len();
        let mut state = self.lock();
        for (index, unit) in units.into_iter().enumerate() {
            state.queue.push(unit, Caller { to: to.clone(), index, since: now }, lane, now);
        }
        if !state.served {
            let line = Arc::clone(self);
            thread::Builder::new()
                .name("cappy-line".to_owned())
                .spawn(move || line.serve())
                .map_err(|_| busy("no more threads", IDLE))?;
            state.served = true;
        }
        drop(state);
        self.arrived.notify_one();
        Ok(Pending { replies, left, _room: [call, room] })
    }

    /// Shed, with the time after which what waits now is done.
    fn full(&self, what: &str) -> Status {
        let waiting = 2 * MAX_TOKENS - self.interactive.available_permits() - self.bulk.available_permits();
        let time = self.work.pace().time_of(waiting).unwrap_or(Duration::from_secs(1));
        busy(&format!("too many {what} wait for the model"), time)
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        while let Some(batch) = self.take() {
            self.run(&batch);
        }
    }

    /// The next batch; `None` when nothing came for a while, and the thread has signed off.
    fn take(&self) -> Option<Vec<Arc<W::Unit>>> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let batch = state.queue.next(&self.limits(), now);
            if !batch.is_empty() {
                return Some(batch);
            }
            let (back, waited) =
                self.arrived.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            if waited.timed_out() && state.queue.is_empty() {
                state.served = false;
                return None;
            }
        }
    }

    fn limits(&self) -> Limits {
        let (pace, budget) = (self.work.pace(), self.work.budget());
        let tokens = pace.tokens_in(INTERACTIVE_BATCH).unwrap_or(INTERACTIVE_TOKENS).max(INTERACTIVE_TOKENS);
        Limits {
            interactive: Budget { tokens: tokens.min(budget.tokens), rows: budget.rows },
            bulk: pace.bulk(budget),
            bulk_patience: BULK_PATIENCE,
        }
    }

    fn run(&self, batch: &[Arc<W::Unit>]) {
        let mut failed = 0;
        // Parts that are still to run, the next one last.
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            let began = Instant::now();
            let watch = Watch { line: self, units: part, ended: AtomicBool::new(false) };
            // A defect fails the units, not the model's thread.
            let run = panic::AssertUnwindSafe(|| self.work.run(part, &watch));
            let result = panic::catch_unwind(run).unwrap_or_else(|_| {
                tracing::error!("a call panicked");
                Err(Failure::internal("the computation met a defect; the worker's log tells more"))
            });
            let computed = began.elapsed();
            tracing::debug!(
                units = part.len(),
                tokens = part.iter().map(|unit| unit.tokens()).sum::<usize>(),
                seconds = computed.as_secs_f64(),
                failed = result.is_err(),
                "batch"
            );
            match result {
                Ok(answers) if answers.len() == part.len() => {
                    let results = answers.into_iter().map(Ok);
                    self.deliver(part, results, began, computed);
                }
                Ok(answers) => {
                    let message = format!("{} answers came for {} units", answers.len(), part.len());
                    let results = part.iter().map(|_| Err(Failure::internal(message.clone())));
                    self.deliver(part, results, began, computed);
                }
                Err(failure) if failure.code == Code::Cancelled && watch.ended.load(Ordering::Relaxed) => {
                    let mut state = self.lock();
                    part.iter().for_each(|unit| state.queue.give_back(unit));
                }
                // One caller's bad unit must not fail the others': the halves tell which it is.
                Err(_) if part.len() > 1 && failed < MAX_FAILED_PARTS => {
                    failed += 1;
                    let (head, tail) = part.split_at(part.len().div_ceil(2));
                    parts.extend([tail, head]);
                }
                Err(failure) => {
                    failed += 1;
                    let results = part.iter().map(|_| Err(failure.clone()));
                    self.deliver(part, results, began, computed);
                }
            }
        }
    }

    fn deliver(
        &self,
        part: &[Arc<W::Unit>],
        results: impl Iterator<Item = Result<W::Answer, Failure>>,
        began: Instant,
        computed: Duration,
    ) {
        let callers: Vec<Vec<Caller<W::Answer>>> = {
            let mut state = self.lock();
            part.iter().map(|unit| state.queue.finish(unit)).collect()
        };
        for (callers, result) in callers.into_iter().zip(results) {
            for caller in callers {
                let queued = began.saturating_duration_since(caller.since);
                let reply = Reply { index: caller.index, result: result.clone(), queued, began, computed };
                // A caller that is gone does not mind.
                let _ = caller.to.send(reply);
            }
        }
    }
}

/// Goes on while somebody waits for the answer.
struct Watch<'a, W: Work> {
    line: &'a Line<W>,
    units: &'a [Arc<W::Unit>],
    /// The computation was told to end.
    ended: AtomicBool,
}

impl<W: Work> Control for Watch<'_, W> {
    fn cancelled(&self) -> bool {
        let abandoned = self.line.lock().queue.abandoned(self.units);
        self.ended.fetch_or(abandoned, Ordering::Relaxed);
        abandoned
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

/// The lines of one kind of work, by the model's place in memory.
pub struct Lines<W: Work> {
    rules: Rules,
    table: Mutex<HashMap<usize, Weak<Line<W>>>>,
}

impl<W: Work> Lines<W> {
    /// None yet.
    pub fn new(rules: Rules) -> Self {
        Self { rules, table: Mutex::default() }
    }

    /// The line of the model at `place`; made from `work` where there is none. A line holds its model, so no other can
    /// come to be at its place.
    pub fn of(&self, place: usize, work: impl FnOnce() -> W) -> Arc<Line<W>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = table.get(&place).and_then(Weak::upgrade) {
            return line;
        }
        table.retain(|_, line| line.strong_count() > 0);
        let line = Arc::new(Line::new(work(), self.rules));
        table.insert(place, Arc::downgrade(&line));
        line
    }
}
