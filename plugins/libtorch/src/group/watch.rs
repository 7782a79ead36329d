//! What ranks tell each other beside tensors: who is there, who left and why, whether something is wrong.

use std::fmt::Display;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cappy_plugin_abi::Failure;

use super::ffi::{Connections, Store};
use crate::shim::Said;

/// How often a rank looks for an alarm.
const PERIOD: Duration = Duration::from_millis(250);
/// How long the others have to answer an alarm: several periods, and the store's answers.
const ROLL_CALL: Duration = Duration::from_secs(2);
/// How long rank 0 keeps the store for those who still ask what happened.
const LINGER: Duration = Duration::from_secs(3);
/// Between two looks at a key that is waited for.
const POLL: Duration = Duration::from_millis(2);

/// What is said when nothing more is known.
const NCCL_FAILED: &str = "NCCL says that a rank is gone, or the network between them";

/// The store, and this rank's place in it.
pub struct Meeting {
    store: Store,
    rank: usize,
    world: usize,
    timeout: Duration,
}

impl Meeting {
    /// Of a rank whose store is open; it waits for others as long as `timeout`.
    pub fn new(store: Store, rank: usize, world: usize, timeout: Duration) -> Self {
        Self { store, rank, world, timeout }
    }

    /// What carries the keys.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Compares `value` with that of every other rank.
    ///
    /// # Errors
    /// `InvalidArgument` naming `what` and two ranks that differ; `PeerLost` naming those who did not tell.
    pub fn agree(&self, what: &str, value: &str) -> Result<(), Failure> {
        self.tell(what, value, |rank, theirs| {
            if theirs == value {
                return Ok(());
            }
            Err(Failure::invalid_argument(format!(
                "the ranks of a group disagree about {what}: rank {} has {value}, rank {rank} has {theirs}",
                self.rank
            )))
        })
    }

    /// Whether `condition` holds on every rank.
    ///
    /// # Errors
    /// `PeerLost` naming those who did not tell.
    pub fn all(&self, what: &str, condition: bool) -> Result<bool, Failure> {
        let mut all = condition;
        self.tell(what, &condition.to_string(), |_, theirs| {
            all &= theirs == "true";
            Ok(())
        })?;
        Ok(all)
    }

