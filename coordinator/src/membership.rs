//! Which workers are connected and what they hold. Nothing here must survive: after a restart workers say hello again
//! and their heartbeats name their leases.

mod online;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use cappy_proto::{JobId, LeaseId, ShardId, WorkerId, v1};
use tokio::sync::mpsc;

pub(crate) use online::Wanted;

use crate::{
    planner::{ClusterFacts, DeviceMemory, RunningLease},
    scheduler::Offer,
    store::{GangKind, Granted, Held},
};

/// Messages that wait for a worker to read them. A worker that reads none of this many is dropped.
pub(crate) const OUTBOX: usize = 256;
/// Lost workers that are remembered for people.
const LOST_REMEMBERED: usize = 32;
/// Shards taken from a worker that are remembered.
const TAKEN_REMEMBERED: usize = 16;
/// A worker that is lost within this was lost while it worked on what was taken from it.
const TAKEN_LATELY: Duration = Duration::from_secs(5);
/// Artifacts remembered for a worker, newest last.
const ARTIFACTS_REMEMBERED: usize = 4096;

/// The connected workers and the leases that they and the coordinator itself hold.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    state: Mutex<State>,
    /// Until then a worker that joins may hold leases of an earlier coordinator process.
    returning_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    members: HashMap<WorkerId, Member>,
    lost: VecDeque<Lost>,
    /// Leases of pure stages.
    local: HashMap<LeaseId, Lease>,
    /// Turns ties between equally busy workers.
    turn: usize,
}

/// A worker whose session has ended.
#[derive(Debug)]
struct Lost {
    view: v1::Worker,
    /// What it was working on, until it is known why it was lost.
    shards: Vec<ShardId>,
}

#[derive(Debug)]
struct Member {
    hello: v1::Hello,
    connected: SystemTime,
    heartbeat: SystemTime,
    resident: Vec<String>,
    leases: HashMap<LeaseId, Lease>,
    /// Shards that were taken from it lately, newest last: those of a gang go with the first sign that a rank is lost.
    taken: VecDeque<(ShardId, Instant)>,
    artifacts: Recent,
    draining: bool,
    /// False while it may hold leases of an earlier session that its first heartbeat will name.
    settled: bool,
    outbox: mpsc::Sender<v1::SessionResponse>,
    /// Rows of online calls that are with it now.
    online_rows: u64,
}

#[derive(Debug)]
struct Lease {
    shard: ShardId,
    job: JobId,
    gang: bool,
    stage: u32,
    units: u64,
    since: Instant,
    done: f64,
    activity: String,
}

#[derive(Debug, Default)]
struct Recent {
    set: HashSet<String>,
    order: VecDeque<String>,
}

impl Recent {
    fn add(&mut self, id: String) {
        if self.set.insert(id.clone()) {
            self.order.push_back(id);
            if self.order.len() > ARTIFACTS_REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.set.remove(&oldest);
            }
        }
    }
}

