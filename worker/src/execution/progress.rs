//! How far a shard is, and whether it should go on: written by the thread that runs it, read by the session.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use cappy_plugin_abi::Control;

/// Shared between a running shard and the session that leased it.
#[derive(Debug, Default)]
pub struct Progress {
    cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    activity: Mutex<String>,
}

impl Progress {
    /// Asks the shard to end soon.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Sets units done and in all, and what is going on.
    pub fn set(&self, done: u64, total: u64, activity: &str) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        activity.clone_into(&mut self.activity.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Sets what is going on.
    pub fn say(&self, activity: &str) {
        activity.clone_into(&mut self.activity.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// (units done, units in all, activity).
    pub fn get(&self) -> (u64, u64, String) {
        let activity = self.activity.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed), activity)
    }

    /// A view in which `rows` rows after the first `before` of `total` are worked on.
    pub(super) fn window(&self, before: u64, rows: u64, total: u64) -> Window<'_> {
        Window { progress: self, before, rows, total }
    }
}

impl Control for Progress {
    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

/// Part of a shard: its progress is scaled into the whole.
pub(super) struct Window<'a> {
    progress: &'a Progress,
    before: u64,
    rows: u64,
    total: u64,
}

impl Control for Window<'_> {
    fn cancelled(&self) -> bool {
        self.progress.cancelled()
    }

    fn progress(&self, done: u64, total: u64) {
        let rows = self.before + self.rows * done / total.max(1);
        self.progress.done.store(rows, Ordering::Relaxed);
        self.progress.total.store(self.total, Ordering::Relaxed);
    }
}
