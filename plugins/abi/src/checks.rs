//! What the host's adapters check once for all backends: arguments before a call, results after it.

use crate::{Decoding, Failure, Generated, Method, ModelInfo, RaggedTokens};

/// Offsets, ids and row lengths of a batch for a model.
pub(crate) fn batch(batch: RaggedTokens<'_>, info: &ModelInfo) -> Result<(), Failure> {
    batch.check(info.vocab_size)?;
    if info.max_tokens == 0 {
        return Ok(());
    }
    for (row, ends) in batch.offsets.windows(2).enumerate() {
        let length = ends[1] - ends[0];
        if length > info.max_tokens {
            return Err(Failure::invalid_argument(format!(
                "ragged batch: row {row} has {length} tokens, the model takes at most {}",
                info.max_tokens
            )));
        }
    }
    Ok(())
}

/// As [`batch`], with at least one row.
pub(crate) fn filled_batch(rows: RaggedTokens<'_>, info: &ModelInfo) -> Result<(), Failure> {
    batch(rows, info)?;
    if rows.rows() == 0 {
        return Err(Failure::invalid_argument("ragged batch: it has no rows"));
    }
    Ok(())
}

/// One finite label a row.
pub(crate) fn labels(labels: &[f32], rows: usize) -> Result<(), Failure> {
    if labels.len() != rows {
        return Err(Failure::invalid_argument(format!("{} labels for {rows} rows", labels.len())));
    }
    match labels.iter().position(|label| !label.is_finite()) {
        Some(row) => Err(Failure::invalid_argument(format!("label of row {row} is {}", labels[row]))),
        None => Ok(()),
    }
}

/// Settings that mean something.
pub(crate) fn decodings(decodings: &[Decoding]) -> Result<(), Failure> {
    for (i, decoding) in decodings.iter().enumerate() {
        let bad = |what: String| Err(Failure::invalid_argument(format!("decoding {i}: {what}")));
        if decoding.num_samples == 0 {
            return bad("num_samples must be at least 1".into());
        }
        if decoding.max_length < 2 {
            return bad(format!(
                "max_length is {}, it counts the start token and must be at least 2",
                decoding.max_length
            ));
        }
        match decoding.method {
            Method::Beam { num_beams, length_penalty, .. } => {
                if num_beams == 0 || decoding.num_samples > num_beams {
                    return bad(format!("{} samples from {num_beams} beams", decoding.num_samples));
                }
                if !length_penalty.is_finite() {
                    return bad(format!("length_penalty is {length_penalty}"));
                }
            }
            Method::Sample { temperature, top_p, .. } => {
                if !(temperature.is_finite() && temperature > 0.0) {
                    return bad(format!("temperature is {temperature}, it must be above 0"));
                }
                if !(top_p > 0.0 && top_p <= 1.0) {
                    return bad(format!("top_p is {top_p}, it must be above 0 and at most 1"));
                }
            }
        }
    }
    Ok(())
}

/// `[rows, columns]` finite numbers.
pub(crate) fn matrix(values: &[f32], rows: usize, columns: usize, what: &str) -> Result<(), Failure> {
    if values.len() != rows * columns {
        return Err(Failure::internal(format!(
            "the backend returned {} {what} for {rows} rows of {columns}",
            values.len()
        )));
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(i) => Err(Failure::not_finite(format!("the {what} of row {} are not finite", i / columns))),
        None => Ok(()),
    }
}

/// One finite log-probability a target token.
pub(crate) fn log_likelihoods(values: &[f32], targets: RaggedTokens<'_>) -> Result<(), Failure> {
    if values.len() != targets.tokens.len() {
        return Err(Failure::internal(format!(
            "the backend returned {} log-probabilities for {} target tokens",
            values.len(),
            targets.tokens.len()
        )));
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(i) => {
            let target = targets.offsets.partition_point(|&start| start as usize <= i) - 1;
            Err(Failure::not_finite(format!("the log-likelihood of target {target} is not finite")))
        }
        None => Ok(()),
    }
}