impl Cluster {
    /// A cluster some of whose workers, having lost an earlier coordinator process, may come back with their leases
    /// within `time`.
    pub(crate) fn returning_within(time: Duration) -> Self {
        Self { state: Mutex::default(), returning_until: Some(Instant::now() + time) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker said hello. Returns its id and what will be sent to it.
    pub(crate) fn join(&self, hello: v1::Hello) -> (WorkerId, mpsc::Receiver<v1::SessionResponse>) {
        let (outbox, inbox) = mpsc::channel(OUTBOX);
        let worker = WorkerId::generate();
        let now = SystemTime::now();
        let mut state = self.lock();
        // A worker of this name was lost with leases: this may be the same process, which still works on them.
        let returning = self.returning_until.is_some_and(|until| Instant::now() < until);
        let settled = !returning
            && !state.lost.iter().any(|lost| lost.view.name == hello.name && lost.view.busy_slots > 0);
        state.members.insert(
            worker.clone(),
            Member {
                hello,
                connected: now,
                heartbeat: now,
                resident: Vec::new(),
                leases: HashMap::new(),
                taken: VecDeque::new(),
                artifacts: Recent::default(),
                draining: false,
                settled,
                outbox,
                online_rows: 0,
            },
        );
        (worker, inbox)
    }

    /// What the lost worker of this name was working on, which is asked once: whoever comes in its place knows how it
    /// died.
    pub(crate) fn lost_work(&self, name: &str) -> Vec<(WorkerId, ShardId)> {
        let mut state = self.lock();
        let Some(lost) = state.lost.iter_mut().rev().find(|lost| lost.view.name == name) else {
            return Vec::new();
        };
        let Ok(worker) = lost.view.id.parse::<WorkerId>() else { return Vec::new() };
        std::mem::take(&mut lost.shards).into_iter().map(|shard| (worker.clone(), shard)).collect()
    }

    /// A session has ended. True if the worker held leases.
    pub(crate) fn leave(&self, worker: &WorkerId) -> bool {
        let mut state = self.lock();
        let Some(member) = state.members.remove(worker) else { return false };
        let had_leases = !member.leases.is_empty();
        let mut view = member.view(worker);
        view.state = v1::WorkerState::Lost.into();
        let taken = member.taken.iter().filter(|(_, since)| since.elapsed() < TAKEN_LATELY);
        let shards = member.leases.values().map(|lease| &lease.shard).chain(taken.map(|(shard, _)| shard));
        state.lost.push_back(Lost { view, shards: shards.cloned().collect() });
        if state.lost.len() > LOST_REMEMBERED {
            state.lost.pop_front();
        }
        had_leases
    }

    /// A heartbeat, with those of its leases that the store confirmed. Returns the jobs that they belong to.
    pub(crate) fn heartbeat(
        &self,
        worker: &WorkerId,
        beat: &v1::Heartbeat,
        held: Vec<Held>,
    ) -> HashSet<JobId> {
        let mut state = self.lock();
        let mut jobs = HashSet::new();
        let Some(member) = state.members.get_mut(worker) else { return jobs };
        member.heartbeat = SystemTime::now();
        member.settled = true;
        member.resident.clone_from(&beat.resident_models);
        for held in held {
            jobs.insert(held.job.clone());
            let lease = member.leases.entry(held.lease.clone()).or_insert_with(|| Lease {
                shard: held.shard,
                job: held.job,
                gang: held.gang,
                stage: held.stage,
                units: held.units,
                since: Instant::now(),
                done: 0.0,
                activity: String::new(),
            });
            if let Some(told) = beat.leases.iter().find(|told| told.lease_id == held.lease.as_str()) {
                lease.done = share(told.units_done, told.units_total);
                lease.activity.clone_from(&told.activity);
            }
        }
        jobs
    }

    /// Sends a granted lease. False: the worker is gone or reads nothing.
    pub(crate) fn send_lease(
        &self,
        worker: &WorkerId,
        granted: &Granted,
        task: v1::ShardTask,
        inputs: &[String],
        gang: Option<v1::Gang>,
    ) -> bool {
        let mut state = self.lock();
        let Some(member) = state.members.get_mut(worker) else { return false };
        let lease = v1::Lease {
            lease_id: granted.lease.to_string(),
            fencing_token: granted.fencing_token,
            shard_id: granted.shard.to_string(),
            job_id: granted.job.to_string(),
            stage: granted.stage_name.clone(),
            attempt: granted.attempt,
            task: Some(task),
            gang,
        };
        if !send(&member.outbox, v1::session_response::Message::Lease(lease)) {
            return false;
        }
        inputs.iter().for_each(|input| member.artifacts.add(input.clone()));
        member.leases.insert(granted.lease.clone(), Lease::of(granted));
        true
    }

    /// A local shard has begun.
    pub(crate) fn begin_local(&self, granted: &Granted, activity: String) {
        self.lock().local.insert(granted.lease.clone(), Lease { activity, ..Lease::of(granted) });
    }

    /// A lease has ended by its holder's word; what it made is near that worker.
    pub(crate) fn end_lease(&self, lease: &LeaseId, outputs: &[String]) {
        let mut state = self.lock();
        state.local.remove(lease);
        for member in state.members.values_mut() {
            if member.leases.remove(lease).is_some() {
                outputs.iter().for_each(|output| member.artifacts.add(output.clone()));
            }
        }
    }

    /// Tells whoever holds a lease that it is no longer held.
    pub(crate) fn revoke(&self, lease: &LeaseId, reason: &str) {
        let mut state = self.lock();
        state.local.remove(lease);
        for member in state.members.values_mut() {
            if let Some(taken) = member.leases.remove(lease) {
                member.taken.push_back((taken.shard, Instant::now()));
                if member.taken.len() > TAKEN_REMEMBERED {
                    member.taken.pop_front();
                }
                let cancel = v1::CancelLease { lease_id: lease.to_string(), reason: reason.to_owned() };
                send(&member.outbox, v1::session_response::Message::CancelLease(cancel));
            }
        }
    }

    /// Tells a worker that a lease which it named is not its own.
    pub(crate) fn refuse(&self, worker: &WorkerId, lease: &str) {
        if let Some(member) = self.lock().members.get(worker) {
            let reason = "the lease is no longer held".to_owned();
            let cancel = v1::CancelLease { lease_id: lease.to_owned(), reason };
            send(&member.outbox, v1::session_response::Message::CancelLease(cancel));
        }
    }

    /// Workers that take shards, those without a free slot too.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        self.lock()
            .members
            .iter()
            .filter(|(_, member)| member.settled && !member.draining)
            .map(|(worker, member)| Offer {
                worker: worker.clone(),
                free_slots: member.free_slots(),
                backends: member.hello.backends.iter().map(|backend| backend.name.clone()).collect(),
                groups: member.groups(),
                in_gang: member.leases.values().any(|lease| lease.gang),
                memory_bytes: member.hello.memory_bytes,
                resident: member.resident.iter().cloned().collect(),
                artifacts: if member.free_slots() > 0 {
                    member.artifacts.set.clone()
                } else {
                    HashSet::new()
                },
            })
            .collect()
    }

    /// What runs of a job: a shard once, however many workers have it.
    pub(crate) fn running(&self, job: &JobId) -> Vec<RunningLease> {
        let state = self.lock();
        let of_job = |lease: &&Lease| &lease.job == job;
        let remote = state.members.values().flat_map(|member| member.leases.values()).filter(of_job);
        let local = state.local.values().filter(of_job);
        let mut furthest: HashMap<&ShardId, (&Lease, bool)> = HashMap::new();
        for (lease, is_local) in remote.map(|lease| (lease, false)).chain(local.map(|lease| (lease, true))) {
            let known = furthest.entry(&lease.shard).or_insert((lease, is_local));
            if lease.done > known.0.done {
                *known = (lease, is_local);
            }
        }
        let mut running: Vec<RunningLease> =
            furthest.into_values().map(|(lease, is_local)| lease.view(is_local)).collect();
        running.sort_by_key(|lease| lease.stage);
        running
    }

    /// Workers that run something for a job.
    pub(crate) fn busy_workers(&self, job: &JobId) -> u32 {
        let state = self.lock();
        let busy =
            state.members.values().filter(|member| member.leases.values().any(|lease| &lease.job == job));
        u32::try_from(busy.count()).unwrap_or(u32::MAX)
    }

    /// Counts for a job that asks for `backend` (empty: any).
    pub(crate) fn facts(&self, backend: &str) -> ClusterFacts {
        let state = self.lock();
        let mut facts = ClusterFacts::default();
        for member in state.members.values().filter(|member| !member.draining) {
            facts.workers += 1;
            if backend.is_empty() || member.hello.backends.iter().any(|found| found.name == backend) {
                facts.capable += 1;
                facts.slots += member.hello.slots;
            }
            for (found, kind) in member.groups() {
                if backend.is_empty() || found == backend {
                    match kind {
                        GangKind::Data => facts.data_parallel += 1,
                        GangKind::Tensor => facts.tensor_parallel += 1,
                    }
                }
            }
        }
        facts
    }

    /// What the connected workers that can run `backend` (empty: any) have room for; those that can hold a slice of a
    /// model apart.
    pub(crate) fn memory(&self, backend: &str) -> DeviceMemory {
        let state = self.lock();
        let mut memory = DeviceMemory::default();
        for member in state.members.values().filter(|member| !member.draining) {
            let bytes = member.hello.memory_bytes;
            let named = |found: &str| backend.is_empty() || found == backend;
            if member.hello.backends.iter().any(|found| named(&found.name)) {
                memory.largest = memory.largest.max(bytes);
            }
            if member.groups().iter().any(|(found, kind)| *kind == GangKind::Tensor && named(found)) {
                memory.largest_of_ranks = memory.largest_of_ranks.max(bytes);
            }
        }
        memory
    }

    /// The name of a worker, as people know it.
    pub(crate) fn name_of(&self, worker: &WorkerId) -> String {
        let state = self.lock();
        state.members.get(worker).map_or_else(|| worker.to_string(), |member| member.hello.name.clone())
    }

    /// Leases held now, those of the coordinator included.
    pub(crate) fn held_count(&self) -> u64 {
        let state = self.lock();
        (state.local.len() + state.members.values().map(|member| member.leases.len()).sum::<usize>()) as u64
    }

    /// Every worker, oldest first, lost ones last.
    pub(crate) fn list(&self) -> Vec<v1::Worker> {
        let state = self.lock();
        let mut workers: Vec<v1::Worker> =
            state.members.iter().map(|(worker, member)| member.view(worker)).collect();
        workers.sort_by(|a, b| a.id.cmp(&b.id));
        workers.extend(state.lost.iter().map(|lost| lost.view.clone()));
        workers
    }

    /// Asks a worker to finish and end. None: no such worker.
    pub(crate) fn drain(&self, worker: &WorkerId) -> Option<v1::Worker> {
        let mut state = self.lock();
        let member = state.members.get_mut(worker)?;
        member.draining = true;
        send(&member.outbox, v1::session_response::Message::Drain(v1::Drain {}));
        Some(member.view(worker))
    }
}

impl Member {
    /// What its backends can do as a rank of a group.
    fn groups(&self) -> BTreeSet<(String, GangKind)> {
        let offers = |backend: &v1::BackendInfo, kind: GangKind| {
            backend.features.iter().any(|feature| feature == kind.feature())
        };
        let backends = self.hello.backends.iter();
        backends
            .flat_map(|backend| [GangKind::Data, GangKind::Tensor].map(|kind| (backend, kind)))
            .filter(|(backend, kind)| offers(backend, *kind))
            .map(|(backend, kind)| (backend.name.clone(), kind))
            .collect()
    }

