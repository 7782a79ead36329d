//! How fast an endpoint is asked: so many requests at a time, so many a minute, none while it wants to be left alone.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How often a waiting request looks whether it was cancelled.
const POLL: Duration = Duration::from_millis(50);

/// What every request to one endpoint passes through.
pub struct Gate {
    state: Mutex<State>,
    left: Condvar,
    at_once: usize,
}

struct State {
    inside: usize,
    /// Between the starts of two requests.
    interval: Duration,
    /// Nobody starts before.
    next: Instant,
}

/// A request under way; the next may come when it is dropped.
pub struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.lock().inside -= 1;
        self.0.left.notify_one();
    }
}

impl Gate {
    /// At most `at_once` requests at a time.
    pub fn new(at_once: usize) -> Self {
        let state = State { inside: 0, interval: Duration::ZERO, next: Instant::now() };
        Self { state: Mutex::new(state), left: Condvar::new(), at_once: at_once.max(1) }
    }

    /// At most so many requests a minute, evenly; 0: any.
    pub fn limit(&self, requests_per_minute: u32) {
        self.lock().interval = match requests_per_minute {
            0 => Duration::ZERO,
            requests => Duration::from_secs(60) / requests,
        };
    }

    /// Leaves the endpoint alone for a while.
    pub fn pause(&self, time: Duration) {
        let mut state = self.lock();
        state.next = state.next.max(Instant::now() + time);
    }

    /// Waits until a request may start; `None` when `stop` is set first.
    pub fn enter(&self, stop: &AtomicBool) -> Option<Inside<'_>> {
        let mut state = self.lock();
        loop {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            let now = Instant::now();
            let wait = if state.inside >= self.at_once {
                POLL
            } else if now < state.next {
                (state.next - now).min(POLL)
            } else {
                state.inside += 1;
                state.next = now + state.interval;
                return Some(Inside(self));
            };
            state = self.left.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_bounded_spaced_and_stopped() {
        let gate = Gate::new(2);
        let (go, stop) = (AtomicBool::new(false), AtomicBool::new(true));
        let first = gate.enter(&go).unwrap();
        let _second = gate.enter(&go).unwrap();
        assert!(gate.enter(&stop).is_none(), "two are inside");
        drop(first);
        gate.limit(60 * 100);
        let started = Instant::now();
        for _ in 0..4 {
            drop(gate.enter(&go).unwrap());
        }
        assert!(started.elapsed() >= Duration::from_millis(30), "10 ms between them");
        gate.pause(Duration::from_millis(40));
        let started = Instant::now();
        drop(gate.enter(&go).unwrap());
        assert!(started.elapsed() >= Duration::from_millis(35));
        gate.pause(Duration::from_secs(600));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.enter(&go).is_none());
            go.store(true, Ordering::Relaxed);
            assert!(waiting.join().unwrap());
        });
    }
}