    /// Tells the others `value`, and hears theirs, of each rank as it comes.
    fn tell(
        &self,
        what: &str,
        value: &str,
        mut hear: impl FnMut(usize, &str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let key = |rank: usize| format!("agree/{what}/{rank}");
        self.store.set(&key(self.rank), value).map_err(|_| self.zero_gone())?;
        let deadline = Instant::now() + self.timeout;
        let mut missing: Vec<usize> = (0..self.world).filter(|&rank| rank != self.rank).collect();
        loop {
            let mut waiting = Vec::new();
            for rank in missing {
                match self.store.get(&key(rank)).map_err(|_| self.zero_gone())? {
                    None => waiting.push(rank),
                    Some(theirs) => hear(rank, &theirs)?,
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Failure::peer_lost(format!(
                    "{} did not come within {} s",
                    self.named(&waiting),
                    self.timeout.as_secs()
                )));
            }
            missing = waiting;
            thread::sleep(POLL);
        }
    }

    /// Raises the alarm, and says who does not answer it or has left, as far as that explains what was `said`.
    pub fn roll_call(&self, said: &str) -> String {
        self.ask(said).unwrap_or_else(|_| self.zero_gone().message)
    }

    fn ask(&self, said: &str) -> Said<String> {
        self.answer()?;
        self.store.set("alarm", &format!("rank {}: {said}", self.rank))?;
        let deadline = Instant::now() + ROLL_CALL.min(self.timeout);
        let mut silent: Vec<usize> = (0..self.world).filter(|&rank| rank != self.rank).collect();
        loop {
            // Whoever was first has seen everybody who was there then; some may have gone since.
            if let Some(verdict) = self.store.get("verdict")? {
                return Ok(verdict);
            }
            let mut waiting = Vec::new();
            for rank in silent {
                if let Some(why) = self.store.get(&format!("left/{rank}"))? {
                    return self.verdict(format!("rank {rank} of {} left its group: {why}", self.world));
                }
                if self.store.get(&format!("alive/{rank}"))?.is_none() {
                    waiting.push(rank);
                }
            }
            silent = waiting;
            if silent.is_empty() {
                return self.verdict(format!("an exchange among {} ranks failed: {said}", self.world));
            }
            if Instant::now() >= deadline {
                let verb = if silent.len() == 1 { "is" } else { "are" };
                return self.verdict(format!("{} {verb} gone: {said}", self.named(&silent)));
            }
            thread::sleep(POLL);
        }
    }

    fn verdict(&self, text: String) -> Said<String> {
        self.store.set("verdict", &text)?;
        Ok(text)
    }

    /// Says that this rank is there.
    fn answer(&self) -> Said<()> {
        self.store.set(&format!("alive/{}", self.rank), "")
    }

    /// Tells the others that this rank has left; they need not wait for it.
    pub fn leave(&self, why: &str) {
        // A store that cannot be reached is rank 0's end, which the others see for themselves.
        let _ = self.answer().and_then(|()| self.store.set(&format!("left/{}", self.rank), why));
        let _ = self.store.set("alarm", &format!("rank {} left: {why}", self.rank));
    }

    /// Says goodbye. Rank 0, whose store the others ask, waits a little for theirs.
    pub fn close(&self) {
        let _ = self.store.set(&format!("bye/{}", self.rank), "");
        let deadline = Instant::now() + LINGER;
        let gone = |rank| !matches!(self.store.get(&format!("bye/{rank}")), Ok(None));
        while self.rank == 0 && Instant::now() < deadline && !(1..self.world).all(gone) {
            thread::sleep(PERIOD / 10);
        }
    }

    /// What it means when the store does not answer.
    pub fn zero_gone(&self) -> Failure {
        Failure::peer_lost(format!("{} is gone: its store does not answer", self.named(&[0])))
    }

    fn named(&self, ranks: &[usize]) -> String {
        let list = |list: &[usize]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        named(if ranks.len() == 1 { "rank" } else { "ranks" }, list(ranks), self.world)
    }
}

fn named(noun: &str, ranks: impl Display, world: usize) -> String {
    format!("{noun} {ranks} of {world}")
}

/// Looks for an alarm on a thread of its own, and answers it, whatever the rank itself is busy with. The rank may wait for
/// its GPU, and that for a peer: then it is this thread that sees NCCL's failure, and ends the waiting.
pub struct Watch {
    meeting: Arc<Meeting>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    alarm: Option<String>,
}

impl Watch {
    /// Starts to look.
    pub fn start(meeting: Arc<Meeting>, connections: Arc<Connections>) -> Self {
        let shared = Arc::new(Shared::default());
        let watch = Self { meeting: Arc::clone(&meeting), shared: Arc::clone(&shared) };
        thread::spawn(move || {
            let alarm = loop {
                let state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
                let waited = shared.changed.wait_timeout_while(state, PERIOD, |state| !state.stopped);
                if waited.unwrap_or_else(PoisonError::into_inner).0.stopped {
                    return;
                }
                match meeting.store.get("alarm") {
                    Ok(None) if connections.failed_cuda() => break meeting.roll_call(NCCL_FAILED),
                    Ok(None) => {}
                    Ok(Some(alarm)) => break alarm,
                    Err(said) => break said,
                }
            };
            // If the store is gone, there is nobody to answer to.
            let _ = meeting.answer();
            shared.state.lock().unwrap_or_else(PoisonError::into_inner).alarm = Some(alarm);
            // Only now: who is set free shall find the alarm. Where it fails, NCCL has ended already.
            let _ = connections.sever_cuda();
        });
        watch
    }

    /// The store, and this rank's place in it.
    pub fn meeting(&self) -> Arc<Meeting> {
        Arc::clone(&self.meeting)
    }

    /// What somebody raised the alarm for.
    pub fn alarm(&self) -> Option<String> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).alarm.clone()
    }

    /// Looks no longer.
    pub fn stop(&self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
        self.shared.changed.notify_all();
    }
}
