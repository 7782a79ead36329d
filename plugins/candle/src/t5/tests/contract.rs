//! Rows that do not depend on their batch, memory that is waited for, calls that end, requests that are refused.

use std::sync::atomic::{AtomicU64, Ordering};

use cappy_plugin_abi::{Code, Control, Failure};

use super::*;
use crate::t5::open;

#[test]
fn a_row_does_not_depend_on_its_batch_or_on_other_decodings() {
    for model in MODELS {
        let golden = expected(model);
        let (mut generator, id) = encoded(model, &golden.sources);
        let keys: Vec<u64> = (0..golden.sources.len() as u64).map(|i| i * 7 + 1).collect();
        let together = generator.generate(id, &five(), 3, &keys, &Unattended).expect("generate");
        let outputs = 17;
        for row in [4, 0, 8] {
            let alone =
                generator.encode(rows(&golden.sources[row..=row]).view(), &Unattended).expect("encode");
            let mut before = 0;
            for decoding in five() {
                let made =
                    generator.generate(alone, &[decoding], 3, &keys[row..=row], &Unattended).expect("one");
                for (i, tokens) in sequences(&made).into_iter().enumerate() {
                    let at = row * outputs + before + i;
                    assert_eq!(tokens, sequences(&together)[at], "{model} row {row} {decoding:?}");
                    let of = together.offsets[at] as usize..together.offsets[at + 1] as usize;
                    let own = made.offsets[i] as usize..made.offsets[i + 1] as usize;
                    assert_eq!(made.log_probs[own], together.log_probs[of], "{model} row {row}: log-probs");
                }
                before += decoding.num_samples as usize;
            }
            generator.forget(alone);
        }
    }
}

#[test]
fn rows_wait_for_memory_without_changing_the_text() {
    let golden = expected(MODELS[1]);
    let mut model = open(&request(MODELS[1])).expect("model");
    let id = model.encode(rows(&golden.sources).view(), &Unattended).expect("encode");
    let keys: Vec<u64> = (0..golden.sources.len() as u64).collect();
    let plenty = model.generate(id, &five(), 3, &keys, &Unattended).expect("generate");
    // Keys and values of 64 positions of 30 sequences: one row at first, the next when the first dwindles.
    model.history_bytes = 30 * 64 * 2 * 2 * model.config.inner() * size_of::<f32>();
    let scarce = model.generate(id, &five(), 3, &keys, &Unattended).expect("generate");
    assert_eq!(plenty, scarce);
}

#[test]
fn generated_log_probs_are_the_likelihoods_of_the_same_tokens() {
    let golden = expected(MODELS[1]);
    let (mut generator, id) = encoded(MODELS[1], &golden.sources);
    let keys: Vec<u64> = (0..golden.sources.len() as u64).collect();
    let generated = generator.generate(id, &five(), 3, &keys, &Unattended).expect("generate");
    let targets = TokenRows { tokens: generated.tokens, offsets: generated.offsets, type_ids: Vec::new() };
    let of: Vec<u32> = (0..targets.view().rows() as u32).map(|i| i / 17).collect();
    let again = generator.log_likelihood(id, targets.view(), &of, &Unattended).expect("likelihoods");
    for (got, want) in again.iter().zip(&generated.log_probs) {
        assert!((got - want).abs() < 2e-4, "{got} {want}");
    }
}

#[test]
fn the_end_token_waits_for_the_minimum_length() {
    let golden = expected(MODELS[1]);
    let (mut generator, id) = encoded(MODELS[1], &golden.sources);
    let keys: Vec<u64> = (0..golden.sources.len() as u64).collect();
    for (rule, shortest) in [(MinLengthRule::Pytorch, 5), (MinLengthRule::Flax, 6)] {
        let mut decodings = five();
        for decoding in &mut decodings {
            (decoding.min_length, decoding.min_length_rule, decoding.max_length) = (6, rule, 12);
        }
        let generated = generator.generate(id, &decodings, 1, &keys, &Unattended).expect("generate");
        // The end token counts, the start token too: a minimum of 6 means 4 tokens and the end.
        assert!(sequences(&generated).iter().all(|s| (shortest..=11).contains(&s.len())), "{rule:?}");
    }
}

#[test]
fn logits_that_are_not_finite_are_reported() {
    let golden = expected(MODELS[0]);
    let mut model = open(&request(MODELS[0])).expect("model");
    model.weights.decoder.final_norm[3] = f32::NAN;
    let id = model.encode(rows(&golden.sources[..2]).view(), &Unattended).expect("encode");
    let generated = model.generate(id, &five(), 0, &[0, 1], &Unattended).expect_err("generate");
    assert_eq!((generated.code, generated.message.contains("row 0")), (Code::NotFinite, true), "{generated}");
    let targets = rows([&vec![5, 1]]);
    let likelihood = model.log_likelihood(id, targets.view(), &[1], &Unattended).expect_err("likelihood");
    assert_eq!((likelihood.code, likelihood.message.contains("target 0")), (Code::NotFinite, true));
}

