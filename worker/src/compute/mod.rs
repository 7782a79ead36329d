//! The numbers of a call: texts in, scores, responses and likelihoods out. Shards and the inference service both
//! come here; what they add is where rows come from and where results go.

mod generate;
mod likelihood;
mod score;

use cappy_plugin_abi::{Control, Failure, TokenRows};

pub use generate::{
    Decodings, GeneratedRow, GeneratedRows, GenerationInput, Sample, encode_sources, generate,
    generate_batch, row_keys,
};
pub use likelihood::{LikelihoodInput, Likelihoods, encode_targets, likelihood_batch, log_likelihoods};
pub use score::{ScoreInput, ScoredRows, check_labels, encode_pairs, score, score_batch};

use crate::{
    batching::Budget,
    tokenization::{EncodedRow, TokenizationError},
};

/// Tokens kept of a pair or source when nothing is said.
pub const DEFAULT_MAX_TOKENS: usize = 512;

/// Tokens kept of a response whose likelihood is computed, the end token included.
pub const DEFAULT_MAX_TARGET_TOKENS: usize = 64;

/// Fewer rows are tokenized by the caller's own thread: the others may be busy with a batch.
const MIN_ROWS_PER_THREAD: usize = 8;

/// How large the batches of each kind of call are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Pairs of one scorer call.
    pub score: Budget,
    /// Sources of one generator call; each is decoded many times over.
    pub generate: Budget,
}

impl Budgets {
    /// For a device: enough at once to keep it busy, and no more, so that calls in between need not wait long.
    #[must_use]
    pub fn of(device: &str) -> Self {
        if device == "cpu" {
            return Self {
                score: Budget { tokens: 8192, rows: 1024 },
                generate: Budget { tokens: 4096, rows: 32 },
            };
        }
        Self { score: Budget { tokens: 65_536, rows: 4096 }, generate: Budget { tokens: 32_768, rows: 128 } }
    }
}

/// The limit in force: what was asked for (0: the default), and no more than the model takes (0: any).
fn token_limit(asked: u32, default: usize, model: u32) -> usize {
    let asked = if asked == 0 { default } else { asked as usize };
    if model == 0 { asked } else { asked.min(model as usize) }
}

/// Passes cancellation on to a backend; the caller reports progress itself, in its own units.
struct Quiet<'a>(&'a dyn Control);

impl Control for Quiet<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

fn check_cancelled(control: &dyn Control) -> Result<(), Failure> {
    if control.cancelled() { Err(Failure::cancelled("cancelled")) } else { Ok(()) }
}

/// A row that cannot be tokenized.
#[derive(Debug)]
pub struct RefusedRow {
    /// Its index.
    pub row: usize,
    /// Why.
    pub error: TokenizationError,
}

impl RefusedRow {
    /// As a failure that names the row, counted from the first one of the input.
    pub fn failure(self, first_row: u64) -> Failure {
        Failure::invalid_argument(format!("row {}: {}", first_row + self.row as u64, self.error))
    }
}

fn push(rows: &mut TokenRows, row: &EncodedRow) {
    rows.push(&row.ids);
    rows.type_ids.extend_from_slice(&row.type_ids);
}
