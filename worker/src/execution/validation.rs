//! How good the weights are on held-out pairs, and when that says to stop.

use std::path::PathBuf;

use cappy_plugin_abi::{Failure, TokenRows, Trainer};

use super::{ExecutionError, Progress, examples::Examples};
use crate::{
    batching::{Budget, halving, pack},
    tokenization::{EncodedRow, ModelTokenizer},
};

/// Rows that are tokenized and sorted together.
const WINDOW_ROWS: u64 = 512;

/// Evaluations in a run whose task does not say how often.
const DEFAULT_EVALUATIONS: u64 = 10;

/// What the weights after some update give on the validation rows.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Evaluation {
    /// Updates made so far.
    pub update: u64,
    /// Mean squared error of the raw logits against the labels, dropout off.
    pub loss: f64,
    /// Rank correlation of scores and labels; nothing where either side does not vary.
    pub spearman: Option<f64>,
}

/// The evaluation with the lowest loss; the first of equals.
pub fn best(evaluations: &[Evaluation]) -> Option<&Evaluation> {
    evaluations.iter().min_by(|a, b| a.loss.total_cmp(&b.loss))
}

/// Whether the last `patience` evaluations (0: never) have all failed to lower the loss.
pub fn exhausted(evaluations: &[Evaluation], patience: u32) -> bool {
    let Some(best) = best(evaluations).map(|best| best.update) else { return false };
    let since = evaluations.iter().filter(|evaluation| evaluation.update > best).count();
    patience > 0 && since as u64 >= u64::from(patience)
}

/// Held-out pairs, and how often they are looked at.
pub(super) struct Validation {
    examples: Examples,
    every: u64,
    updates: u64,
}

impl Validation {
    /// For a run of `updates` updates; an evaluation after each `every` of them (0: a tenth of the run) and at the end.
    /// `None` without files.
    ///
    /// # Errors
    /// A wrong row, named; files without rows.
    pub fn open(paths: Vec<PathBuf>, every: u64, updates: u64) -> Result<Option<Self>, ExecutionError> {
        if paths.is_empty() {
            return Ok(None);
        }
        let named = |error: ExecutionError| ExecutionError {
            message: format!("validation: {}", error.message),
            ..error
        };
        let examples = Examples::open(paths).map_err(named)?;
        if examples.len() == 0 {
            return Err(ExecutionError::permanent("invalid_argument", "there are no validation rows"));
        }
        let every = if every == 0 { updates.div_ceil(DEFAULT_EVALUATIONS) } else { every };
        Ok(Some(Self { examples, every, updates }))
    }

    /// Whether to look after this many updates.
    pub fn is_due(&self, updates: u64) -> bool {
        updates.is_multiple_of(self.every) || updates == self.updates
    }

    /// Scores every row. Sums run in the order of the rows, so that batches do not matter.
    ///
    /// # Errors
    /// The backend's failure; `not_finite` where a score is no number.
    pub fn evaluate(
        &mut self,
        update: u64,
        trainer: &mut dyn Trainer,
        tokenizer: &ModelTokenizer,
        max_tokens: usize,
        budget: Budget,
        progress: &Progress,
    ) -> Result<Evaluation, ExecutionError> {
        let rows = self.examples.len();
        let (mut scores, mut labels) = (Vec::new(), Vec::new());
        for start in (0..rows).step_by(WINDOW_ROWS as usize) {
            let mut encoded = Vec::new();
            for index in start..rows.min(start + WINDOW_ROWS) {
                let (row, label) = self.examples.encoded(index, tokenizer, max_tokens)?;
                encoded.push(row);
                labels.push(label);
            }
            scores.extend(score(trainer, &encoded, start, budget, progress)?);
        }
        let squares = scores.iter().zip(&labels).map(|(&y, &t)| (f64::from(y) - f64::from(t)).powi(2));
        let loss = squares.sum::<f64>() / rows as f64;
        Ok(Evaluation { update, loss, spearman: spearman(&scores, &labels) })
    }
}

fn score(
    trainer: &mut dyn Trainer,
    rows: &[EncodedRow],
    first_row: u64,
    budget: Budget,
    progress: &Progress,
) -> Result<Vec<f32>, Failure> {
    let lengths: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
    let mut scores = vec![f32::NAN; rows.len()];
    for batch in pack(&lengths, budget) {
        halving(&batch, &mut |part| {
            let mut tokens = TokenRows::new();
            for &at in part {
                tokens.push(&rows[at].ids);
                tokens.type_ids.extend_from_slice(&rows[at].type_ids);
            }
            let found = trainer.score(tokens.view(), progress)?;
            if found.len() != part.len() {
                let message = format!("the backend gave {} scores for {} pairs", found.len(), part.len());
                return Err(Failure::internal(message));
            }
            for (&at, score) in part.iter().zip(found) {
                if !score.is_finite() {
                    let row = first_row + at as u64;
                    let message = format!(
                        "the score of validation row {row} (from 0) is {score}: lower the learning rate"
                    );
                    return Err(Failure::not_finite(message));
                }
                scores[at] = score;
            }
            Ok(())
        })?;
    }
    Ok(scores)
}

/// Spearman's rank correlation, ties sharing their mean rank; `None` if either side does not vary.
fn spearman(xs: &[f32], ys: &[f32]) -> Option<f64> {
    let (xs, ys) = (ranks(xs), ranks(ys));
    // Ranks always average to this, ties or not.
    let mean = (xs.len() as f64 + 1.0) / 2.0;
    let (mut covariance, mut x_variance, mut y_variance) = (0.0, 0.0, 0.0);
    for (x, y) in xs.iter().zip(&ys) {
        covariance += (x - mean) * (y - mean);
        x_variance += (x - mean).powi(2);
        y_variance += (y - mean).powi(2);
    }
    let scale = (x_variance * y_variance).sqrt();
    (scale > 0.0).then(|| covariance / scale)
}

fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = before as f64 + (tied.len() as f64 + 1.0) / 2.0;
        tied.iter().for_each(|&at| ranks[at] = rank);
        before += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(losses: &[f64]) -> Vec<Evaluation> {
        (1..).zip(losses).map(|(update, &loss)| Evaluation { update, loss, spearman: None }).collect()
    }

    #[test]
    fn patience_counts_evaluations_without_a_lower_loss() {
        for (seen, patience, best_update, over) in [
            (&[][..], 1, None, false),
            (&[0.5], 1, Some(1), false),
            (&[0.5, 0.5], 1, Some(1), true),
            (&[0.5, 0.6, 0.4], 2, Some(3), false),
            (&[0.5, 0.4, 0.6, 0.7], 2, Some(2), true),
            (&[0.5, 0.6, 0.7, 0.8], 0, Some(1), false),
        ] {
            let seen = losses(seen);
            assert_eq!(best(&seen).map(|best| best.update), best_update, "{seen:?}");
            assert_eq!(exhausted(&seen, patience), over, "{seen:?}");
        }
    }

    /// Expected values follow from the ranks by hand.
    #[test]
    fn spearman_shares_ranks_between_ties() {
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 15.0]), Some(0.5));
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), Some(-1.0));
        let tied = spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 1.0, 2.0, 3.0]).unwrap();
        assert!((tied - 0.8333333333333334).abs() < 1e-12, "{tied}");
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[], &[]), None);
    }
}
