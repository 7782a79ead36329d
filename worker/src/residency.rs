//! Which models are in memory.
//!
//! A model is loaded once, however many ask for it at the same time, and stays until the memory budget needs its
//! place: then the one that was used longest ago and is not in use leaves. Training runs reserve their share of the
//! same budget and wait for it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cappy_plugin_abi::{Control, Failure, Generator, ModelInfo, Scorer};

use crate::{execution::ExecutionError, group::GroupPlace, pace::Pace, tokenization::ModelTokenizer};

/// How often whoever waits for memory looks again: a model falls idle without a word.
const WAIT_POLL: Duration = Duration::from_millis(50);

/// How long a load waits for models in use to fall idle.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);

/// What a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Sequence classifier.
    Scorer,
    /// Encoder-decoder.
    Generator,
}

/// Two loads with the same key are the same model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelKey {
    /// Of the model's content.
    pub fingerprint: String,
    /// What it is loaded as.
    pub role: Role,
    /// Name of the backend.
    pub backend: String,
    /// As asked for: `auto`, `f32`, ...
    pub dtype: String,
    /// Of a slice: the group that holds the model together, and this worker's rank in it. Ranks say at every meeting what
    /// they still hold, so a slice may leave as any model does: the others then load theirs again.
    pub group: Option<GroupPlace>,
}

/// A model in memory, with its tokenizer.
pub struct Resident<M: ?Sized> {
    /// Of the model's content.
    pub fingerprint: String,
    /// What the backend says about it.
    pub info: ModelInfo,
    /// `candle 0.1.0 f32 cpu`.
    pub backend: String,
    /// Its tokenizer.
    pub tokenizer: ModelTokenizer,
    /// How fast it is.
    pub pace: Pace,
    // First come, first served: a stream of batches must not starve a single request.
    model: tokio::sync::Mutex<Box<M>>,
}

impl<M: ?Sized> Resident<M> {
    /// A model just loaded.
    pub fn new(
        fingerprint: String,
        backend: String,
        info: ModelInfo,
        tokenizer: ModelTokenizer,
        model: Box<M>,
    ) -> Self {
        Self {
            fingerprint,
            info,
            backend,
            tokenizer,
            pace: Pace::default(),
            model: tokio::sync::Mutex::new(model),
        }
    }

    /// Uses the model, alone, after those who asked before. Blocks: not for async code.
    pub fn with<R>(&self, work: impl FnOnce(&mut M) -> R) -> R {
        work(&mut self.model.blocking_lock())
    }
}

/// A loaded model of either role.
#[derive(Clone)]
pub enum Loaded {
    /// See [`Role::Scorer`].
    Scorer(Arc<Resident<dyn Scorer>>),
    /// See [`Role::Generator`].
    Generator(Arc<Resident<dyn Generator>>),
}

impl Loaded {
    fn bytes(&self) -> u64 {
        match self {
            Self::Scorer(model) => model.info.weight_bytes,
            Self::Generator(model) => model.info.weight_bytes,
        }
    }

    /// The table's own reference is the only one.
    fn idle(&self) -> bool {
        match self {
            Self::Scorer(model) => Arc::strong_count(model) == 1,
            Self::Generator(model) => Arc::strong_count(model) == 1,
        }
    }
}

/// The models in memory.
pub struct Residency {
    budget_bytes: u64,
    /// How long a load waits for models in use to fall idle.
    patience: Duration,
    clock: AtomicU64,
    table: Mutex<Table>,
    freed: Condvar,
}

/// Models in use leave too little of the memory budget for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model needs {needed} MiB, models in use leave {free} MiB of the memory budget of {budget} MiB: try again, or give \
     the worker a larger --memory-budget"
)]
pub struct NoRoom {
    needed: u64,
    free: u64,
    budget: u64,
    /// Nothing that others do makes room for it.
    pub never: bool,
}

#[derive(Default)]
struct Table {
    entries: HashMap<ModelKey, Entry>,
    reserved_bytes: u64,
}

