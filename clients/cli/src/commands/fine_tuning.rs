//! Flags of every verb that fine-tunes a scorer, and what they mean when they are not given.

use cappy_demo::Settings;
use cappy_proto::v1::{FineTuning, RowOrder, Schedule};
use clap::{Args, ValueEnum};

use crate::defaults;

/// The seed's settings; its number of rows is of a benchmark subset.
pub const SEED_SETTINGS: Settings = Settings {
    train_size: defaults::TRAIN_SIZE,
    learning_rate: defaults::LEARNING_RATE,
    batch_size: defaults::BATCH_SIZE,
    accumulate: defaults::ACCUMULATE,
    warmup: defaults::WARMUP,
    dropout: defaults::DROPOUT,
    schedule: "upstream",
};

/// How the scorer is fine-tuned; flags that are not given take the seed's values.
#[derive(Clone, Debug, Args)]
pub struct FineTuningFlags {
    /// Peak learning rate [default: 2e-5]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    learning_rate: Option<f64>,
    /// Rows a micro-batch [default: 8]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Micro-batches an update [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    accumulate: Option<u32>,
    /// Share of the updates spent warming up [default: 0.1]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    warmup: Option<f64>,
    /// Learning rates as the seed's run had them (never decaying), or as it meant them (warm-up, then linear decay)
    #[arg(long, value_enum, value_name = "NAME")]
    schedule: Option<ScheduleName>,
    /// Dropout probability [default: 0.1]
    #[arg(long, value_name = "P", value_parser = share)]
    dropout: Option<f64>,
}

/// See [`FineTuningFlags::schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScheduleName {
    /// The default: reproduces the seed.
    Upstream,
    /// Warm-up, then linear decay to 0.
    Corrected,
}

impl FineTuningFlags {
    /// As the wire has it; `unset` is what flags mean that were not given.
    pub fn settings(&self, unset: &Settings, seed: u64) -> FineTuning {
        let schedule = match self.schedule {
            Some(ScheduleName::Upstream) => Schedule::Upstream,
            Some(ScheduleName::Corrected) => Schedule::Corrected,
            None => schedule_named(unset.schedule).expect("settings of our own name a schedule"),
        };
        FineTuning {
            learning_rate: self.learning_rate.unwrap_or(unset.learning_rate),
            batch_size: self.batch_size.unwrap_or(unset.batch_size),
            accumulate: self.accumulate.unwrap_or(unset.accumulate),
            train_size: unset.train_size,
            warmup: self.warmup.unwrap_or(unset.warmup),
            schedule: schedule.into(),
            dropout: self.dropout.unwrap_or(unset.dropout),
            order: RowOrder::Shuffled.into(),
            seed,
            max_tokens: defaults::MAX_PAIR_TOKENS,
            evaluate_every: 0,
            patience: 0,
        }
    }
}

/// The schedule of a name, if there is one.
pub fn schedule_named(name: &str) -> Option<Schedule> {
    match name {
        "upstream" => Some(Schedule::Upstream),
        "corrected" => Some(Schedule::Corrected),
        _ => None,
    }
}

/// How one run over own examples goes; flags of the verbs that train a single scorer.
#[derive(Clone, Debug, Args)]
pub struct RunFlags {
    /// Examples seen in all: the list is repeated or cut to this [default: each once]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "updates")]
    train_size: Option<u64>,
    /// Updates in all, instead of --train-size
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    updates: Option<u64>,
    /// Examples in a shuffled order (keyed by the seed), or as they come
    #[arg(long, value_enum, value_name = "NAME", default_value_t = OrderName::Shuffled)]
    order: OrderName,
    /// Updates between two evaluations on the validation rows [default: a tenth of the run]
    #[arg(long, value_name = "N", requires = "validation", value_parser = clap::value_parser!(u64).range(1..))]
    evaluate_every: Option<u64>,
    /// Stop after this many evaluations in a row without a lower validation loss [default: never]
    #[arg(long, value_name = "N", requires = "validation", value_parser = clap::value_parser!(u32).range(1..))]
    patience: Option<u32>,
}

/// See [`RunFlags::order`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OrderName {
    /// Shuffled with the seed.
    Shuffled,
    /// As the files have them.
    Given,
}

impl RunFlags {
    /// The settings with these flags applied.
    pub fn apply(&self, settings: FineTuning) -> FineTuning {
        let order = match self.order {
            OrderName::Shuffled => RowOrder::Shuffled,
            OrderName::Given => RowOrder::Given,
        };
        let rows_an_update = u64::from(settings.batch_size) * u64::from(settings.accumulate);
        let train_size = match (self.train_size, self.updates) {
            (Some(rows), _) => rows,
            (None, Some(updates)) => updates.saturating_mul(rows_an_update),
            (None, None) => 0,
        };
        FineTuning {
            train_size,
            order: order.into(),
            evaluate_every: self.evaluate_every.unwrap_or(0),
            patience: self.patience.unwrap_or(0),
            ..settings
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x: &f64| x.is_finite() && *x > 0.0)
        .ok_or_else(|| "expected a number above 0".into())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x| (0.0..=1.0).contains(x))
        .ok_or_else(|| "expected a number from 0 to 1".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        tuning: FineTuningFlags,
        #[command(flatten)]
        run: RunFlags,
        #[arg(long)]
        validation: bool,
    }

    #[test]
    fn flags_become_a_run() {
        let of = |line: &str| {
            let line = Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace()))?;
            Ok::<_, clap::Error>(line.run.apply(line.tuning.settings(&SEED_SETTINGS, 7)))
        };
        let seed = of("").unwrap();
        assert_eq!((seed.learning_rate, seed.batch_size, seed.accumulate, seed.train_size), (2e-5, 8, 16, 0));
        assert_eq!((seed.schedule(), seed.order(), seed.seed), (Schedule::Upstream, RowOrder::Shuffled, 7));
        let own =
            of("--updates 20 --batch-size 4 --accumulate 2 --order given --schedule corrected").unwrap();
        assert_eq!(
            (own.train_size, own.order(), own.schedule()),
            (160, RowOrder::Given, Schedule::Corrected)
        );
        let stopped = of("--validation --evaluate-every 5 --patience 3 --train-size 100").unwrap();
        assert_eq!((stopped.evaluate_every, stopped.patience, stopped.train_size), (5, 3, 100));
        for bad in [
            "--updates 3 --train-size 7",
            "--patience 3",
            "--evaluate-every 3",
            "--dropout 1.5",
            "--learning-rate 0",
            "--learning-rate NaN",
            "--updates 0",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
