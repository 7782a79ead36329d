//! What holds for calls of T5 whatever the numbers are: rows that do not depend on their batch, limits, progress,
//! calls that end, requests that are refused.

use std::sync::atomic::{AtomicU64, Ordering};

use cappy_plugin_abi::{
    Code, Control, Decoding, Failure, Generated, LoadRequest, Method, MinLengthRule, TokenRows, Unattended,
};

use super::stored::{self, T5S};
use super::{Golden, OUTPUTS, close, five_decodings, sampling, sequences};
use crate::{batch_of, done, refused};

/// Alone, with one decoding at a time, as among all rows with all decodings.
pub fn a_row_does_not_depend_on_its_batch_or_on_other_decodings(golden: &Golden) {
    for model in T5S {
        let stored = stored::generation(model);
        let (mut generator, encoding) = golden.encoded(model, &stored.sources);
        let keys = stored.keys();
        let together = done(generator.generate(encoding, &five_decodings(), 3, &keys, &Unattended));
        assert_eq!(sequences(&together).len(), OUTPUTS * keys.len());
        for row in [4, 0, 8] {
            let rows = batch_of(&stored.sources[row..=row]);
            let alone = done(generator.encode(rows.view(), &Unattended));
            let mut at = row * OUTPUTS;
            for decoding in five_decodings() {
                let made = done(generator.generate(alone, &[decoding], 3, &keys[row..=row], &Unattended));
                for (i, tokens) in sequences(&made).into_iter().enumerate() {
                    let what = format!("{model}, row {row}, {decoding:?}");
                    assert_eq!(tokens, sequences(&together)[at], "{what}");
                    let of = together.offsets[at] as usize..together.offsets[at + 1] as usize;
                    let own = made.offsets[i] as usize..made.offsets[i + 1] as usize;
                    let bound = golden.bounds.likelihood_alone;
                    close(&made.log_probs[own], &together.log_probs[of], bound, &what);
                    at += 1;
                }
            }
            generator.forget(alone);
        }
    }
}

/// In f32, within 1e-4.
pub fn generated_log_probs_are_the_likelihoods_of_the_same_tokens(golden: &Golden) {
    for model in T5S {
        let stored = stored::generation(model);
        let (mut generator, encoding) = golden.encoded(model, &stored.sources);
        let generated = done(generator.generate(encoding, &five_decodings(), 3, &stored.keys(), &Unattended));
        let targets =
            TokenRows { tokens: generated.tokens, offsets: generated.offsets, type_ids: Vec::new() };
        let rows: Vec<u32> = (0..targets.view().rows()).map(|i| (i / OUTPUTS) as u32).collect();
        let again = done(generator.log_likelihood(encoding, targets.view(), &rows, &Unattended));
        close(&again, &generated.log_probs, 1e-4, model);
    }
}

/// By both rules.
pub fn the_end_token_waits_for_the_minimum_length(golden: &Golden) {
    let stored = stored::generation(T5S[1]);
    let (mut generator, encoding) = golden.encoded(T5S[1], &stored.sources);
    for (rule, shortest) in [(MinLengthRule::Pytorch, 5), (MinLengthRule::Flax, 6)] {
        let mut decodings = five_decodings();
        for decoding in &mut decodings {
            (decoding.min_length, decoding.min_length_rule, decoding.max_length) = (6, rule, 12);
        }
        let generated = done(generator.generate(encoding, &decodings, 1, &stored.keys(), &Unattended));
        // The end token counts, the start token too: a minimum of 6 means 4 tokens and the end.
        assert!(sequences(&generated).iter().all(|it| (shortest..=11).contains(&it.len())), "{rule:?}");
    }
}

/// Many targets of one source and few of others are as likely as each alone.
pub fn targets_may_crowd_on_one_row(golden: &Golden) {
    let stored = stored::generation(T5S[1]);
    let (mut generator, encoding) = golden.encoded(T5S[1], &stored.sources);
    let tokens: Vec<Vec<u32>> = (0..30_u32).map(|i| (0..=i % 7).map(|j| 5 + i + j).collect()).collect();
    let rows: Vec<u32> = (0..30).map(|i| if i < 27 { 4 } else { i - 27 }).collect();
    let together = done(generator.log_likelihood(encoding, batch_of(&tokens).view(), &rows, &Unattended));
    let mut alone = Vec::new();
    for (target, row) in tokens.iter().zip(&rows) {
        let one = batch_of([target]);
        alone.extend(done(generator.log_likelihood(encoding, one.view(), &[*row], &Unattended)));
    }
    close(&together, &alone, 1e-4, "crowded targets");
}

