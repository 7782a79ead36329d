//! Log-likelihoods of given responses.

use std::time::Instant;

use cappy_plugin_abi::{Control, EncodingId, Failure, Generator, RaggedTokens, TokenRows};
use rayon::prelude::*;

use super::{
    DEFAULT_MAX_TARGET_TOKENS, DEFAULT_MAX_TOKENS, MIN_ROWS_PER_THREAD, Quiet, RefusedRow, check_cancelled,
    push, token_limit,
};
use crate::{
    batching::{Budget, distinct, fitting, halving, pack},
    residency::Resident,
    tokenization::EncodedRow,
};

/// Pairs of an instruction and a response.
#[derive(Clone, Copy, Debug)]
pub struct LikelihoodInput<'a> {
    /// Instruction and response.
    pub rows: &'a [(String, String)],
    /// Index of the first row, for messages.
    pub first_row: u64,
    /// Tokens kept of an instruction; 0: 512.
    pub max_source_tokens: u32,
    /// Tokens kept of a response; 0: 64.
    pub max_target_tokens: u32,
}

/// Sum and mean over the tokens of each response, the end token included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Likelihoods {
    /// `[rows]` of (sum, mean), natural logarithm.
    pub rows: Vec<(f64, f64)>,
    /// Source tokens that the model read.
    pub input_tokens: u64,
    /// Target tokens that the model read.
    pub output_tokens: u64,
    /// Rows whose instruction or response was cut.
    pub truncated: u64,
}

/// Log-likelihood of each response after its instruction; an instruction with several responses is encoded once.
///
/// # Errors
/// A row that cannot be tokenized (named), or the backend's failure.
pub fn log_likelihoods(
    generator: &Resident<dyn Generator>,
    input: LikelihoodInput<'_>,
    budget: Budget,
    control: &dyn Control,
) -> Result<Likelihoods, Failure> {
    let encoded = encode_targets(generator, input.rows, input.max_source_tokens, input.max_target_tokens)
        .map_err(|refused| refused.failure(input.first_row))?;
    let (sources, places) = distinct(encoded.iter().map(|(source, _)| source));
    let mut targets_of: Vec<Vec<usize>> = vec![Vec::new(); sources.len()];
    places.iter().enumerate().for_each(|(row, &source)| targets_of[source].push(row));
    let lengths: Vec<usize> = sources.iter().map(|row| row.ids.len()).collect();
    let mut results = vec![(0.0, 0.0); encoded.len()];
    let mut done = 0;
    for batch in pack(&lengths, budget) {
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(fitting(rest, &lengths, generator.pace.bulk(budget)));
            rest = tail;
            halving(piece, &mut |part| {
                let asked: Vec<usize> = part.iter().flat_map(|&source| targets_of[source].clone()).collect();
                let pairs = asked.iter().map(|&row| (&encoded[row].0, &encoded[row].1));
                let found = likelihood_batch(generator, pairs, control)?;
                asked.iter().zip(found).for_each(|(&row, found)| results[row] = found);
                done += part.len() as u64;
                control.progress(done, sources.len() as u64);
                Ok(())
            })?;
        }
    }
    Ok(Likelihoods {
        rows: results,
        input_tokens: lengths.iter().map(|&length| length as u64).sum(),
        output_tokens: encoded.iter().map(|(_, target)| target.ids.len() as u64).sum(),
        truncated: encoded.iter().filter(|(source, target)| source.truncated || target.truncated).count()
            as u64,
    })
}

/// Token ids of every source with its target.
///
/// # Errors
/// Names the row that cannot be tokenized.
pub fn encode_targets(
    generator: &Resident<dyn Generator>,
    rows: &[(String, String)],
    max_source_tokens: u32,
    max_target_tokens: u32,
) -> Result<Vec<(EncodedRow, EncodedRow)>, RefusedRow> {
    let source_limit = token_limit(max_source_tokens, DEFAULT_MAX_TOKENS, generator.info.max_tokens);
    let target_limit = token_limit(max_target_tokens, DEFAULT_MAX_TARGET_TOKENS, 0);
    let tokenizer = &generator.tokenizer;
    rows.par_iter()
        .with_min_len(MIN_ROWS_PER_THREAD)
        .enumerate()
        .map(|(row, (instruction, response))| {
            let refused = |error| RefusedRow { row, error };
            let source = tokenizer.single(&tokenizer.side(instruction).map_err(refused)?, source_limit);
            let target = tokenizer.single(&tokenizer.side(response).map_err(refused)?, target_limit);
            Ok((source.map_err(refused)?, target.map_err(refused)?))
        })
        .collect()
}

/// (sum, mean) of each target after its source, in one call of the model; equal sources are encoded once.
///
/// # Errors
/// The backend's failure; `NotFinite` when a likelihood is not a number.
pub fn likelihood_batch<'a>(
    generator: &Resident<dyn Generator>,
    pairs: impl Iterator<Item = (&'a EncodedRow, &'a EncodedRow)>,
    control: &dyn Control,
) -> Result<Vec<(f64, f64)>, Failure> {
    check_cancelled(control)?;
    let mut targets = TokenRows::new();
    let sources: Vec<&EncodedRow> = pairs
        .map(|(source, target)| {
            push(&mut targets, target);
            source
        })
        .collect();
    let (unique, places) = distinct(sources);
    let mut rows = TokenRows::new();
    unique.iter().for_each(|source| push(&mut rows, source));
    let owners: Vec<u32> = places.iter().map(|&place| place as u32).collect();
    let log_probs = generator.with(|model| {
        let started = Instant::now();
        let log_probs = with_encoding(model, rows.view(), control, |model, encoding| {
            model.log_likelihood(encoding, targets.view(), &owners, &Quiet(control))
        })?;
        generator.pace.observe(rows.tokens.len() + targets.tokens.len(), started.elapsed());
        Ok::<_, Failure>(log_probs)
    })?;
    sums(&targets, &log_probs)
}

/// Encodes, works, and forgets the encoding whatever came of the work.
pub(super) fn with_encoding<R>(
    model: &mut dyn Generator,
    sources: RaggedTokens<'_>,
    control: &dyn Control,
    work: impl FnOnce(&mut dyn Generator, EncodingId) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let encoding = model.encode(sources, &Quiet(control))?;
    let result = work(model, encoding);
    model.forget(encoding);
    result
}

/// (sum, mean) of the log-probabilities of each row of targets.
pub(super) fn sums(targets: &TokenRows, log_probs: &[f32]) -> Result<Vec<(f64, f64)>, Failure> {
    if log_probs.len() != targets.tokens.len() {
        return Err(Failure::internal(format!(
            "the backend gave {} log-probabilities for {} tokens",
            log_probs.len(),
            targets.tokens.len()
        )));
    }
    targets.offsets.windows(2).map(|bounds| sum(&log_probs[bounds[0] as usize..bounds[1] as usize])).collect()
}

pub(super) fn sum(log_probs: &[f32]) -> Result<(f64, f64), Failure> {
    let sum: f64 = log_probs.iter().copied().map(f64::from).sum();
    if !sum.is_finite() {
        return Err(Failure::not_finite(format!("the generator gave the log-likelihood {sum}")));
    }
    Ok((sum, sum / log_probs.len().max(1) as f64))
}
