//! How fast a model reads, and whether somebody waits for it: what decides how much bulk work goes into one call of it.
//!
//! A backend's call cannot be interrupted without losing its work, so bulk work leaves room for online calls by being
//! cut small while they come, and runs in full batches while they do not.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::batching::Budget;

/// After the last interactive call bulk work keeps making room for so long.
const LINGER: Duration = Duration::from_secs(5);

/// Weight of the newest call in the average.
const NEWEST: f64 = 0.3;

/// Times are kept as milliseconds since this.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Of one model in memory; written by whoever calls it.
#[derive(Debug, Default)]
pub struct Pace {
    /// Tokens a second as the bits of an f64; 0: not measured.
    speed: AtomicU64,
    /// When the last interactive call came, in milliseconds plus one; 0: never.
    called: AtomicU64,
    /// How long an interactive call may wait behind bulk work, in milliseconds.
    wait: AtomicU64,
}

impl Pace {
    /// A call of the model read `tokens` in `time`.
    pub fn observe(&self, tokens: usize, time: Duration) {
        let newest = tokens as f64 / time.as_secs_f64().max(1e-6);
        let known = f64::from_bits(self.speed.load(Ordering::Relaxed));
        let speed = if known > 0.0 { known + NEWEST * (newest - known) } else { newest };
        self.speed.store(speed.to_bits(), Ordering::Relaxed);
    }

    /// An interactive call is there, which should not wait behind bulk work for longer than `wait`.
    pub fn called(&self, wait: Duration) {
        self.wait.store(wait.as_millis() as u64, Ordering::Relaxed);
        self.called.store(now() + 1, Ordering::Relaxed);
    }

    /// Tokens that the model reads in `time`, once it is known.
    pub fn tokens_in(&self, time: Duration) -> Option<usize> {
        let speed = f64::from_bits(self.speed.load(Ordering::Relaxed));
        (speed > 0.0).then_some((speed * time.as_secs_f64()) as usize)
    }

    /// Time in which the model reads `tokens`, once it is known.
    pub fn time_of(&self, tokens: usize) -> Option<Duration> {
        let speed = f64::from_bits(self.speed.load(Ordering::Relaxed));
        (speed > 0.0).then(|| Duration::from_secs_f64(tokens as f64 / speed))
    }

    /// How much bulk work may go into the next call of the model: all of `budget`, or what is done within the time
    /// that interactive calls may wait, while such calls come. A single row always may.
    pub fn bulk(&self, budget: Budget) -> Budget {
        let called = self.called.load(Ordering::Relaxed);
        if called == 0 || now() + 1 - called > LINGER.as_millis() as u64 {
            return budget;
        }
        let wait = Duration::from_millis(self.wait.load(Ordering::Relaxed));
        let tokens = self.tokens_in(wait).unwrap_or(1).max(1);
        Budget { tokens: tokens.min(budget.tokens), rows: budget.rows }
    }
}

fn now() -> u64 {
    EPOCH.elapsed().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_work_makes_room_while_somebody_waits() {
        let pace = Pace::default();
        let budget = Budget { tokens: 8192, rows: 64 };
        pace.observe(1000, Duration::from_millis(100));
        assert_eq!(pace.bulk(budget), budget, "nobody waits");
        pace.called(Duration::from_millis(20));
        assert_eq!(pace.bulk(budget), Budget { tokens: 200, rows: 64 });
        pace.called(Duration::ZERO);
        assert_eq!(pace.bulk(budget).tokens, 1, "a row at a time");
        pace.called(Duration::from_secs(60));
        assert_eq!(pace.bulk(budget), budget);
        assert_eq!(pace.tokens_in(Duration::from_secs(1)), Some(10_000));
        pace.observe(4000, Duration::from_millis(100));
        assert_eq!(pace.tokens_in(Duration::from_secs(1)), Some(19_000), "an average that follows");
    }
}
