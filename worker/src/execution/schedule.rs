//! How many updates a fine-tuning run makes, and the learning rate of each.

use cappy_proto::v1;

/// Which of the two published schedules a run follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// As the reference run behaved: computed over micro-batches, advanced once an update.
    Upstream,
    /// As it was meant: computed over updates.
    Corrected,
}

impl From<v1::Schedule> for Schedule {
    fn from(schedule: v1::Schedule) -> Self {
        match schedule {
            v1::Schedule::Upstream | v1::Schedule::Unspecified => Self::Upstream,
            v1::Schedule::Corrected => Self::Corrected,
        }
    }
}

/// The shape of a run: pure numbers, from the number of examples and the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Plan {
    /// Positions in the repeated or cut list that the run walks through; position `p` is example `p % examples`.
    pub rows: u64,
    /// Rows a micro-batch.
    pub batch: u64,
    /// Micro-batches an update.
    pub accumulate: u64,
    /// Optimizer steps.
    pub updates: u64,
}

impl Plan {
    /// As the reference does, whole micro-batches and whole accumulations only: what is left at the end would be
    /// accumulated and never applied, so it is not computed. A list too short for one update makes one update from
    /// all of it: a run that changes nothing would pass an untrained model off as a fine-tuned one.
    ///
    /// `train_size` 0: each example once. There must be an example, a batch and an accumulation of at least 1.
    pub fn new(examples: u64, train_size: u64, batch: u64, accumulate: u64) -> Self {
        let rows = if train_size == 0 { examples } else { train_size };
        let updates = rows / batch / accumulate;
        if updates == 0 {
            return Self { rows, batch, accumulate: rows.div_ceil(batch), updates: 1 };
        }
        Self { rows: updates * accumulate * batch, batch, accumulate, updates }
    }

    /// Positions of micro-batch `index` of the run.
    pub fn micro_batch(&self, index: u64) -> std::ops::Range<u64> {
        (index * self.batch)..((index + 1) * self.batch).min(self.rows)
    }
}

/// Rate of update `k` (from 0): up to `peak` over the warm-up, then down to 0 at the last step.
///
/// `upstream` counts the steps in micro-batches though it advances by updates, so the decay is never reached.
/// A single update gets the peak: both schedules would start it, and so end it, at 0.
/// Source: optax `linear_schedule` twice, joined, as the reference scripts build it.
pub fn learning_rate(schedule: Schedule, peak: f64, warmup: f64, plan: &Plan, k: u64) -> f64 {
    if plan.updates == 1 {
        return peak;
    }
    let steps = match schedule {
        Schedule::Upstream => plan.updates * plan.accumulate,
        Schedule::Corrected => plan.updates,
    };
    let warm = (warmup * steps as f64) as u64;
    if k < warm {
        peak * k as f64 / warm as f64
    } else {
        peak * (1.0 - (k - warm) as f64 / (steps - warm).max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_method_page() {
        let plan = Plan::new(90_000, 102_400, 8, 16);
        assert_eq!(plan, Plan { rows: 102_400, batch: 8, accumulate: 16, updates: 800 });
        let rate = |schedule, k| learning_rate(schedule, 2e-5, 0.1, &plan, k);
        for (schedule, k, expected) in [
            (Schedule::Upstream, 0, 0.0),
            (Schedule::Upstream, 640, 1e-5),
            (Schedule::Upstream, 799, 2e-5 * 799.0 / 1280.0),
            (Schedule::Corrected, 0, 0.0),
            (Schedule::Corrected, 40, 1e-5),
            (Schedule::Corrected, 80, 2e-5),
            (Schedule::Corrected, 440, 1e-5),
            (Schedule::Corrected, 799, 2e-5 / 720.0),
        ] {
            let rate = rate(schedule, k);
            assert!((rate - expected).abs() < 1e-17, "{schedule:?} {k}: {rate} is not {expected}");
        }
    }

    #[test]
    fn a_run_has_whole_updates_and_at_least_one() {
        for (examples, train_size, batch, accumulate, rows, updates, micro_batches) in [
            (100, 0, 8, 16, 100, 1, 13),
            (5, 0, 8, 1, 5, 1, 1),
            (5, 64, 8, 2, 64, 4, 2),
            (300, 0, 8, 16, 256, 2, 16),
            (300, 200, 8, 4, 192, 6, 4),
            (1, 1, 1, 1, 1, 1, 1),
        ] {
            let plan = Plan::new(examples, train_size, batch, accumulate);
            assert_eq!(
                (plan.rows, plan.updates, plan.accumulate),
                (rows, updates, micro_batches),
                "{plan:?}"
            );
            assert_eq!(plan.micro_batch(plan.updates * plan.accumulate - 1).end, plan.rows, "{plan:?}");
        }
    }

    #[test]
    fn one_update_alone_still_learns() {
        let plan = Plan::new(100, 0, 8, 16);
        for schedule in [Schedule::Upstream, Schedule::Corrected] {
            assert_eq!(learning_rate(schedule, 1e-3, 0.1, &plan, 0), 1e-3);
        }
    }
}
