//! All decodings of instructions, with the likelihoods of what came out.

use cappy_plugin_abi::{Control, Decoding, EncodingId, Failure, Generated, Generator, TokenRows};
use rayon::prelude::*;

use super::{
    DEFAULT_MAX_TARGET_TOKENS, DEFAULT_MAX_TOKENS, Quiet, check_cancelled,
    likelihood::{sum, sums, with_encoding},
    push, refused, token_limit,
};
use crate::{
    batching::{Budget, halving, pack},
    residency::Resident,
    tokenization::EncodedRow,
};

/// Decodings with their names, and what they share.
#[derive(Clone, Debug, PartialEq)]
pub struct Decodings {
    /// Name of each, in order.
    pub names: Vec<String>,
    /// Settings of each.
    pub settings: Vec<Decoding>,
    /// Tokens kept of an instruction; 0: 512.
    pub max_source_tokens: u32,
    /// The run's randomness key.
    pub seed: u64,
}

/// Instructions to answer.
#[derive(Clone, Copy, Debug)]
pub struct GenerationInput<'a> {
    /// One a row.
    pub instructions: &'a [String],
    /// Randomness key of each row.
    pub row_keys: &'a [u64],
    /// Index of the first row, for messages.
    pub first_row: u64,
    /// Compute the log-likelihood of each response.
    pub log_likelihood: bool,
}

/// One response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Text without special tokens.
    pub response: String,
    /// (sum, mean) over the tokens of the response tokenized again, where asked for.
    pub log_likelihood: Option<(f64, f64)>,
}

/// What generation gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GeneratedRows {
    /// `[rows][decodings][samples]`.
    pub rows: Vec<Vec<Vec<Sample>>>,
    /// Source tokens that the model read.
    pub input_tokens: u64,
    /// Tokens that it wrote.
    pub output_tokens: u64,
    /// Instructions that were cut.
    pub truncated: u64,
}

/// Every decoding of every instruction: each source is encoded once. Progress counts rows.
///
/// # Errors
/// A row that cannot be tokenized (named), or the backend's failure.
pub fn generate(
    generator: &Resident<dyn Generator>,
    input: GenerationInput<'_>,
    decodings: &Decodings,
    budget: Budget,
    control: &dyn Control,
) -> Result<GeneratedRows, Failure> {
    let limit = token_limit(decodings.max_source_tokens, DEFAULT_MAX_TOKENS, generator.info.max_tokens);
    let tokenizer = &generator.tokenizer;
    let sources: Vec<EncodedRow> = input
        .instructions
        .par_iter()
        .enumerate()
        .map(|(i, instruction)| {
            tokenizer
                .side(instruction)
                .and_then(|side| tokenizer.single(&side, limit))
                .map_err(|error| refused(input.first_row + i as u64, error))
        })
        .collect::<Result<_, Failure>>()?;
    let lengths: Vec<usize> = sources.iter().map(|row| row.ids.len()).collect();
    let mut output = GeneratedRows {
        rows: vec![Vec::new(); sources.len()],
        input_tokens: lengths.iter().map(|&length| length as u64).sum(),
        output_tokens: 0,
        truncated: sources.iter().filter(|row| row.truncated).count() as u64,
    };
    let mut done = 0;
    for batch in pack(&lengths, budget) {
        halving(&batch, &mut |part| {
            check_cancelled(control)?;
            let mut rows = TokenRows::new();
            part.iter().for_each(|&row| push(&mut rows, &sources[row]));
            let keys: Vec<u64> = part.iter().map(|&row| input.row_keys[row]).collect();
            let (written, samples) = generator.with(|model| {
                with_encoding(model, rows.view(), control, |model, encoding| {
                    let generated = model.generate(
                        encoding,
                        &decodings.settings,
                        decodings.seed,
                        &keys,
                        &Quiet(control),
                    )?;
                    let call = Call { generator, decodings, rows: part.len(), control };
                    let samples = call.finish(model, encoding, &generated, input.log_likelihood)?;
                    Ok((generated.tokens.len() as u64, samples))
                })
            })?;
            output.output_tokens += written;
            for (&row, samples) in part.iter().zip(samples) {
                output.rows[row] = samples;
            }
            done += part.len() as u64;
            control.progress(done, sources.len() as u64);
            Ok(())
        })?;
    }
    Ok(output)
}