#[derive(Clone)]
struct Entry {
    // Held while loading: whoever comes in the meantime waits for the result.
    cell: Arc<Mutex<Option<Loaded>>>,
    used: u64,
    /// Estimated while loading, then as the backend says.
    bytes: u64,
}

impl Residency {
    /// Nothing in memory yet. `budget_bytes`: of weights, and of reservations.
    pub fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            patience: ROOM_PATIENCE,
            clock: AtomicU64::new(0),
            table: Mutex::default(),
            freed: Condvar::new(),
        }
    }

    /// The model of `key`, loaded by `load` if it is not in memory. `estimate_bytes` of weights are made room for:
    /// idle models leave; models in use stay, and are waited for a while.
    ///
    /// # Errors
    /// [`NoRoom`], or that of `load`; the next caller tries again.
    pub fn get_or_load<E: From<NoRoom>>(
        &self,
        key: &ModelKey,
        estimate_bytes: u64,
        load: impl FnOnce() -> Result<Loaded, E>,
    ) -> Result<Loaded, E> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let cell = {
            let mut table = self.table();
            let entry = table.entries.entry(key.clone()).or_insert_with(|| Entry {
                cell: Arc::default(),
                used: now,
                bytes: 0,
            });
            entry.used = now;
            Arc::clone(&entry.cell)
        };
        let mut loaded = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = &*loaded {
            return Ok(model.clone());
        }
        let result = self.claim(key, estimate_bytes).map_err(E::from).and_then(|()| load());
        match result {
            Ok(model) => {
                *loaded = Some(model.clone());
                self.table().set_bytes(key, model.bytes());
                Ok(model)
            }
            Err(error) => {
                drop(loaded);
                drop(cell);
                self.table().forget_empty(key);
                self.freed.notify_all();
                Err(error)
            }
        }
    }

    /// Counts `bytes` for a model that is about to be loaded, once they fit.
    fn claim(&self, key: &ModelKey, bytes: u64) -> Result<(), NoRoom> {
        let give_up = Instant::now() + self.patience;
        let mut table = self.table();
        loop {
            let over = table.make_room(self.budget_bytes, bytes);
            if over == 0 {
                table.set_bytes(key, bytes);
                return Ok(());
            }
            let never = bytes > self.budget_bytes;
            if never || Instant::now() >= give_up {
                const MIB: u64 = 1 << 20;
                return Err(NoRoom {
                    needed: bytes.div_ceil(MIB),
                    free: (bytes - over.min(bytes)) / MIB,
                    budget: self.budget_bytes / MIB,
                    never,
                });
            }
            table = self.freed.wait_timeout(table, WAIT_POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A whole model in memory with this content, role and number format, on `backend` (empty: any).
    pub fn find(&self, fingerprint: &str, role: Role, backend: &str, dtype: &str) -> Option<Loaded> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut table = self.table();
        let (_, entry) = table.entries.iter_mut().find(|(key, entry)| {
            key.group.is_none()
                && key.fingerprint == fingerprint
                && key.role == role
                && key.dtype == dtype
                && (backend.is_empty() || key.backend == backend)
                && entry.cell.try_lock().is_ok_and(|cell| cell.is_some())
        })?;
        entry.used = now;
        entry.cell.try_lock().ok()?.clone()
    }

    /// The slice of a generator in memory, and its place in its group.
    pub fn find_slice(&self, fingerprint: &str, backend: &str, dtype: &str) -> Option<(GroupPlace, Loaded)> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut table = self.table();
        table.entries.iter_mut().find_map(|(key, entry)| {
            let place = key.group.clone()?;
            let same = key.fingerprint == fingerprint && key.backend == backend && key.dtype == dtype;
            let loaded = entry.cell.try_lock().ok().filter(|_| same)?.clone()?;
            entry.used = now;
            Some((place, loaded))
        })
    }

    /// Forgets every slice: its group is no more, or is about to be.
    pub fn forget_slices(&self) {
        self.table().entries.retain(|key, _| key.group.is_none());
        self.freed.notify_all();
    }

    /// Fingerprints of the models in memory, sorted.
    pub fn fingerprints(&self) -> Vec<String> {
        let table = self.table();
        let mut all: Vec<String> = table
            .entries
            .iter()
            .filter(|(_, entry)| entry.cell.try_lock().is_ok_and(|cell| cell.is_some()))
            .map(|(key, _)| key.fingerprint.clone())
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// Sets `bytes` of the budget aside until the reservation is dropped. Waits while models in use and other
    /// reservations leave too little; alone it is always granted.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn reserve(&self, bytes: u64, control: &dyn Control) -> Result<Reservation<'_>, Failure> {
        let mut table = self.table();
        loop {
            let over = table.make_room(self.budget_bytes, bytes);
            if over == 0 || table.reserved_bytes == 0 {
                table.reserved_bytes += bytes;
                return Ok(Reservation { residency: self, bytes });
            }
            if control.cancelled() {
                return Err(Failure::cancelled("cancelled while waiting for memory"));
            }
            table = self.freed.wait_timeout(table, WAIT_POLL).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Evicts idle models, the one used longest ago first, until `bytes` more fit; returns what is still missing.
    fn make_room(&mut self, budget: u64, bytes: u64) -> u64 {
        loop {
            let resident: u64 = self.entries.values().map(|entry| entry.bytes).sum();
            let over = (resident + self.reserved_bytes + bytes).saturating_sub(budget);
            if over == 0 {
                return 0;
            }
            let idle = self
                .entries
                .iter()
                .filter(|(_, entry)| {
                    Arc::strong_count(&entry.cell) == 1
                        && entry.cell.try_lock().is_ok_and(|cell| cell.as_ref().is_some_and(Loaded::idle))
                })
                .min_by_key(|(_, entry)| entry.used)
                .map(|(key, _)| key.clone());
            let Some(key) = idle else { return over };
            tracing::info!(model = %key.fingerprint, "evicting a model");
            self.entries.remove(&key);
        }
    }

    fn set_bytes(&mut self, key: &ModelKey, bytes: u64) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.bytes = bytes;
        }
    }

    fn forget_empty(&mut self, key: &ModelKey) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.bytes = 0;
        if Arc::strong_count(&entry.cell) == 1 && entry.cell.try_lock().is_ok_and(|cell| cell.is_none()) {
            self.entries.remove(key);
        }
    }
}

