//! Ranks: processes that compute together.
//!
//! [`Ranks::join`] (`join.rs`) meets the others at rank 0's store of keys and values, checks that all mean the same
//! group, and connects every rank with every other. Exchanges ([`Ranks::all_reduce`] and its neighbours) are c10d's,
//! called through a small C++ shim (`ffi.rs`, `cpp/`): over Gloo for tensors in the CPU's memory, over NCCL (`crate::cuda`)
//! from GPU to GPU where every rank has one; else tensors of a GPU go through the CPU's memory. Sums of gradients in
//! buckets are in `gradients.rs`.
//!
//! A group ends as a whole. Whoever meets a broken connection, a timeout or a cancellation raises the alarm in the
//! store; every rank's watch (`watch.rs`) sees it within a quarter of a second, answers, and so lets the others tell who
//! does not answer. Then each rank leaves without waiting for another one.

pub(crate) mod ffi;
mod gradients;
mod join;
mod watch;

use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use cappy_plugin_abi::{Control, Failure, Group};
use tch::{Device, Tensor};

use crate::shim::Said;
use ffi::{Connections, Work};
pub use gradients::Gradients;
use join::Joined;
pub use join::Seat;
use watch::Watch;

/// How long the others are told of a group's end before exchanges on the GPU are ended regardless.
const TELLING: Duration = Duration::from_secs(2);
/// How long a wait goes on before it looks whether the call was cancelled or somebody raised the alarm.
const TICK_MS: i64 = 50;

/// One process group, from one rank's view.
///
/// Used by one thread at a time: exchanges must start in the same order on every rank.
pub struct Ranks {
    rank: usize,
    world: usize,
    /// Whether tensors of a GPU are exchanged as they are.
    nccl: bool,
    session: Mutex<Session>,
    watch: Watch,
}

enum Session {
    Open(Arc<Connections>),
    /// For good, and why.
    Ended(Failure),
}

impl Ranks {
    /// Finds the other ranks of `group` and connects with them; returns when all are there. `device` is where this
    /// rank computes.
    ///
    /// # Errors
    /// `InvalidArgument` when the ranks mean different groups, or this one's place in it makes no sense; `PeerLost` with
    /// the ranks that did not come within the group's timeout, or why GPUs cannot be connected.
    pub fn join(group: &Group, device: Device) -> Result<Arc<Self>, Failure> {
        let Joined { connections, nccl, watch } = join::join(group, device)?;
        let session = Mutex::new(Session::Open(connections));
        let (rank, world) = (group.rank as usize, group.world as usize);
        Ok(Arc::new(Self { rank, world, nccl, session, watch }))
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
        self.in_place(tensor, control, |connections, tensor| connections.all_reduce(tensor))
    }

    /// As [`Ranks::all_reduce`], but on a GPU only what is computed next comes after the sum: the call returns before. A
    /// lost rank is noticed by a later exchange that is waited for, which there must be before the CPU reads any of it.
    ///
    /// # Errors
    /// As [`Ranks::all_reduce`].
    pub fn all_reduce_in_order(&self, tensor: &Tensor, control: &dyn Control) -> Result<(), Failure> {
        if !self.carries(tensor) || tensor.device() == Device::Cpu {
            return self.all_reduce(tensor, control);
        }
        self.go_on(control)?;
        self.connected(|connections| connections.all_reduce(tensor)?.order())
    }

    /// Copies a contiguous `tensor` of rank `root` to all others, in place.
    ///
    /// # Errors
    /// As [`Ranks::all_reduce`].
    pub fn broadcast(&self, tensor: &Tensor, root: usize, control: &dyn Control) -> Result<(), Failure> {
        self.in_place(tensor, control, |connections, tensor| connections.broadcast(tensor, root))
    }

    /// `tensor` (contiguous, of one shape and kind on all ranks) of every rank, in their order.
    ///
    /// # Errors
    /// As [`Ranks::all_reduce`].
    pub fn all_gather(&self, tensor: &Tensor, control: &dyn Control) -> Result<Vec<Tensor>, Failure> {
        let own = self.carried(tensor)?;
        let parts = (0..self.world).map(|_| own.f_empty_like()).collect::<Result<Vec<_>, _>>();
        let parts = parts.map_err(engine)?;
        let work = self.connected(|connections| connections.all_gather(&own, &parts))?;
        self.wait(&work, control)?;
        parts.iter().map(|part| part.f_to_device(tensor.device()).map_err(engine)).collect()
    }