    fn free_slots(&self) -> u32 {
        self.hello.slots.saturating_sub(u32::try_from(self.leases.len()).unwrap_or(u32::MAX))
    }

    fn view(&self, worker: &WorkerId) -> v1::Worker {
        let state = if self.draining { v1::WorkerState::Draining } else { v1::WorkerState::Ready };
        v1::Worker {
            id: worker.to_string(),
            name: self.hello.name.clone(),
            state: state.into(),
            version: self.hello.version.clone(),
            device: self.hello.device.clone(),
            backends: self.hello.backends.clone(),
            slots: self.hello.slots,
            busy_slots: u32::try_from(self.leases.len()).unwrap_or(u32::MAX),
            connect_time: Some(self.connected.into()),
            heartbeat_time: Some(self.heartbeat.into()),
            resident_models: self.resident.clone(),
            inference_url: self.hello.inference_url.clone(),
        }
    }
}

impl Lease {
    fn of(granted: &Granted) -> Self {
        Self {
            shard: granted.shard.clone(),
            gang: granted.gang,
            job: granted.job.clone(),
            stage: granted.stage,
            units: granted.units,
            since: Instant::now(),
            done: 0.0,
            activity: String::new(),
        }
    }

    fn view(&self, local: bool) -> RunningLease {
        RunningLease {
            stage: self.stage,
            units: self.units,
            done: self.done,
            seconds: self.since.elapsed().max(Duration::from_millis(1)).as_secs_f64(),
            activity: self.activity.clone(),
            local,
        }
    }
}

fn share(done: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { (done as f64 / total as f64).clamp(0.0, 1.0) }
}

fn send(outbox: &mpsc::Sender<v1::SessionResponse>, message: v1::session_response::Message) -> bool {
    outbox.try_send(v1::SessionResponse { message: Some(message) }).is_ok()
}
