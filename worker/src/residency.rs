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
    time::Duration,
};

use cappy_plugin_abi::{Control, Failure, Generator, ModelInfo, Scorer};

use crate::tokenization::ModelTokenizer;

/// How often a waiting reservation looks whether it was cancelled.
const WAIT_POLL: Duration = Duration::from_millis(200);

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
        Self { fingerprint, info, backend, tokenizer, model: tokio::sync::Mutex::new(model) }
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
    clock: AtomicU64,
    table: Mutex<Table>,
    freed: Condvar,
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
}

impl Residency {
    /// Nothing in memory yet. `budget_bytes`: of weights, and of reservations.
    pub fn new(budget_bytes: u64) -> Self {
        Self { budget_bytes, clock: AtomicU64::new(0), table: Mutex::default(), freed: Condvar::new() }
    }

    /// The model of `key`, loaded by `load` if it is not in memory; `estimate_bytes` of weights are made room for.
    ///
    /// # Errors
    /// That of `load`; the next caller tries again.
    pub fn get_or_load<E>(
        &self,
        key: &ModelKey,
        estimate_bytes: u64,
        load: impl FnOnce() -> Result<Loaded, E>,
    ) -> Result<Loaded, E> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let cell = {
            let mut table = self.table();
            let entry =
                table.entries.entry(key.clone()).or_insert_with(|| Entry { cell: Arc::default(), used: now });
            entry.used = now;
            Arc::clone(&entry.cell)
        };
        let mut loaded = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = &*loaded {
            return Ok(model.clone());
        }
        let over = self.table().make_room(self.budget_bytes, estimate_bytes);
        if over > 0 {
            tracing::warn!(bytes = over, "models in use leave too little memory for another");
        }
        match load() {
            Ok(model) => {
                *loaded = Some(model.clone());
                Ok(model)
            }
            Err(error) => {
                drop(loaded);
                drop(cell);
                self.table().forget_empty(key);
                Err(error)
            }
        }
    }

    /// A model in memory with this content, role and number format, on `backend` (empty: any).
    pub fn find(&self, fingerprint: &str, role: Role, backend: &str, dtype: &str) -> Option<Loaded> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut table = self.table();
        let (_, entry) = table.entries.iter_mut().find(|(key, entry)| {
            key.fingerprint == fingerprint
                && key.role == role
                && key.dtype == dtype
                && (backend.is_empty() || key.backend == backend)
                && entry.cell.try_lock().is_ok_and(|cell| cell.is_some())
        })?;
        entry.used = now;
        entry.cell.try_lock().ok()?.clone()
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
            let over = (self.resident_bytes() + self.reserved_bytes + bytes).saturating_sub(budget);
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

    fn resident_bytes(&self) -> u64 {
        self.entries
            .values()
            .filter_map(|entry| entry.cell.try_lock().ok()?.as_ref().map(Loaded::bytes))
            .sum()
    }

    fn forget_empty(&mut self, key: &ModelKey) {
        if self.entries.get(key).is_some_and(|entry| {
            Arc::strong_count(&entry.cell) == 1 && entry.cell.try_lock().is_ok_and(|cell| cell.is_none())
        }) {
            self.entries.remove(key);
        }
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

    fn key(name: &str) -> ModelKey {
        let [fingerprint, backend, dtype] = [name, "echo", "auto"].map(str::to_owned);
        ModelKey { fingerprint, role: Role::Scorer, backend, dtype }
    }

    #[test]
    fn the_idle_model_used_longest_ago_makes_room() {
        let residency = Residency::new(100);
        let load =
            |name: &str| residency.get_or_load(&key(name), 40, || Ok::<_, Failure>(model(40))).unwrap();
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
                        Ok::<_, Failure>(model(1))
                    })
                });
            }
        });
        assert_eq!(loads.into_inner(), 1);
        let failed = residency.get_or_load(&key("bad"), 1, || Err(Failure::bad_model("damaged")));
        assert!(failed.is_err() && residency.fingerprints() == ["a"]);
    }
}