/// One batch after its tokens are there.
struct Call<'a> {
    generator: &'a Resident<dyn Generator>,
    decodings: &'a Decodings,
    rows: usize,
    control: &'a dyn Control,
}

impl Call<'_> {
    /// Texts and likelihoods of the generated sequences, `[rows][decodings][samples]`.
    fn finish(
        &self,
        model: &mut dyn Generator,
        encoding: EncodingId,
        generated: &Generated,
        log_likelihood: bool,
    ) -> Result<Vec<Vec<Vec<Sample>>>, Failure> {
        let counts: Vec<usize> =
            self.decodings.settings.iter().map(|decoding| decoding.num_samples as usize).collect();
        let per_row: usize = counts.iter().sum();
        check_shape(generated, self.rows * per_row)?;
        let tokenizer = &self.generator.tokenizer;
        let sequence = |i: usize| generated.offsets[i] as usize..generated.offsets[i + 1] as usize;
        let internal = |error: crate::tokenization::TokenizationError| Failure::internal(error.to_string());

        // Texts, and how each would be tokenized again, in parallel; the model waits only for what is left over.
        let mut samples: Vec<(Sample, Option<EncodedRow>)> = (0..self.rows * per_row)
            .into_par_iter()
            .map(|i| {
                let ids = &generated.tokens[sequence(i)];
                let response = tokenizer.decode(ids).map_err(internal)?;
                if !log_likelihood {
                    return Ok((Sample { response, log_likelihood: None }, None));
                }
                let side = tokenizer.side(&response).map_err(internal)?;
                let target = tokenizer.single(&side, DEFAULT_MAX_TARGET_TOKENS).map_err(internal)?;
                // The same ids, so the log-probabilities met on the way are the likelihood.
                if target.ids == ids {
                    let log_likelihood = Some(sum(&generated.log_probs[sequence(i)])?);
                    return Ok((Sample { response, log_likelihood }, None));
                }
                Ok((Sample { response, log_likelihood: None }, Some(target)))
            })
            .collect::<Result<_, Failure>>()?;

        let open: Vec<usize> = (0..samples.len()).filter(|&i| samples[i].1.is_some()).collect();
        if !open.is_empty() {
            let targets_of: Vec<(usize, Vec<u32>)> = open
                .iter()
                .map(|&i| (i / per_row, samples[i].1.take().expect("only open samples are listed").ids))
                .collect();
            let (unique, places) = crate::batching::distinct(targets_of);
            let mut targets = TokenRows::new();
            unique.iter().for_each(|(_, ids)| targets.push(ids));
            let owners: Vec<u32> = unique.iter().map(|(row, _)| *row as u32).collect();
            let log_probs = model.log_likelihood(encoding, targets.view(), &owners, &Quiet(self.control))?;
            let sums = sums(&targets, &log_probs)?;
            for (i, place) in open.into_iter().zip(places) {
                samples[i].0.log_likelihood = Some(sums[place]);
            }
        }

        let mut flat = samples.into_iter().map(|(sample, _)| sample);
        Ok((0..self.rows)
            .map(|_| counts.iter().map(|&count| flat.by_ref().take(count).collect()).collect())
            .collect())
    }
}

fn check_shape(generated: &Generated, sequences: usize) -> Result<(), Failure> {
    let Generated { tokens, offsets, log_probs } = generated;
    let fits = offsets.len() == sequences + 1
        && offsets[0] == 0
        && offsets.windows(2).all(|pair| pair[0] <= pair[1])
        && offsets[sequences] as usize == tokens.len()
        && log_probs.len() == tokens.len();
    if fits {
        return Ok(());
    }
    Err(Failure::internal(format!(
        "the backend gave {} sequences with {} tokens and {} log-probabilities where {sequences} sequences were asked for",
        offsets.len().saturating_sub(1),
        tokens.len(),
        log_probs.len()
    )))
}