impl From<NoRoom> for ExecutionError {
    fn from(error: NoRoom) -> Self {
        if error.never {
            return Self::permanent("does_not_fit", error.to_string());
        }
        Self::infrastructure("out_of_memory", error.to_string())
    }
}

/// Memory set aside for a training run.
pub struct Reservation<'a> {
    residency: &'a Residency,
    bytes: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.residency.table().reserved_bytes -= self.bytes;
        self.residency.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use cappy_plugin_abi::{RaggedTokens, Unattended};

    use super::*;

    struct Silent;

    impl Scorer for Silent {
        fn info(&self) -> ModelInfo {
            ModelInfo::default()
        }
        fn score(&mut self, _: RaggedTokens<'_>, _: &dyn Control) -> Result<Vec<f32>, Failure> {
            Ok(Vec::new())
        }
    }

    fn model(bytes: u64) -> Loaded {
        let tokenizer = include_bytes!("../tests/fixtures/roberta/tokenizer.json");
        let info = ModelInfo { weight_bytes: bytes, ..ModelInfo::default() };
        let tokenizer = ModelTokenizer::from_bytes(tokenizer, false).unwrap();
        Loaded::Scorer(Arc::new(Resident::new("f".into(), "b".into(), info, tokenizer, Box::new(Silent))))
    }

    #[derive(Debug)]
    enum LoadError {
        NoRoom(NoRoom),
        Damaged,
    }

    impl From<NoRoom> for LoadError {
        fn from(error: NoRoom) -> Self {
            Self::NoRoom(error)
        }
    }

    fn key(name: &str) -> ModelKey {
        let [fingerprint, backend, dtype] = [name, "echo", "auto"].map(str::to_owned);
        ModelKey { fingerprint, role: Role::Scorer, backend, dtype, group: None }
    }

    #[test]
    fn a_slice_is_no_whole_model_and_is_forgotten_with_its_group() {
        let residency = Residency::new(100);
        let place = GroupPlace { id: "g".into(), rank: 1 };
        let slice = ModelKey { group: Some(place.clone()), ..key("a") };
        residency.get_or_load(&slice, 40, || Ok::<_, LoadError>(model(40))).unwrap();
        assert!(residency.find("a", Role::Scorer, "", "auto").is_none());
        assert_eq!(residency.find_slice("a", "echo", "auto").map(|(place, _)| place), Some(place));
        assert!(residency.find_slice("b", "echo", "auto").is_none());
        residency.get_or_load(&key("a"), 40, || Ok::<_, LoadError>(model(40))).unwrap();
        residency.forget_slices();
        assert!(residency.find_slice("a", "echo", "auto").is_none());
        assert!(residency.find("a", Role::Scorer, "", "auto").is_some());
    }

    #[test]
    fn the_idle_model_used_longest_ago_makes_room() {
        let residency = Residency::new(100);
        let load =
            |name: &str| residency.get_or_load(&key(name), 40, || Ok::<_, LoadError>(model(40))).unwrap();
        let held = load("a");
        drop(load("b"));
        drop(load("c"));
        assert_eq!(residency.fingerprints(), ["a", "c"], "a is in use, so b left");
        drop(held);
        drop(residency.find("a", Role::Scorer, "", "auto").unwrap());
        drop(load("d"));
        assert_eq!(residency.fingerprints(), ["a", "d"], "a was used after c");
        assert!(residency.find("a", Role::Generator, "", "auto").is_none());
        assert!(residency.find("a", Role::Scorer, "other", "auto").is_none());
        let reservation = residency.reserve(60, &Unattended).unwrap();
        assert_eq!(residency.fingerprints(), ["d"]);
        drop(reservation);
    }

    #[test]
    fn a_model_that_does_not_fit_waits_for_those_in_use_and_evicts_none_of_them() {
        let residency = Residency::new(100);
        let load =
            |name: &str, bytes| residency.get_or_load(&key(name), bytes, || Ok::<_, LoadError>(model(bytes)));
        let held = load("a", 60).unwrap();
        let never = load("huge", 101);
        assert!(matches!(never, Err(LoadError::NoRoom(NoRoom { never: true, .. }))));
        // While `a` is in use `b` waits; once it is let go of, it leaves.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| load("b", 60).map(drop));
            while !residency.table().entries.contains_key(&key("b")) {
                std::thread::yield_now();
            }
            assert_eq!(residency.fingerprints(), ["a"], "in use");
            drop(held);
            waiting.join().unwrap().unwrap();
        });
        assert_eq!(residency.fingerprints(), ["b"]);
        // What is being loaded counts already.
        let residency = Residency { patience: Duration::ZERO, ..Residency::new(100) };
        let inner = residency.get_or_load(&key("c"), 40, || {
            let other = residency.get_or_load(&key("d"), 90, || Ok::<_, LoadError>(model(90)));
            assert!(matches!(other, Err(LoadError::NoRoom(NoRoom { never: false, free: 0, .. }))));
            Ok::<_, LoadError>(model(40))
        });
        assert!(inner.is_ok());
    }

    #[test]
    fn many_who_ask_at_once_share_one_load() {
        let residency = Residency::new(100);
        let loads = AtomicU64::new(0);
        let start = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    residency.get_or_load(&key("a"), 1, || {
                        loads.fetch_add(1, Ordering::Relaxed);
                        Ok::<_, LoadError>(model(1))
                    })
                });
            }
        });
        assert_eq!(loads.into_inner(), 1);
        let failed = residency.get_or_load(&key("bad"), 1, || Err(LoadError::Damaged));
        assert!(matches!(failed, Err(LoadError::Damaged)) && residency.fingerprints() == ["a"]);
    }
}