/// No rows, no decodings, no room for a token, no targets.
pub fn nothing_asked_is_nothing_answered(golden: &Golden) {
    let stored = stored::generation(T5S[0]);
    let (mut generator, encoding) = golden.encoded(T5S[0], &stored.sources[..2]);
    let none = done(generator.encode(TokenRows::new().view(), &Unattended));
    let empty = Generated { offsets: vec![0], ..Default::default() };
    assert_eq!(done(generator.generate(none, &five_decodings(), 0, &[], &Unattended)), empty);
    assert_eq!(done(generator.generate(encoding, &[], 0, &[1, 2], &Unattended)), empty);
    let short = Decoding { max_length: 1, min_length: 0, ..five_decodings()[1] };
    let generated = done(generator.generate(encoding, &[short], 0, &[1, 2], &Unattended));
    assert_eq!((generated.tokens.len(), generated.offsets), (0, vec![0; 9]));
    assert!(done(generator.log_likelihood(encoding, TokenRows::new().view(), &[], &Unattended)).is_empty());
}

/// Cancels after some polls, and remembers the progress.
struct Patience {
    left: AtomicU64,
    seen: AtomicU64,
}

impl Patience {
    fn of(polls: u64) -> Self {
        Self { left: AtomicU64::new(polls), seen: AtomicU64::new(0) }
    }
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

/// Progress is counted in rows; a generation ends amid its steps.
pub fn calls_report_progress_and_can_be_cancelled(golden: &Golden) {
    let stored = stored::generation(T5S[0]);
    let (mut generator, encoding) = golden.encoded(T5S[0], &stored.sources);
    let keys = stored.keys();
    let patient = Patience::of(u64::MAX);
    done(generator.generate(encoding, &five_decodings(), 1, &keys, &patient));
    assert_eq!(patient.seen.into_inner(), keys.len() as u64);
    let cancelled = |result: Result<(), Failure>, what| refused(result, Code::Cancelled, "", what);
    let generated = generator.generate(encoding, &five_decodings(), 1, &keys, &Patience::of(5));
    cancelled(generated.map(drop), "a generation");
    let sources = batch_of(&stored.sources);
    cancelled(generator.encode(sources.view(), &Patience::of(0)).map(drop), "an encode");
    let (targets, rows) = stored.target_rows();
    let likelihoods = generator.log_likelihood(encoding, targets.view(), &rows, &Patience::of(0));
    cancelled(likelihoods.map(drop), "likelihoods");
}

/// Naming what is wrong.
pub fn bad_requests_are_refused_in_one_line(golden: &Golden) {
    let load = |code: Code, naming: &str, change: &dyn Fn(&mut LoadRequest)| {
        let mut request = golden.generator_request(T5S[0]);
        change(&mut request);
        refused(golden.backend.load_generator(&request).map(drop), code, naming, "a model");
    };
    load(Code::Unsupported, "int8", &|it| it.dtype = "int8".into());
    load(Code::BadModel, "config.json", &|it| it.config_json = "[".into());
    load(Code::BadModel, "model.safetensors", &|it| it.model_dir += "/absent");
    load(Code::BadModel, "wi", &|it| it.config_json = it.config_json.replace("\"d_ff\": 48", "\"d_ff\": 49"));

    let stored = stored::generation(T5S[0]);
    let (mut generator, encoding) = golden.encoded(T5S[0], &stored.sources[..1]);
    let bad = Code::InvalidArgument;
    let beam = five_decodings()[0];
    let beams = |num_beams| Method::Beam { num_beams, length_penalty: 1.0, early_stopping: false };
    for (decoding, naming) in [
        (Decoding { method: beams(0), ..beam }, "num_beams"),
        (Decoding { num_samples: 5, ..beam }, "num_samples"),
        (sampling(0, 0.0, 0, 1.0, 9), "temperature"),
        (sampling(0, 1.0, 0, 1.5, 9), "decoding 1: top_p"),
    ] {
        let generated = generator.generate(encoding, &[beam, decoding], 0, &[0], &Unattended);
        refused(generated, bad, naming, "a decoding");
    }
    let keys = generator.generate(encoding, &five_decodings(), 0, &[1, 2], &Unattended);
    refused(keys, bad, "row keys", "too many keys");
    let target = batch_of([&vec![5, 1]]);
    refused(generator.log_likelihood(encoding, target.view(), &[1], &Unattended), bad, "row 1", "a row");
    generator.forget(encoding);
    generator.forget(encoding);
    let gone = generator.generate(encoding, &five_decodings(), 0, &[0], &Unattended);
    refused(gone, bad, "unknown encoding", "a forgotten encoding");
    refused(generator.encode(batch_of([&vec![5, 120]]).view(), &Unattended), bad, "120", "a token");
}
