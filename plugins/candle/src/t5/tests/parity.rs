//! Numbers and tokens of transformers, and of the plain forward pass.

use super::*;
use crate::t5::bias::bucket;
use crate::t5::config::Config;
use crate::t5::plain::Plain;
use crate::t5::sample;
use crate::weights::Checkpoint;

#[test]
fn buckets_match_transformers() {
    let golden = expected(MODELS[0]);
    for (i, distance) in (-300..=300).enumerate() {
        assert_eq!(bucket(distance, true, 32, 128), golden.bucket_bi[i], "bidirectional {distance}");
        assert_eq!(bucket(distance, false, 32, 128), golden.bucket_uni[i], "unidirectional {distance}");
    }
}

#[test]
fn the_plain_pass_and_the_fast_one_match_transformers() {
    for model in MODELS {
        let golden = expected(model);
        let config = Config::parse(&request(model).config_json).expect("config");
        let checkpoint = Checkpoint::open(&folder(model)).expect("checkpoint");
        let plain = Plain { config: &config, checkpoint: &checkpoint };
        let (mut generator, id) = encoded(model, &golden.sources);
        let targets = rows(golden.targets.iter().map(|t| &t.tokens));
        let of: Vec<u32> = golden.targets.iter().map(|t| t.row).collect();
        let fast = generator.log_likelihood(id, targets.view(), &of, &Unattended).expect("likelihoods");
        let mut fast = fast.into_iter();
        for target in &golden.targets {
            let source = &golden.sources[target.row as usize];
            let inputs: Vec<u32> = [config.start_token]
                .into_iter()
                .chain(target.tokens[..target.tokens.len() - 1].to_vec())
                .collect();
            let logits = plain.decode(&inputs, &plain.encode(source));
            for (got, want) in logits[inputs.len() - 1].iter().zip(&target.last_logits) {
                assert!((got - want).abs() < 2e-4, "{model} row {}: logit {got} {want}", target.row);
            }
            for (i, (logits, &token)) in logits.iter().zip(&target.tokens).enumerate() {
                let slow = logits[token as usize] - logits.iter().map(|v| v.exp()).sum::<f64>().ln();
                let (fast, want) = (f64::from(fast.next().expect("one a token")), target.log_probs[i]);
                assert!((slow - want).abs() < 1e-3 * want.abs().max(0.1), "{model} plain {i}: {slow} {want}");
                assert!((fast - want).abs() < 1e-3 * want.abs().max(0.1), "{model} fast {i}: {fast} {want}");
                assert!((fast - slow).abs() < 2e-4, "{model} fast {i}: {fast} plain {slow}");
            }
        }
    }
}

#[test]
fn beam_search_gives_transformers_tokens() {
    for model in MODELS {
        let golden = expected(model);
        let (mut generator, id) = encoded(model, &golden.sources);
        let all: Vec<&Beams> = golden.beams.iter().chain([&golden.greedy]).collect();
        let keys = vec![0; golden.sources.len()];
        // Together in one call, as the rows of one batch, and each setting alone.
        let decodings: Vec<Decoding> = all.iter().map(|b| beam(&b.settings)).collect();
        let together = generator.generate(id, &decodings, 0, &keys, &Unattended).expect("generate");
        let outputs: usize = decodings.iter().map(|d| d.num_samples as usize).sum();
        let mut before = 0;
        for (golden_beams, decoding) in all.into_iter().zip(&decodings) {
            let alone = generator.generate(id, &[*decoding], 0, &keys, &Unattended).expect("generate");
            let each = decoding.num_samples as usize;
            let mut at = 0;
            for (i, (want, log_probs)) in golden_beams.tokens.iter().zip(&golden_beams.log_probs).enumerate()
            {
                let got = sequences(&alone)[i];
                assert_eq!(got, want, "{model} {decoding:?} output {i}");
                let shared = i / each * outputs + before + i % each;
                assert_eq!(
                    sequences(&together)[shared],
                    want,
                    "{model} {decoding:?} output {i} of the batch"
                );
                for (got, want) in alone.log_probs[at..].iter().zip(log_probs) {
                    assert!((f64::from(*got) - want).abs() < 1e-3 * want.abs().max(0.1), "{got} {want}");
                }
                at += got.len();
            }
            before += each;
        }
    }
}

#[test]
fn warped_distributions_match_transformers() {
    for model in MODELS {
        for case in expected(model).warped {
            let warp = sample::Warp { temperature: case.temperature, top_k: case.top_k, top_p: case.top_p };
            let draw = |u| sample::draw(&case.logits, Some(case.forbidden), warp, u, &mut Default::default());
            // Just inside both ends of every token's share of [0, 1).
            let mut below = 0.0;
            for (&token, &prob) in case.tokens.iter().zip(&case.probs) {
                // The rounding of the stored figures adds up over the vocabulary.
                let margin = prob * 0.01 + 2e-6;
                if prob > 2.0 * margin {
                    let got = (draw(below + margin), draw(below + prob - margin));
                    assert_eq!(got, (token, token), "{model} {warp:?} around {below}");
                }
                below += prob;
            }
            assert!((below - 1.0).abs() < 1e-5);
            assert_eq!(draw(0.0), case.tokens[0]);
            assert_eq!(Some(&draw(1.0 - f64::EPSILON)), case.tokens.last());
        }
    }
}

#[test]
fn samples_follow_the_models_distribution() {
    let golden = expected(MODELS[1]);
    let (mut generator, id) = encoded(MODELS[1], &golden.sources[3..4]);
    let draws = 4000;
    let decoding = Decoding { num_samples: draws, ..sampling(9, 1.0, 0, 1.0, 2) };
    let generated = generator.generate(id, &[decoding], 11111, &[5], &Unattended).expect("generate");
    let mut counts = std::collections::HashMap::<u32, (u32, f64)>::new();
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
