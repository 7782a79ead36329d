//! Log-likelihoods of given responses.

use cappy_plugin_abi::{Control, EncodingId, Failure, Generator, RaggedTokens, TokenRows};
use rayon::prelude::*;

use super::{
    DEFAULT_MAX_TARGET_TOKENS, DEFAULT_MAX_TOKENS, Quiet, check_cancelled, push, refused, token_limit,
};
use crate::{
    batching::{Budget, distinct, halving, pack},
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
    let source_limit = token_limit(input.max_source_tokens, DEFAULT_MAX_TOKENS, generator.info.max_tokens);
    let target_limit = token_limit(input.max_target_tokens, DEFAULT_MAX_TARGET_TOKENS, 0);
    let tokenizer = &generator.tokenizer;
    let encoded: Vec<(EncodedRow, EncodedRow)> = input
        .rows
        .par_iter()
        .enumerate()
        .map(|(i, (instruction, response))| {
            let named = |error| refused(input.first_row + i as u64, error);
            let source = tokenizer.single(&tokenizer.side(instruction).map_err(named)?, source_limit);
            let target = tokenizer.single(&tokenizer.side(response).map_err(named)?, target_limit);
            Ok((source.map_err(named)?, target.map_err(named)?))
        })
        .collect::<Result<_, Failure>>()?;

    let (sources, places) = distinct(encoded.iter().map(|(source, _)| source));
    let mut targets_of: Vec<Vec<usize>> = vec![Vec::new(); sources.len()];
    places.iter().enumerate().for_each(|(row, &source)| targets_of[source].push(row));
    let lengths: Vec<usize> = sources.iter().map(|row| row.ids.len()).collect();
    let mut results = vec![(0.0, 0.0); encoded.len()];
    let mut done = 0;
    for batch in pack(&lengths, budget) {
        halving(&batch, &mut |part| {
            check_cancelled(control)?;
            let mut rows = TokenRows::new();
            part.iter().for_each(|&source| push(&mut rows, sources[source]));
            let mut targets = TokenRows::new();
            let mut owners = Vec::new();
            let mut asked = Vec::new();
            for (place, &source) in (0u32..).zip(part) {
                for &row in &targets_of[source] {
                    push(&mut targets, &encoded[row].1);
                    owners.push(place);
                    asked.push(row);
                }
            }
            let log_probs = generator.with(|model| {
                with_encoding(model, rows.view(), control, |model, encoding| {
                    model.log_likelihood(encoding, targets.view(), &owners, &Quiet(control))
                })
            })?;
            for (sum, row) in sums(&targets, &log_probs)?.into_iter().zip(asked) {
                results[row] = sum;
            }
            done += part.len() as u64;
            control.progress(done, sources.len() as u64);
            Ok(())
        })?;
    }
    Ok(Likelihoods {
        rows: results,
        input_tokens: lengths.iter().map(|&length| length as u64).sum(),
        output_tokens: encoded.iter().map(|(_, target)| target.ids.len() as u64).sum(),
        truncated: encoded.iter().filter(|(source, target)| source.truncated || target.truncated).count()
            as u64,
    })
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
