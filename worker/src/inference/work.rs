//! The three things that models in memory do for online calls, as units of a line.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use cappy_plugin_abi::{Control, Failure, Generator, Scorer};

use super::{line::Work, queue::Unit};
use crate::{
    batching::Budget,
    compute::{self, Decodings, GeneratedRow},
    pace::Pace,
    residency::Resident,
    tokenization::EncodedRow,
};

/// Scores pairs.
pub struct Scoring {
    /// The model.
    pub scorer: Arc<Resident<dyn Scorer>>,
    /// The largest batch.
    pub budget: Budget,
}

impl Unit for EncodedRow {
    fn tokens(&self) -> usize {
        self.ids.len()
    }
    fn joins(&self, _other: &Self) -> bool {
        true
    }
}

impl Work for Scoring {
    type Unit = EncodedRow;
    type Answer = f32;

    fn run(&self, units: &[Arc<EncodedRow>], control: &dyn Control) -> Result<Vec<f32>, Failure> {
        compute::score_batch(&self.scorer, units.iter().map(|unit| &**unit), control)
    }
    fn pace(&self) -> &Pace {
        &self.scorer.pace
    }
    fn budget(&self) -> Budget {
        self.budget
    }
}

/// Answers sources.
pub struct Generating {
    /// The model.
    pub generator: Arc<Resident<dyn Generator>>,
    /// The largest batch.
    pub budget: Budget,
}

/// How sources are answered. Equal settings share batches.
#[derive(Debug)]
pub struct Answering {
    decodings: Decodings,
    log_likelihood: bool,
    /// Everything above in one text: floats compare by their digits.
    text: String,
}

impl Answering {
    /// All decodings, with the likelihoods of what comes out where asked for.
    pub fn new(decodings: Decodings, log_likelihood: bool) -> Self {
        let text = format!("{decodings:?} {log_likelihood}");
        Self { decodings, log_likelihood, text }
    }

    /// The decodings.
    pub fn decodings(&self) -> &Decodings {
        &self.decodings
    }
}

/// A source with everything that its answers depend on.
#[derive(Debug)]
pub struct Prompt {
    /// Token ids.
    pub source: EncodedRow,
    /// Randomness key of the row.
    pub key: u64,
    /// How it is answered.
    pub answering: Arc<Answering>,
}

impl PartialEq for Prompt {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && self.source == other.source && self.joins(other)
    }
}

impl Eq for Prompt {}

impl Hash for Prompt {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.source, self.key, &self.answering.text).hash(state);
    }
}

impl Unit for Prompt {
    fn tokens(&self) -> usize {
        self.source.ids.len()
    }
    fn joins(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.answering, &other.answering) || self.answering.text == other.answering.text
    }
}

impl Work for Generating {
    type Unit = Prompt;
    type Answer = GeneratedRow;

    fn run(&self, units: &[Arc<Prompt>], control: &dyn Control) -> Result<Vec<GeneratedRow>, Failure> {
        let Some(first) = units.first() else { return Ok(Vec::new()) };
        let rows = units.iter().map(|unit| (&unit.source, unit.key));
        let Answering { decodings, log_likelihood, .. } = &*first.answering;
        compute::generate_batch(&self.generator, rows, decodings, *log_likelihood, control)
    }
    fn pace(&self) -> &Pace {
        &self.generator.pace
    }
    fn budget(&self) -> Budget {
        self.budget
    }
}

/// Judges targets.
pub struct Judging {
    /// The model.
    pub generator: Arc<Resident<dyn Generator>>,
    /// The largest batch.
    pub budget: Budget,
}

/// A source and the response whose likelihood is asked for.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Token ids.
    pub source: EncodedRow,
    /// Token ids.
    pub target: EncodedRow,
}

impl Unit for Target {
    fn tokens(&self) -> usize {
        self.source.ids.len() + self.target.ids.len()
    }
    fn joins(&self, _other: &Self) -> bool {
        true
    }
}

impl Work for Judging {
    type Unit = Target;
    /// Sum and mean.
    type Answer = (f64, f64);

    fn run(&self, units: &[Arc<Target>], control: &dyn Control) -> Result<Vec<(f64, f64)>, Failure> {
        let pairs = units.iter().map(|unit| (&unit.source, &unit.target));
        compute::likelihood_batch(&self.generator, pairs, control)
    }
    fn pace(&self) -> &Pace {
        &self.generator.pace
    }
    fn budget(&self) -> Budget {
        self.budget
    }
}
