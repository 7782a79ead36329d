//! Ranks: processes that compute together.
//!
//! [`Ranks::join`] (`join.rs`) meets the others at rank 0's store of keys and values, checks that all mean the same
//! group, and connects every rank with every other. Exchanges ([`Ranks::all_reduce`] and its neighbours) are c10d's over
//! Gloo, called through a small C++ shim (`ffi.rs`, `cpp/`); sums of gradients in buckets are in `gradients.rs`. Tensors
//! of a GPU go through the CPU's memory.
//!
//! A group ends as a whole. Whoever meets a broken connection, a timeout or a cancellation raises the alarm in the
//! store; every rank's watch (`watch.rs`) sees it within a quarter of a second, answers, and so lets the others tell who
//! does not answer. Then each rank leaves without waiting for another one.

mod ffi;
mod gradients;
mod join;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use cappy_plugin_abi::{Control, Failure, Group};
use tch::{Device, Tensor};

use ffi::{Connections, Said, Work};
pub use gradients::Gradients;
use watch::Watch;

/// How long a wait goes on before it looks whether the call was cancelled or somebody raised the alarm.
const TICK_MS: i64 = 50;

/// One process group, from one rank's view.
///
/// Used by one thread at a time: exchanges must start in the same order on every rank.
pub struct Ranks {
    rank: usize,
    world: usize,
    session: Mutex<Session>,
    watch: Watch,
}

enum Session {
    Open(Arc<Connections>),
    /// For good, and why.
    Ended(Failure),
}

impl Ranks {
    /// Finds the other ranks of `group` and connects with them; returns when all are there.
    ///
    /// # Errors
    /// `InvalidArgument` when the ranks mean different groups, or this one's place in it makes no sense; `PeerLost` with
    /// the ranks that did not come within the group's timeout.
    pub fn join(group: &Group) -> Result<Arc<Self>, Failure> {
        let (connections, watch) = join::join(group)?;
        let session = Mutex::new(Session::Open(Arc::new(connections)));
        let (rank, world) = (group.rank as usize, group.world as usize);
        Ok(Arc::new(Self { rank, world, session, watch }))
    }

    /// This process's place, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Compares a short text on all ranks, such as the hash of what each has loaded.
    ///
    /// # Errors
    /// `InvalidArgument` that names `what` and two ranks that differ; `PeerLost`.
    pub fn agree(&self, what: &str, value: &str) -> Result<(), Failure> {
        self.connected(|_| Ok(()))?;
        let agreed = self.watch.meeting().agree(what, value);
        agreed.inspect_err(|failure| self.end(failure.clone(), &failure.message))
    }

    /// Sums a contiguous `tensor` over the ranks, in place.
    ///
    /// # Errors
    /// `Cancelled`; `PeerLost` naming who is gone.
    pub fn all_reduce(&self, tensor: &Tensor, control: &dyn Control) -> Result<(), Failure> {
        self.in_memory(tensor, control, |connections, tensor| connections.all_reduce(tensor))
    }

    /// Copies a contiguous `tensor` of rank `root` to all others, in place.
    ///
    /// # Errors
    /// As [`Ranks::all_reduce`].
    pub fn broadcast(&self, tensor: &Tensor, root: usize, control: &dyn Control) -> Result<(), Failure> {
        self.in_memory(tensor, control, |connections, tensor| connections.broadcast(tensor, root))
    }

    /// `tensor` (contiguous, of one shape and kind on all ranks) of every rank, in their order.
    ///
    /// # Errors
    /// As [`Ranks::all_reduce`].
    pub fn all_gather(&self, tensor: &Tensor, control: &dyn Control) -> Result<Vec<Tensor>, Failure> {
        let own = tensor.f_to_device(Device::Cpu).map_err(engine)?;
        let parts = (0..self.world).map(|_| own.f_empty_like()).collect::<Result<Vec<_>, _>>();
        let parts = parts.map_err(engine)?;
        let work = self.connected(|connections| connections.all_gather(&own, &parts))?;
        self.wait(&work, control)?;
        parts.iter().map(|part| part.f_to_device(tensor.device()).map_err(engine)).collect()
    }

    /// Runs an exchange that works in place on a tensor in the CPU's memory.
    fn in_memory(
        &self,
        tensor: &Tensor,
        control: &dyn Control,
        start: impl FnOnce(&Connections, &Tensor) -> Said<Work>,
    ) -> Result<(), Failure> {
        if tensor.device() == Device::Cpu {
            let work = self.connected(|connections| start(connections, tensor))?;
            return self.wait(&work, control);
        }
        let copy = tensor.f_to_device(Device::Cpu).map_err(engine)?;
        let work = self.connected(|connections| start(connections, &copy))?;
        self.wait(&work, control)?;
        let mut place = tensor.shallow_clone();
        tch::no_grad(|| place.f_copy_(&copy)).map_err(engine)
    }

    /// Starts something, one at a time.
    fn connected<T>(&self, start: impl FnOnce(&Connections) -> Said<T>) -> Result<T, Failure> {
        match &*self.session() {
            Session::Open(connections) => start(connections).map_err(internal),
            Session::Ended(failure) => Err(failure.clone()),
        }
    }

    /// Waits for an exchange, and ends the group when it cannot be had.
    fn wait(&self, work: &Work, control: &dyn Control) -> Result<(), Failure> {
        loop {
            if control.cancelled() {
                self.end(
                    Failure::peer_lost("this rank left its group: a call was cancelled"),
                    "a call was cancelled",
                );
                return Err(Failure::cancelled("cancelled"));
            }
            let said = match work.wait(TICK_MS) {
                Ok(true) => return Ok(()),
                Ok(false) => match self.watch.alarm() {
                    Some(alarm) => alarm,
                    None => continue,
                },
                Err(said) => said,
            };
            let failure = Failure::peer_lost(self.watch.meeting().roll_call(&said));
            self.end(failure.clone(), &failure.message);
            return Err(failure);
        }
    }

    /// Leaves, for good, and tells the others why. Waits for nobody.
    fn end(&self, failure: Failure, why: &str) {
        let mut session = self.session();
        let Session::Open(connections) = std::mem::replace(&mut *session, Session::Ended(failure)) else {
            return;
        };
        self.watch.stop();
        let (meeting, why) = (self.watch.meeting(), why.to_owned());
        // An exchange that goes on keeps its connections open until it has failed: that is not to be waited for.
        thread::spawn(move || {
            meeting.leave(&why);
            // Where it fails, the exchanges fail a little later by their timeout.
            let _ = connections.sever();
            drop(connections);
            meeting.close();
        });
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        // What it holds is replaced as a whole: a panic leaves no half.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        let why = "it let the model go";
        self.end(Failure::peer_lost(why), why);
    }
}

/// What libtorch said of an operation that has nothing to do with other ranks.
fn internal(said: String) -> Failure {
    Failure::internal(format!("libtorch: {said}"))
}

fn engine(error: tch::TchError) -> Failure {
    crate::engine::Error::from(error).into()
}
