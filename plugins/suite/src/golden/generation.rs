//! Numbers and tokens of T5.

use std::collections::HashMap;

use cappy_plugin_abi::{Decoding, LoadRequest, Unattended};

use super::stored::{self, Beams, T5S};
use super::{Golden, sampling, sequences};
use crate::{batch_of, done};

/// Of all stored targets in one call: what is found, and what is stored.
fn likelihoods(golden: &Golden, model: &str, dtype: &str) -> (Vec<f64>, Vec<f64>) {
    let expected = stored::generation(model);
    let request = LoadRequest { dtype: dtype.into(), ..golden.generator_request(model) };
    let mut generator = golden.generator(&request);
    let encoding = done(generator.encode(batch_of(&expected.sources).view(), &Unattended));
    let (targets, rows) = expected.target_rows();
    let got = done(generator.log_likelihood(encoding, targets.view(), &rows, &Unattended));
    let expected: Vec<f64> = expected.targets.into_iter().flat_map(|it| it.log_probs).collect();
    assert_eq!(got.len(), expected.len(), "{model}");
    (got.into_iter().map(f64::from).collect(), expected)
}

/// In f32.
pub fn likelihoods_are_those_of_transformers(golden: &Golden) {
    for model in T5S {
        let (got, expected) = likelihoods(golden, model, "f32");
        for (i, (got, expected)) in got.into_iter().zip(expected).enumerate() {
            assert!(golden.is_as_likely(got, expected), "{model}, token {i}: {got} not {expected}");
        }
    }
}

impl Golden {
    fn is_as_likely(&self, got: f64, expected: f64) -> bool {
        (got - expected).abs() < self.bounds.likelihood * expected.abs().max(0.1)
    }
}

/// Eight bits of mantissa: an error of 0.4% of activations, whose logits span a few units.
pub fn likelihoods_in_bf16_are_near(golden: &Golden) {
    if !golden.generates_in_bf16 {
        eprintln!("skipped: the backend does not generate in bf16");
        return;
    }
    for model in T5S {
        let (got, expected) = likelihoods(golden, model, "bf16");
        let errors: Vec<f64> = got.iter().zip(&expected).map(|(got, want)| (got - want).abs()).collect();
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        let worst = errors.into_iter().fold(0.0, f64::max);
        assert!(mean < 0.03 && worst < 0.2, "{model}: mean error {mean}, worst {worst}");
    }
}

/// Token for token: all settings in one call, as the rows of one batch, and each alone.
pub fn beams_are_those_of_transformers(golden: &Golden) {
    for model in T5S {
        let expected = stored::generation(model);
        let (mut generator, encoding) = golden.encoded(model, &expected.sources);
        let all: Vec<&Beams> = expected.beams.iter().chain([&expected.greedy]).collect();
        let keys = vec![0; expected.sources.len()];
        let decodings: Vec<Decoding> = all.iter().map(|beams| beams.settings.decoding()).collect();
        let together = done(generator.generate(encoding, &decodings, 0, &keys, &Unattended));
        let outputs: usize = decodings.iter().map(|it| it.num_samples as usize).sum();
        let mut before = 0;
        for (beams, decoding) in all.into_iter().zip(&decodings) {
            let alone = done(generator.generate(encoding, &[*decoding], 0, &keys, &Unattended));
            let each = decoding.num_samples as usize;
            assert_eq!(sequences(&alone).len(), beams.tokens.len(), "{model} {decoding:?}");
            let mut at = 0;
            for (i, (tokens, log_probs)) in beams.tokens.iter().zip(&beams.log_probs).enumerate() {
                let what = format!("{model} {decoding:?}, output {i}");
                assert_eq!(sequences(&alone)[i], tokens, "{what}");
                let shared = i / each * outputs + before + i % each;
                assert_eq!(sequences(&together)[shared], tokens, "{what} of the batch");
                assert_eq!(log_probs.len(), tokens.len(), "{what}");
                for (&got, &expected) in alone.log_probs[at..].iter().zip(log_probs) {
                    let got = f64::from(got);
                    assert!(golden.is_as_likely(got, expected), "{what}: {got} not {expected}");
                }
                at += tokens.len();
            }
            before += each;
        }
    }
}

/// Of 4000 draws of one token, shares against probabilities.
pub fn samples_follow_the_models_distribution(golden: &Golden) {
    let model = T5S[1];
    let expected = stored::generation(model);
    let (mut generator, encoding) = golden.encoded(model, &expected.sources[3..4]);
    let draws = 4000;
    let decoding = Decoding { num_samples: draws, ..sampling(9, 1.0, 0, 1.0, 2) };
    let generated = done(generator.generate(encoding, &[decoding], 11111, &[5], &Unattended));
    assert_eq!(generated.tokens.len(), draws as usize);
    let mut counts = HashMap::<u32, (u32, f64)>::new();
    for (token, log_prob) in generated.tokens.iter().zip(&generated.log_probs) {
        counts.entry(*token).or_insert((0, f64::from(*log_prob).exp())).0 += 1;
    }
    let draws = f64::from(draws);
    for (token, (count, prob)) in counts {
        // The end token is forbidden at the first position, which scales the others up.
        let (share, tolerance) = (f64::from(count) / draws, 5.0 * (prob / draws).sqrt() + 0.1 * prob + 1e-3);
        assert!((share - prob).abs() < tolerance, "token {token}: drawn {share}, probability {prob}");
    }
}