    /// Whether it can be exchanged where it is.
    fn carries(&self, tensor: &Tensor) -> bool {
        self.nccl || tensor.device() == Device::Cpu
    }

    /// The tensor where it can be exchanged: itself, or a copy in the CPU's memory.
    fn carried(&self, tensor: &Tensor) -> Result<Tensor, Failure> {
        if self.carries(tensor) {
            return Ok(tensor.shallow_clone());
        }
        tensor.f_to_device(Device::Cpu).map_err(engine)
    }

    /// Runs an exchange that works in place.
    fn in_place(
        &self,
        tensor: &Tensor,
        control: &dyn Control,
        start: impl FnOnce(&Connections, &Tensor) -> Said<Work>,
    ) -> Result<(), Failure> {
        let carried = self.carried(tensor)?;
        let work = self.connected(|connections| start(connections, &carried))?;
        self.wait(&work, control)?;
        if self.carries(tensor) {
            return Ok(());
        }
        let mut place = tensor.shallow_clone();
        tch::no_grad(|| place.f_copy_(&carried)).map_err(engine)
    }

    /// Starts something, one at a time.
    fn connected<T>(&self, start: impl FnOnce(&Connections) -> Said<T>) -> Result<T, Failure> {
        let started = match &*self.session() {
            Session::Open(connections) => start(connections),
            Session::Ended(failure) => return Err(failure.clone()),
        };
        // NCCL refuses to start anything after a failure, which is most often a peer's.
        started.map_err(|said| if self.nccl { self.lost(&said) } else { internal(said) })
    }

    /// Waits for an exchange, and ends the group when it cannot be had.
    fn wait(&self, work: &Work, control: &dyn Control) -> Result<(), Failure> {
        loop {
            self.not_cancelled(control)?;
            match work.wait(TICK_MS) {
                Ok(true) => return Ok(()),
                Ok(false) => self.no_alarm()?,
                Err(said) => return Err(self.lost(&said)),
            }
        }
    }

    /// Looks whether anybody wants the group to end, and ends it then.
    fn go_on(&self, control: &dyn Control) -> Result<(), Failure> {
        self.not_cancelled(control)?;
        self.no_alarm()
    }

    fn not_cancelled(&self, control: &dyn Control) -> Result<(), Failure> {
        if !control.cancelled() {
            return Ok(());
        }
        self.end(
            Failure::peer_lost("this rank left its group: a call was cancelled"),
            "a call was cancelled",
        );
        Err(Failure::cancelled("cancelled"))
    }

    fn no_alarm(&self) -> Result<(), Failure> {
        self.watch.alarm().map_or(Ok(()), |alarm| Err(self.lost(&alarm)))
    }

    /// Finds out who is gone when `said` was heard, and ends the group.
    fn lost(&self, said: &str) -> Failure {
        let failure = Failure::peer_lost(self.watch.meeting().roll_call(said));
        self.end(failure.clone(), &failure.message);
        failure
    }

    /// Leaves, for good, and tells the others why. Waits for nobody.
    fn end(&self, failure: Failure, why: &str) {
        let mut session = self.session();
        let Session::Open(connections) = std::mem::replace(&mut *session, Session::Ended(failure)) else {
            return;
        };
        self.watch.stop();
        let (meeting, why) = (self.watch.meeting(), why.to_owned());
        let (severed, ended) = mpsc::channel();
        let on_gpu = self.nccl.then(|| Arc::clone(&connections));
        // An exchange that goes on keeps its connections open until it has failed: that is not to be waited for.
        thread::spawn(move || {
            meeting.leave(&why);
            // Where it fails, the exchanges fail a little later by their timeout.
            let _ = connections.sever();
            let _ = severed.send(());
            drop(connections);
            meeting.close();
        });
        // A process that ends while the GPU waits for a peer never ends. The store may be silent, so it may take long.
        if let Some(connections) = on_gpu
            && ended.recv_timeout(TELLING).is_err()
        {
            let _ = connections.sever_cuda();
        }
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