/// Cancels after some polls, and remembers the progress.
struct Patience {
    left: AtomicU64,
    seen: AtomicU64,
}

impl Control for Patience {
    fn cancelled(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }
    fn progress(&self, done: u64, total: u64) {
        assert!(done <= total);
        self.seen.fetch_max(done, Ordering::Relaxed);
    }
}

#[test]
fn calls_report_progress_and_can_be_cancelled() {
    let golden = expected(MODELS[0]);
    let (mut generator, id) = encoded(MODELS[0], &golden.sources);
    let keys = vec![0; golden.sources.len()];
    let patience = |polls| Patience { left: AtomicU64::new(polls), seen: AtomicU64::new(0) };
    let patient = patience(u64::MAX);
    generator.generate(id, &five(), 1, &keys, &patient).expect("not cancelled");
    assert_eq!(patient.seen.into_inner(), keys.len() as u64);
    let cancelled =
        |result: Result<(), Failure>| assert_eq!(result.expect_err("cancelled").code, Code::Cancelled);
    cancelled(generator.generate(id, &five(), 1, &keys, &patience(5)).map(drop));
    cancelled(generator.encode(rows(&golden.sources).view(), &patience(0)).map(drop));
    let targets = rows(golden.targets.iter().map(|t| &t.tokens));
    cancelled(generator.log_likelihood(id, targets.view(), &[0; 5], &patience(0)).map(drop));
}

#[test]
fn bad_requests_are_refused_in_one_line() {
    let golden = expected(MODELS[0]);
    let refusals: Vec<(Failure, Code, &str)> = {
        let refused = |change: &dyn Fn(&mut LoadRequest)| {
            let mut request = request(MODELS[0]);
            change(&mut request);
            load(&request).map(drop).expect_err("refused")
        };
        let (mut generator, id) = encoded(MODELS[0], &golden.sources[..1]);
        let bad = |decoding: Decoding| vec![five()[0], decoding];
        let beam = five()[0];
        let mut generate = |decodings: Vec<Decoding>| {
            generator.generate(id, &decodings, 0, &[0], &Unattended).map(drop).expect_err("refused")
        };
        let beams = |num_beams| Method::Beam { num_beams, length_penalty: 1.0, early_stopping: false };
        let mut all = vec![
            (refused(&|r| r.device = "cuda:0".into()), Code::Unsupported, "cuda:0"),
            (refused(&|r| r.dtype = "int8".into()), Code::Unsupported, "int8"),
            (refused(&|r| r.config_json = "[".into()), Code::BadModel, "config.json"),
            (refused(&|r| r.model_dir += "/absent"), Code::BadModel, "model.safetensors"),
            (
                refused(&|r| r.config_json = r.config_json.replace("\"d_ff\": 48", "\"d_ff\": 49")),
                Code::BadModel,
                "wi",
            ),
            (generate(bad(Decoding { method: beams(0), ..beam })), Code::InvalidArgument, "num_beams"),
            (generate(bad(Decoding { num_samples: 5, ..beam })), Code::InvalidArgument, "num_samples"),
            (generate(bad(sampling(0, 0.0, 0, 1.0, 9))), Code::InvalidArgument, "temperature"),
            (generate(bad(sampling(0, 1.0, 0, 1.5, 9))), Code::InvalidArgument, "decoding 1: top_p"),
        ];
        let keys = generator.generate(id, &five(), 0, &[1, 2], &Unattended).map(drop).expect_err("keys");
        all.push((keys, Code::InvalidArgument, "row keys"));
        let target = rows([&vec![5, 1]]);
        let row = generator.log_likelihood(id, target.view(), &[1], &Unattended).map(drop).expect_err("row");
        all.push((row, Code::InvalidArgument, "row 1"));
        generator.forget(id);
        generator.forget(id);
        let gone = generator.generate(id, &five(), 0, &[0], &Unattended).map(drop).expect_err("forgotten");
        all.push((gone, Code::InvalidArgument, "unknown encoding"));
        let vocab =
            generator.encode(rows([&vec![5, 120]]).view(), &Unattended).map(drop).expect_err("vocabulary");
        all.push((vocab, Code::InvalidArgument, "120"));
        all
    };
    for (failure, code, names) in refusals {
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.message.contains(names) && !failure.message.contains('\n'), "{failure}");
    }
}
