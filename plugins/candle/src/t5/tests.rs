//! The inside of T5: buckets, warping and the plain pass against stored outputs of transformers, and what only shows
//! from here. (What every backend must do is in `tests/conformance.rs`.)

use std::path::Path;

use cappy_plugin_abi::{Code, Generator, LoadRequest, Unattended};
use cappy_plugin_suite::batch_of;
use cappy_plugin_suite::golden::stored::{T5S, generation};
use cappy_plugin_suite::golden::{five_decodings, request};

use super::bias::bucket;
use super::config::Config;
use super::plain::Plain;
use super::{T5, load, open, sample};
use crate::weights::Checkpoint;

fn on_the_cpu(model: &str) -> LoadRequest {
    LoadRequest { device: "cpu".into(), ..request(model) }
}

fn opened(model: &str) -> T5 {
    open(&on_the_cpu(model)).expect("model")
}

#[test]
fn buckets_match_transformers() {
    let golden = generation(T5S[0]);
    for (i, distance) in (-300..=300).enumerate() {
        assert_eq!(bucket(distance, true, 32, 128), golden.bucket_bi[i], "bidirectional {distance}");
        assert_eq!(bucket(distance, false, 32, 128), golden.bucket_uni[i], "unidirectional {distance}");
    }
}

#[test]
fn the_plain_pass_and_the_fast_one_match_transformers() {
    for model in T5S {
        let golden = generation(model);
        let request = on_the_cpu(model);
        let config = Config::parse(&request.config_json).expect("config");
        let checkpoint = Checkpoint::open(Path::new(&request.model_dir)).expect("checkpoint");
        let plain = Plain { config: &config, checkpoint: &checkpoint };
        let mut generator = opened(model);
        let id = generator.encode(batch_of(&golden.sources).view(), &Unattended).expect("encode");
        let (targets, of) = golden.target_rows();
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
                assert!((fast - slow).abs() < 2e-4, "{model} fast {i}: {fast} plain {slow}");
            }
        }
    }
}

#[test]
fn warped_distributions_match_transformers() {
    for model in T5S {
        for case in generation(model).warped {
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
fn rows_wait_for_memory_without_changing_the_text() {
    let golden = generation(T5S[1]);
    let mut model = opened(T5S[1]);
    let id = model.encode(batch_of(&golden.sources).view(), &Unattended).expect("encode");
    let keys = golden.keys();
    let plenty = model.generate(id, &five_decodings(), 3, &keys, &Unattended).expect("generate");
    // Keys and values of 64 positions of 30 sequences: one row at first, the next when the first dwindles.
    model.history_bytes = 30 * 64 * 2 * 2 * model.config.inner() * size_of::<f32>();
    let scarce = model.generate(id, &five_decodings(), 3, &keys, &Unattended).expect("generate");
    assert_eq!(plenty, scarce);
}

#[test]
fn logits_that_are_not_finite_are_reported() {
    let golden = generation(T5S[0]);
    let mut model = opened(T5S[0]);
    model.weights.decoder.final_norm[3] = f32::NAN;
    let id = model.encode(batch_of(&golden.sources[..2]).view(), &Unattended).expect("encode");
    let generated = model.generate(id, &five_decodings(), 0, &[0, 1], &Unattended).expect_err("generate");
    assert_eq!((generated.code, generated.message.contains("row 0")), (Code::NotFinite, true), "{generated}");
    let targets = batch_of([&vec![5, 1]]);
    let likelihood = model.log_likelihood(id, targets.view(), &[1], &Unattended).expect_err("likelihood");
    assert_eq!((likelihood.code, likelihood.message.contains("target 0")), (Code::NotFinite, true));
}

#[test]
fn a_gpu_is_refused_by_its_name() {
    let request = LoadRequest { device: "cuda:0".into(), ..request(T5S[0]) };
    let failure = load(&request).map(drop).expect_err("refused");
    assert_eq!(failure.code, Code::Unsupported);
    assert!(failure.message.contains("cuda:0") && !failure.message.contains('\n'), "{failure}");
}
