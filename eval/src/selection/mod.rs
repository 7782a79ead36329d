//! The choice among the candidates of a row, and how good it is: ROUGE-L of the chosen, of each baseline's choice, and
//! of the best there was.
//!
//! [`select`] makes a [`SubsetResult`], whose file form is the reference implementation's `{"rougeL": ...}` with more
//! beside it; [`baselines`] needs no scores. [`statistics`] holds the estimates.

mod result;
pub mod statistics;

use indexmap::IndexMap;
use serde_json::{Map, Value};

pub use result::{PerRow, ResultFileError, SubsetResult};

use crate::rouge::RougeScorer;
use crate::rows::{Candidate, GeneratedRow};

/// The name of the baseline that takes the candidate with the highest sum of token log-probabilities.
pub const SELF_SCORE_SUM: &str = "self_score_sum";
/// The name of the baseline that takes the candidate with the highest mean token log-probability.
pub const SELF_SCORE_MEAN: &str = "self_score_mean";
/// The decoding that the share of the closed gap is measured from.
pub const BEAM: &str = "beam4";

/// Resamples of a bootstrap interval.
pub const DEFAULT_RESAMPLES: usize = 1000;

/// Why nothing could be chosen.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SelectionError {
    /// The split is empty.
    #[error("there are no validation rows to choose for")]
    NoRows,
    /// A row has nothing to choose from.
    #[error("row {row} has no candidates; generate them first")]
    NoCandidates {
        /// Position in the file, from 0.
        row: usize,
    },
    /// Scores and candidates do not belong together.
    #[error(
        "row {row} has {candidates} candidates but {scores} scores; score the same generations that are selected from"
    )]
    ScoreCount {
        /// Position in the file, from 0.
        row: usize,
        /// Candidates of the row.
        candidates: usize,
        /// Scores given for it.
        scores: usize,
    },
    /// Scores for another number of rows.
    #[error("there are {rows} rows but scores for {scored}")]
    RowCount {
        /// Rows.
        rows: usize,
        /// Rows with scores.
        scored: usize,
    },
    /// A score that cannot be compared.
    #[error(
        "the score of candidate {candidate} of row {row} is not a number; the scorer's weights or its training are broken"
    )]
    NotANumber {
        /// Position in the file, from 0.
        row: usize,
        /// Position among the row's candidates, from 0.
        candidate: usize,
    },
    /// Nothing to measure against.
    #[error("no row has references to measure a choice against")]
    NoReferences,
}

/// What [`select`] is told beside rows and scores; goes into the result.
#[derive(Clone, Debug, Default)]
pub struct SelectionOptions {
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Rows whose instruction did not fit the generator or scorer whole, if known.
    pub truncated_rows: Option<u64>,
    /// How the result came about (schedule, train size, models ...), for the reader of the file.
    pub settings: Map<String, Value>,
}

/// The position of the highest score; the first wins ties. `None` for no scores.
///
/// # Errors
/// The position of the first score that is not a number.
pub fn best(scores: &[f32]) -> Result<Option<usize>, usize> {
    if let Some(at) = scores.iter().position(|score| score.is_nan()) {
        return Err(at);
    }
    Ok(first_maximum(scores.iter().copied()))
}

/// Chooses the best-scored candidate of every row and measures the choice.
///
/// `rows`: the generated validation rows of one subset; `scores[row][candidate]`: raw scorer logits in the order of
/// [`GeneratedRow::candidates`]. Rows without references have a choice but count in no mean.
///
/// # Errors
/// See [`SelectionError`].
pub fn select(
    rows: &[GeneratedRow],
    scores: &[Vec<f32>],
    options: SelectionOptions,
) -> Result<SubsetResult, SelectionError> {
    if rows.len() != scores.len() {
        return Err(SelectionError::RowCount { rows: rows.len(), scored: scores.len() });
    }
    let measured = Measured::new(rows)?;
    let mut chosen = Vec::with_capacity(rows.len());
    for (row, (candidates, scores)) in measured.rouge_l.iter().zip(scores).enumerate() {
        if candidates.len() != scores.len() {
            return Err(SelectionError::ScoreCount {
                row,
                candidates: candidates.len(),
                scores: scores.len(),
            });
        }
        let best = best(scores).map_err(|candidate| SelectionError::NotANumber { row, candidate })?;
        chosen.push(best.ok_or(SelectionError::NoCandidates { row })?);
    }

    let per_row = measured.of(&chosen);
    let mut result = measured.baselines(rows);
    result.rouge_l = mean(&per_row);
    result.gap_closed = gap_closed(&result);
    result.confidence_95 = Some(statistics::bootstrap_mean(&[&per_row], DEFAULT_RESAMPLES, options.seed));
    result.spearman = statistics::spearman(
        measured.counted(scores).flatten().copied().map(f64::from),
        measured.counted(&measured.rouge_l).flatten().copied(),
    );
    let within: Vec<f64> = measured
        .counted(scores)
        .zip(measured.counted(&measured.rouge_l))
        .filter_map(|(s, r)| statistics::spearman(s.iter().copied().map(f64::from), r.iter().copied()))
        .collect();
    result.spearman_within_rows = (!within.is_empty()).then(|| mean(&within));
    result.truncated_share = options.truncated_rows.map(|truncated| truncated as f64 / rows.len() as f64);
    result.settings = options.settings;
    result.per_row = Some(PerRow { chosen: chosen.iter().map(|&i| i as u32).collect(), rouge_l: per_row });
    Ok(result)
}

