//! Scores of instruction-response pairs.

use std::collections::HashMap;

use cappy_plugin_abi::{Control, Failure, Scorer, TokenRows};
use rayon::prelude::*;

use super::{DEFAULT_MAX_TOKENS, Quiet, check_cancelled, push, refused, token_limit};
use crate::{
    batching::{Budget, distinct, halving, pack},
    residency::Resident,
};

/// Rows to score, each an instruction with its responses.
#[derive(Clone, Copy, Debug)]
pub struct ScoreInput<'a> {
    /// Instruction and responses.
    pub rows: &'a [(String, Vec<String>)],
    /// Index of the first row, for messages.
    pub first_row: u64,
    /// Tokens kept of a pair; 0: 512. Never more than the model takes.
    pub max_tokens: u32,
}

/// What scoring gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoredRows {
    /// Raw logits, `[rows][responses]`.
    pub scores: Vec<Vec<f32>>,
    /// Tokens that the model read.
    pub tokens: u64,
    /// Pairs that were cut.
    pub truncated: u64,
}

/// Scores every pair; identical pairs are computed once. Progress counts the distinct pairs.
///
/// # Errors
/// A row that cannot be tokenized (named), or the backend's failure; `NotFinite` when a score is not a number.
pub fn score(
    scorer: &Resident<dyn Scorer>,
    input: ScoreInput<'_>,
    budget: Budget,
    control: &dyn Control,
) -> Result<ScoredRows, Failure> {
    if scorer.info.labels != 1 {
        return Err(Failure::unsupported(format!(
            "the scorer gives {} numbers a pair; a scorer with one label is needed",
            scorer.info.labels
        )));
    }
    let limit = token_limit(input.max_tokens, DEFAULT_MAX_TOKENS, scorer.info.max_tokens);
    let tokenizer = &scorer.tokenizer;
    let encoded = input
        .rows
        .par_iter()
        .enumerate()
        .map(|(i, (instruction, responses))| {
            let named = |error| refused(input.first_row + i as u64, error);
            let first = tokenizer.side(instruction).map_err(named)?;
            let mut sides: HashMap<&str, Vec<u32>> = HashMap::new();
            responses
                .iter()
                .map(|response| {
                    if !sides.contains_key(response.as_str()) {
                        sides.insert(response, tokenizer.side(response).map_err(named)?);
                    }
                    tokenizer.pair(&first, &sides[response.as_str()], limit).map_err(named)
                })
                .collect::<Result<Vec<_>, Failure>>()
        })
        .collect::<Result<Vec<_>, Failure>>()?;

    let truncated = encoded.iter().flatten().filter(|row| row.truncated).count() as u64;
    let (unique, places) = distinct(encoded.iter().flatten());
    let lengths: Vec<usize> = unique.iter().map(|row| row.ids.len()).collect();
    let mut scores = vec![f32::NAN; unique.len()];
    let mut done = 0;
    for batch in pack(&lengths, budget) {
        halving(&batch, &mut |part| {
            check_cancelled(control)?;
            let mut rows = TokenRows::new();
            part.iter().for_each(|&pair| push(&mut rows, unique[pair]));
            let result = scorer.with(|model| model.score(rows.view(), &Quiet(control)))?;
            if result.len() != part.len() {
                let message = format!("the backend gave {} scores for {} pairs", result.len(), part.len());
                return Err(Failure::internal(message));
            }
            for (&pair, score) in part.iter().zip(result) {
                if !score.is_finite() {
                    return Err(Failure::not_finite(format!("the scorer gave {score} for a pair")));
                }
                scores[pair] = score;
            }
            done += part.len() as u64;
            control.progress(done, unique.len() as u64);
            Ok(())
        })?;
    }
    let mut flat = places.into_iter().map(|place| scores[place]);
    Ok(ScoredRows {
        scores: encoded.iter().map(|row| flat.by_ref().take(row.len()).collect()).collect(),
        tokens: lengths.iter().map(|&length| length as u64).sum(),
        truncated,
    })
}
