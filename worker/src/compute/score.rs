//! Scores of instruction-response pairs.

use std::{collections::HashMap, time::Instant};

use cappy_plugin_abi::{Control, Failure, Scorer, TokenRows};
use rayon::prelude::*;

use super::{DEFAULT_MAX_TOKENS, MIN_ROWS_PER_THREAD, Quiet, RefusedRow, check_cancelled, push, token_limit};
use crate::{
    batching::{Budget, distinct, fitting, halving, pack},
    residency::Resident,
    tokenization::EncodedRow,
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
    check_labels(scorer)?;
    let encoded = encode_pairs(scorer, input.rows, input.max_tokens)
        .map_err(|refused| refused.failure(input.first_row))?;
    let truncated = encoded.iter().flatten().filter(|row| row.truncated).count() as u64;
    let (unique, places) = distinct(encoded.iter().flatten());
    let lengths: Vec<usize> = unique.iter().map(|row| row.ids.len()).collect();
    let mut scores = vec![f32::NAN; unique.len()];
    let mut done = 0;
    for batch in pack(&lengths, budget) {
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(fitting(rest, &lengths, scorer.pace.bulk(budget)));
            rest = tail;
            halving(piece, &mut |part| {
                let result = score_batch(scorer, part.iter().map(|&pair| unique[pair]), control)?;
                part.iter().zip(result).for_each(|(&pair, score)| scores[pair] = score);
                done += part.len() as u64;
                control.progress(done, unique.len() as u64);
                Ok(())
            })?;
        }
    }
    let mut flat = places.into_iter().map(|place| scores[place]);
    Ok(ScoredRows {
        scores: encoded.iter().map(|row| flat.by_ref().take(row.len()).collect()).collect(),
        tokens: lengths.iter().map(|&length| length as u64).sum(),
        truncated,
    })
}

/// Refuses a model that gives more than one number a pair.
///
/// # Errors
/// `Unsupported`.
pub fn check_labels(scorer: &Resident<dyn Scorer>) -> Result<(), Failure> {
    if scorer.info.labels == 1 {
        return Ok(());
    }
    Err(Failure::unsupported(format!(
        "the scorer gives {} numbers a pair; a scorer with one label is needed",
        scorer.info.labels
    )))
}

/// Token ids of every pair, `[rows][responses]`. An instruction is tokenized once for all its responses, and equal
/// responses of a row once.
///
/// # Errors
/// Names the row that cannot be tokenized.
pub fn encode_pairs(
    scorer: &Resident<dyn Scorer>,
    rows: &[(String, Vec<String>)],
    max_tokens: u32,
) -> Result<Vec<Vec<EncodedRow>>, RefusedRow> {
    let limit = token_limit(max_tokens, DEFAULT_MAX_TOKENS, scorer.info.max_tokens);
    let tokenizer = &scorer.tokenizer;
    rows.par_iter()
        .with_min_len(MIN_ROWS_PER_THREAD)
        .enumerate()
        .map(|(row, (instruction, responses))| {
            let refused = |error| RefusedRow { row, error };
            let first = tokenizer.side(instruction).map_err(refused)?;
            let mut sides: HashMap<&str, Vec<u32>> = HashMap::new();
            responses
                .iter()
                .map(|response| {
                    if !sides.contains_key(response.as_str()) {
                        sides.insert(response, tokenizer.side(response).map_err(refused)?);
                    }
                    tokenizer.pair(&first, &sides[response.as_str()], limit).map_err(refused)
                })
                .collect()
        })
        .collect()
}

/// Scores of pairs in one call of the model.
///
/// # Errors
/// The backend's failure; `NotFinite` when a score is not a number.
pub fn score_batch<'a>(
    scorer: &Resident<dyn Scorer>,
    pairs: impl Iterator<Item = &'a EncodedRow>,
    control: &dyn Control,
) -> Result<Vec<f32>, Failure> {
    check_cancelled(control)?;
    let mut rows = TokenRows::new();
    pairs.for_each(|pair| push(&mut rows, pair));
    let scores = scorer.with(|model| {
        let started = Instant::now();
        let scores = model.score(rows.view(), &Quiet(control))?;
        scorer.pace.observe(rows.tokens.len(), started.elapsed());
        Ok::<_, Failure>(scores)
    })?;
    let asked = rows.offsets.len() - 1;
    if scores.len() != asked {
        return Err(Failure::internal(format!("the backend gave {} scores for {asked} pairs", scores.len())));
    }
    match scores.iter().find(|score| !score.is_finite()) {
        Some(score) => Err(Failure::not_finite(format!("the scorer gave {score} for a pair"))),
        None => Ok(scores),
    }
}
