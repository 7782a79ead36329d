//! The store's clock. It follows the wall clock at start and a monotonic clock from then on, so that a wall
//! clock set forward or back while the coordinator runs neither expires leases nor keeps them alive.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::Millis;

#[derive(Clone, Debug)]
pub(crate) struct Clock {
    base: Millis,
    started: Instant,
    /// Added by tests instead of waiting.
    advanced: Arc<AtomicI64>,
    /// Stopped by tests, so that a slow machine changes nothing.
    frozen: Arc<AtomicBool>,
}

impl Clock {
    /// Starts at the wall clock's time, but never before `latest`, the newest time that the store has seen.
    pub(crate) fn start(latest: Millis) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let base = Millis::try_from(wall.as_millis()).unwrap_or(Millis::MAX / 2).max(latest);
        Self { base, started: Instant::now(), advanced: Arc::default(), frozen: Arc::default() }
    }

    pub(crate) fn now(&self) -> Millis {
        let running = !self.frozen.load(Ordering::Relaxed);
        let elapsed = if running { millis(self.started.elapsed()) } else { 0 };
        self.base + elapsed + self.advanced.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn advance(&self, by: Duration) {
        self.advanced.fetch_add(millis(by), Ordering::Relaxed);
    }
}

/// Whole milliseconds of a duration.
pub(crate) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX / 4)
}