/// As many well-formed sequences as were asked for.
pub(crate) fn generated(
    generated: &Generated,
    rows: usize,
    decodings: &[Decoding],
    vocab_size: u32,
) -> Result<(), Failure> {
    let Generated { tokens, offsets, log_probs } = generated;
    let a_row: usize = decodings.iter().map(|decoding| decoding.num_samples as usize).sum();
    let whole = offsets.len() == rows * a_row + 1
        && offsets[0] == 0
        && offsets.windows(2).all(|pair| pair[0] <= pair[1])
        && offsets.last().map(|&end| end as usize) == Some(tokens.len())
        && log_probs.len() == tokens.len();
    if !whole {
        return Err(Failure::internal(format!(
            "the backend returned malformed sequences for {rows} rows of {a_row} samples"
        )));
    }
    if let Some(id) = tokens.iter().find(|&&id| id >= vocab_size) {
        return Err(Failure::internal(format!(
            "the backend generated token id {id}, the model's vocabulary ends at {vocab_size}"
        )));
    }
    if let Some(i) = log_probs.iter().position(|value| !value.is_finite()) {
        let sequence = offsets.partition_point(|&start| start as usize <= i) - 1;
        return Err(Failure::not_finite(format!(
            "the log-probabilities of row {} are not finite",
            sequence / a_row
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Code, MinLengthRule};

    fn sample(temperature: f64, top_p: f64) -> Decoding {
        Decoding {
            key: 0,
            method: Method::Sample { temperature, top_k: 0, top_p },
            num_samples: 1,
            min_length: 0,
            max_length: 8,
            min_length_rule: MinLengthRule::Flax,
        }
    }

    #[test]
    fn meaningless_decodings_are_refused() {
        assert!(decodings(&[sample(1.0, 1.0)]).is_ok());
        let beam = Method::Beam { num_beams: 2, length_penalty: 1.0, early_stopping: false };
        for bad in [
            sample(0.0, 1.0),
            sample(f64::NAN, 1.0),
            sample(1.0, 0.0),
            sample(1.0, 1.5),
            Decoding { num_samples: 0, ..sample(1.0, 1.0) },
            Decoding { max_length: 1, ..sample(1.0, 1.0) },
            Decoding { method: beam, num_samples: 3, ..sample(1.0, 1.0) },
        ] {
            let failure = decodings(&[sample(1.0, 1.0), bad]).expect_err("meaningless");
            assert_eq!(failure.code, Code::InvalidArgument);
            assert!(failure.message.starts_with("decoding 1: "), "{failure}");
        }
    }

    #[test]
    fn results_that_are_not_finite_name_their_row() {
        let failure = matrix(&[0.0, 1.0, f32::NAN, 2.0], 2, 2, "scores").expect_err("a NaN");
        assert_eq!(
            (failure.code, failure.message.as_str()),
            (Code::NotFinite, "the scores of row 1 are not finite")
        );
        assert_eq!(matrix(&[0.0], 2, 1, "scores").expect_err("one is missing").code, Code::Internal);
        let sequences = Generated {
            tokens: vec![1, 2, 3],
            offsets: vec![0, 1, 3],
            log_probs: vec![0.0, 0.0, f32::INFINITY],
        };
        let failure = generated(&sequences, 2, &[sample(1.0, 1.0)], 9).expect_err("an infinity");
        assert_eq!(failure.message, "the log-probabilities of row 1 are not finite");
        assert_eq!(
            generated(&sequences, 2, &[sample(1.0, 1.0)], 3).expect_err("id 3 of 3").code,
            Code::Internal
        );
        assert_eq!(
            generated(&sequences, 1, &[sample(1.0, 1.0)], 9).expect_err("too many").code,
            Code::Internal
        );
    }
}