/// The baselines and the oracle alone, from generations that nobody scored; `rougeL` is then not a number.
///
/// # Errors
/// See [`SelectionError`].
pub fn baselines(rows: &[GeneratedRow]) -> Result<SubsetResult, SelectionError> {
    Ok(Measured::new(rows)?.baselines(rows))
}

/// ROUGE-L of every candidate.
struct Measured {
    /// By row, then candidate; zeros where there are no references.
    rouge_l: Vec<Vec<f64>>,
    has_references: Vec<bool>,
}

impl Measured {
    fn new(rows: &[GeneratedRow]) -> Result<Self, SelectionError> {
        if rows.is_empty() {
            return Err(SelectionError::NoRows);
        }
        let mut rouge = RougeScorer::new();
        let mut rouge_l = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            let of_row: Vec<f64> = row
                .candidates()
                .map(|c| rouge.rouge_l(&row.row.references, &c.sample.response).unwrap_or(0.0))
                .collect();
            if of_row.is_empty() {
                return Err(SelectionError::NoCandidates { row: at });
            }
            rouge_l.push(of_row);
        }
        let has_references: Vec<bool> = rows.iter().map(|row| !row.row.references.is_empty()).collect();
        if !has_references.contains(&true) {
            return Err(SelectionError::NoReferences);
        }
        Ok(Self { rouge_l, has_references })
    }

    /// The items of the rows that have references.
    fn counted<'a, T>(&'a self, items: &'a [T]) -> impl Iterator<Item = &'a T> {
        items.iter().zip(&self.has_references).filter(|(_, has)| **has).map(|(item, _)| item)
    }

    /// ROUGE-L of one candidate for each row that has references.
    fn of(&self, chosen: &[usize]) -> Vec<f64> {
        self.counted(&self.rouge_l).zip(self.counted(chosen)).map(|(row, &at)| row[at]).collect()
    }

    fn baselines(&self, rows: &[GeneratedRow]) -> SubsetResult {
        let mut by_name = IndexMap::new();
        for decoding in rows[0].flan_samples.keys() {
            by_name.extend(
                self.baseline(rows, decoding, |row| row.candidates().position(|c| c.decoding == decoding)),
            );
        }
        for (name, likelihood) in [
            (SELF_SCORE_SUM, (|c| c.sample.log_likelihood_sum) as fn(Candidate<'_>) -> Option<f64>),
            (SELF_SCORE_MEAN, |c| c.sample.log_likelihood_mean),
        ] {
            by_name.extend(self.baseline(rows, name, |row| {
                let likelihoods: Option<Vec<f64>> = row.candidates().map(likelihood).collect();
                first_maximum(likelihoods?.into_iter())
            }));
        }
        let oracle: Vec<f64> =
            self.counted(&self.rouge_l).map(|row| row.iter().copied().fold(0.0, f64::max)).collect();
        SubsetResult {
            rouge_l: f64::NAN,
            baselines: by_name,
            oracle: Some(mean(&oracle)),
            rows: Some(rows.len() as u64),
            rows_without_references: self.has_references.iter().filter(|has| !**has).count() as u64,
            ..SubsetResult::default()
        }
    }

    /// A baseline's mean, unless some row leaves it without a choice (a decoding or a likelihood is missing).
    fn baseline(
        &self,
        rows: &[GeneratedRow],
        name: &str,
        choose: impl Fn(&GeneratedRow) -> Option<usize>,
    ) -> Option<(String, f64)> {
        let chosen: Vec<usize> = rows.iter().map(choose).collect::<Option<_>>()?;
        Some((name.to_owned(), mean(&self.of(&chosen))))
    }
}

/// Position of the first highest value; one that is not a number loses to any other.
fn first_maximum<T: PartialOrd + Copy>(values: impl Iterator<Item = T>) -> Option<usize> {
    values
        .enumerate()
        .fold(None, |best: Option<(usize, T)>, (at, value)| match best {
            #[expect(clippy::eq_op, reason = "only a NaN differs from itself")]
            Some((_, old)) if !(value > old || (old != old && value == value)) => best,
            _ => Some((at, value)),
        })
        .map(|(at, _)| at)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The part of the way from beam search to the oracle that the scorer's choice covers.
fn gap_closed(result: &SubsetResult) -> Option<f64> {
    let (beam, oracle) = (*result.baselines.get(BEAM)?, result.oracle?);
    (oracle > beam).then(|| (result.rouge_l - beam) / (oracle - beam))
}
