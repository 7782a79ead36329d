//! All decodings of instructions, with the likelihoods of what came out.

use std::time::Instant;

use cappy_plugin_abi::{
    Control, Decoding, EncodingId, Failure, Generated, Generator, TokenRows,
    random::{fold, key_of},
};
use rayon::prelude::*;

use super::{
    DEFAULT_MAX_TARGET_TOKENS, DEFAULT_MAX_TOKENS, MIN_ROWS_PER_THREAD, Quiet, RefusedRow, check_cancelled,
    likelihood::{sum, sums, with_encoding},
    push, token_limit,
};
use crate::{
    batching::{Budget, fitting, halving, pack},
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

/// One row's answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GeneratedRow {
    /// `[decodings][samples]`.
    pub samples: Vec<Vec<Sample>>,
    /// Tokens that the model wrote.
    pub tokens: u64,
}

/// Randomness keys of consecutive rows: a namespace with the index of each row, or, where rows have no place of their
/// own, the text itself, so that a row gives the same alone and among any others.
pub fn row_keys(namespace: &str, first_row: u64, instructions: &[String]) -> Vec<u64> {
    if namespace.is_empty() {
        return instructions.iter().map(|text| key_of(text)).collect();
    }
    let namespace = key_of(namespace);
    (first_row..).take(instructions.len()).map(|row| fold(namespace, row)).collect()
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
    let sources = encode_sources(generator, input.instructions, decodings.max_source_tokens)
        .map_err(|refused| refused.failure(input.first_row))?;
    let lengths: Vec<usize> = sources.iter().map(|row| row.ids.len()).collect();
    let mut output = GeneratedRows {
        rows: vec![Vec::new(); sources.len()],
        input_tokens: lengths.iter().map(|&length| length as u64).sum(),
        output_tokens: 0,
        truncated: sources.iter().filter(|row| row.truncated).count() as u64,
    };
    let mut done = 0;
    for batch in pack(&lengths, budget) {
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(fitting(rest, &lengths, generator.pace.bulk(budget)));
            rest = tail;
            halving(piece, &mut |part| {
                let rows = part.iter().map(|&row| (&sources[row], input.row_keys[row]));
                let found = generate_batch(generator, rows, decodings, input.log_likelihood, control)?;
                for (&row, found) in part.iter().zip(found) {
                    output.output_tokens += found.tokens;
                    output.rows[row] = found.samples;
                }
                done += part.len() as u64;
                control.progress(done, sources.len() as u64);
                Ok(())
            })?;
        }
    }
    Ok(output)
}

/// Token ids of every source.
///
/// # Errors
/// Names the row that cannot be tokenized.
pub fn encode_sources(
    generator: &Resident<dyn Generator>,
    instructions: &[String],
    max_source_tokens: u32,
) -> Result<Vec<EncodedRow>, RefusedRow> {
    let limit = token_limit(max_source_tokens, DEFAULT_MAX_TOKENS, generator.info.max_tokens);
    let tokenizer = &generator.tokenizer;
    instructions
        .par_iter()
        .with_min_len(MIN_ROWS_PER_THREAD)
        .enumerate()
        .map(|(row, instruction)| {
            tokenizer
                .side(instruction)
                .and_then(|side| tokenizer.single(&side, limit))
                .map_err(|error| RefusedRow { row, error })
        })
        .collect()
}

/// All decodings of sources, each with its randomness key, in one encoding.
///
/// # Errors
/// The backend's failure; `NotFinite` when a likelihood is not a number.
pub fn generate_batch<'a>(
    generator: &Resident<dyn Generator>,
    rows: impl Iterator<Item = (&'a EncodedRow, u64)>,
    decodings: &Decodings,
    log_likelihood: bool,
    control: &dyn Control,
) -> Result<Vec<GeneratedRow>, Failure> {
    check_cancelled(control)?;
    let mut sources = TokenRows::new();
    let keys: Vec<u64> = rows
        .map(|(source, key)| {
            push(&mut sources, source);
            key
        })
        .collect();
    generator.with(|model| {
        let started = Instant::now();
        let rows = with_encoding(model, sources.view(), control, |model, encoding| {
            let generated =
                model.generate(encoding, &decodings.settings, decodings.seed, &keys, &Quiet(control))?;
            let call = Call { generator, decodings, rows: keys.len(), control };
            call.finish(model, encoding, &generated, log_likelihood)
        })?;
        generator.pace.observe(sources.tokens.len(), started.elapsed());
        Ok(rows)
    })
}

/// One batch after its tokens are there.
struct Call<'a> {
    generator: &'a Resident<dyn Generator>,
    decodings: &'a Decodings,
    rows: usize,
    control: &'a dyn Control,
}

impl Call<'_> {
    /// Texts and likelihoods of the generated sequences.
    fn finish(
        &self,
        model: &mut dyn Generator,
        encoding: EncodingId,
        generated: &Generated,
        log_likelihood: bool,
    ) -> Result<Vec<GeneratedRow>, Failure> {
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
            .map(|row| GeneratedRow {
                samples: counts.iter().map(|&count| flat.by_ref().take(count).collect()).collect(),
                tokens: (generated.offsets[(row + 1) * per_row] - generated.offsets[row * per_row]).into(),
            })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_keyed_by_their_place_or_by_themselves() {
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let placed = row_keys("tense/train", 3, &texts(&["a", "a", "b"]));
        assert_eq!(placed[1..], row_keys("tense/train", 4, &texts(&["x", "y"])));
        assert_ne!(placed[0], placed[1]);
        assert_ne!(placed, row_keys("tense/validation", 3, &texts(&["a", "a", "b"])));
        let own = row_keys("", 3, &texts(&["a", "a", "b"]));
        assert_eq!((own[0], own[2]), (own[1], row_keys("", 0, &texts(&["b"]))[0]));
        assert_ne!(own[0], own[2]);
    }
}
