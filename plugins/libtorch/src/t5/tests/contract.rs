//! Rows that do not depend on their batch, memory that is waited for, calls that end, requests that are refused.

use std::sync::atomic::{AtomicU64, Ordering};

use cappy_plugin_abi::{Code, Control};

use super::*;
use crate::inference::InferenceMode;

fn keys(golden: &Expected) -> Vec<u64> {
    (0..golden.sources.len() as u64).map(|i| i * 7 + 1).collect()
}

fn close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() < 1e-4, "{what}: {got} {want}");
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_on_other_decodings() {
    for model in MODELS {
        let golden = expected(model);
        let (mut generator, id) = encoded(model, &golden.sources);
        let keys = keys(&golden);
        let together = generator.generate(id, &five(), 3, &keys, &Unattended).expect("generate");
        for row in [4, 0, 8] {
            let alone =
                generator.encode(rows(&golden.sources[row..=row]).view(), &Unattended).expect("encode");
            let mut at = row * 17;
            for decoding in five() {
                let made =
                    generator.generate(alone, &[decoding], 3, &keys[row..=row], &Unattended).expect("one");
                for (i, tokens) in sequences(&made).into_iter().enumerate() {
                    let what = format!("{model} row {row} {decoding:?}");
                    assert_eq!(tokens, sequences(&together)[at], "{what}");
                    let of = together.offsets[at] as usize..together.offsets[at + 1] as usize;
                    let own = made.offsets[i] as usize..made.offsets[i + 1] as usize;
                    close(&made.log_probs[own], &together.log_probs[of], &what);
                    at += 1;
                }
            }
            generator.forget(alone);
        }
    }
}

#[test]
fn rows_wait_for_memory_without_changing_the_text() {
    let golden = expected(MODELS[1]);
    let mut model = open(MODELS[1]);
    let id = model.encode(rows(&golden.sources).view(), &Unattended).expect("encode");
    let keys = keys(&golden);
    let plenty = model.generate(id, &five(), 3, &keys, &Unattended).expect("generate");
    // Of the 20 sequences a row: one row at a time; a few rows at a time, others joining as they dwindle.
    for sequences_at_once in [1, 50, 110] {
        let config = &model.model.config;
        model.cache_bytes =
            sequences_at_once * 64 * 2 * config.num_decoder_layers * config.inner() * size_of::<f32>();
        let scarce = model.generate(id, &five(), 3, &keys, &Unattended).expect("generate");
        assert_eq!(plenty.tokens, scarce.tokens, "{sequences_at_once}");
        close(&plenty.log_probs, &scarce.log_probs, "scarce memory");
    }
}

#[test]
fn generated_log_probs_are_the_likelihoods_of_the_same_tokens() {
    let golden = expected(MODELS[1]);
    let (mut generator, id) = encoded(MODELS[1], &golden.sources);
    let generated = generator.generate(id, &five(), 3, &keys(&golden), &Unattended).expect("generate");
    let targets = TokenRows { tokens: generated.tokens, offsets: generated.offsets, type_ids: Vec::new() };
    let of: Vec<u32> = (0..targets.view().rows() as u32).map(|i| i / 17).collect();
    let again = generator.log_likelihood(id, targets.view(), &of, &Unattended).expect("likelihoods");
    close(&again, &generated.log_probs, "likelihoods");
}

#[test]
fn targets_may_crowd_on_one_row() {
    let golden = expected(MODELS[1]);
    let (mut generator, id) = encoded(MODELS[1], &golden.sources);
    // Many targets of one source and few of others: queries are not padded to the many.
    let tokens: Vec<Vec<u32>> = (0..30_u32).map(|i| (0..=i % 7).map(|j| 5 + i + j).collect()).collect();
    let of: Vec<u32> = (0..30).map(|i| if i < 27 { 4 } else { i - 27 }).collect();
    let together = generator.log_likelihood(id, rows(&tokens).view(), &of, &Unattended).expect("together");
    let mut alone = Vec::new();
    for (target, row) in tokens.iter().zip(&of) {
        alone.extend(generator.log_likelihood(id, rows([target]).view(), &[*row], &Unattended).expect("one"));
    }
    close(&together, &alone, "crowded");
}

#[test]
fn nothing_asked_is_nothing_answered() {
    let golden = expected(MODELS[0]);
    let (mut generator, id) = encoded(MODELS[0], &golden.sources[..2]);
    let none = generator.encode(TokenRows::new().view(), &Unattended).expect("no rows");
    let empty = Generated { offsets: vec![0], ..Default::default() };
    assert_eq!(generator.generate(none, &five(), 0, &[], &Unattended).expect("no rows"), empty);
    assert_eq!(generator.generate(id, &[], 0, &[1, 2], &Unattended).expect("no decodings"), empty);
    let short = Decoding { max_length: 1, min_length: 0, ..five()[1] };
    let generated = generator.generate(id, &[short], 0, &[1, 2], &Unattended).expect("no room");
    assert_eq!((generated.tokens.len(), generated.offsets), (0, vec![0; 9]));
    let likelihoods = generator.log_likelihood(id, TokenRows::new().view(), &[], &Unattended);
    assert!(likelihoods.expect("no targets").is_empty());
}

#[test]
fn logits_that_are_not_finite_are_reported() {
    let golden = expected(MODELS[0]);
    let mut model = open(MODELS[0]);
    let mode = InferenceMode::enter();
    let _ = model.model.weights.decoder.final_norm.fill_(f64::NAN);
    drop(mode);
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
    let keys = keys(&golden);
    let patience = |polls| Patience { left: AtomicU64::new(polls), seen: AtomicU64::new(0) };
    let patient = patience(u64::MAX);
    generator.generate(id, &five(), 1, &keys, &patient).expect("not cancelled");
    assert_eq!(patient.seen.into_inner(), keys.len() as u64);
    let cancelled =
        |result: Result<(), Failure>| assert_eq!(result.expect_err("cancelled").code, Code::Cancelled);
    cancelled(generator.generate(id, &five(), 1, &keys, &patience(5)).map(drop));
    cancelled(generator.encode(rows(&golden.sources).view(), &patience(0)).map(drop));
    let targets = rows(golden.targets.iter().map(|t| &t.tokens));
    let of = vec![0; golden.targets.len()];
    cancelled(generator.log_likelihood(id, targets.view(), &of, &patience(0)).map(drop));
}

#[test]
fn bad_requests_are_refused_in_one_line() {
    let refused = |change: &dyn Fn(&mut LoadRequest)| {
        let mut request = request(MODELS[0]);
        change(&mut request);
        open_as(&request, Kind::Float).map(drop).expect_err("refused")
    };
    let wide = |r: &mut LoadRequest| r.config_json = r.config_json.replace("\"d_ff\": 48", "\"d_ff\": 49");
    let table = [
        (refused(&|r| r.config_json = "[".into()), Code::BadModel, "config.json"),
        (refused(&|r| r.model_dir += "/absent"), Code::BadModel, "model.safetensors"),
        (refused(&wide), Code::BadModel, "wi"),
    ];
    for (failure, code, names) in table {
        assert_eq!(failure.code, code, "{failure}");
        assert!(failure.message.contains(names) && !failure.message.contains('\n'), "{failure}");
    }
}
