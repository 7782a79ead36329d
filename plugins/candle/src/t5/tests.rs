//! Against stored outputs of transformers (`tests/fixtures/make_t5.py`) and against the plain forward pass.

use super::bias::bucket;
use super::config::Config;
use super::plain::Plain;
use super::{load, open, sample};
use crate::weights::Checkpoint;
use cappy_plugin_abi::{
    Code, Control, Decoding, EncodingId, Failure, Generated, Generator, LoadRequest, Method, MinLengthRule,
    TokenRows, Unattended,
};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const MODELS: [&str; 2] = ["t5_v1_0", "t5_v1_1"];

#[derive(Deserialize)]
struct Expected {
    sources: Vec<Vec<u32>>,
    bucket_bi: Vec<usize>,
    bucket_uni: Vec<usize>,
    targets: Vec<Target>,
    beams: Vec<Beams>,
    greedy: Beams,
    warped: Vec<Warped>,
}

#[derive(Deserialize)]
struct Target {
    row: u32,
    tokens: Vec<u32>,
    log_probs: Vec<f64>,
    last_logits: Vec<f64>,
}

#[derive(Deserialize)]
struct Beams {
    settings: Settings,
    tokens: Vec<Vec<u32>>,
    log_probs: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Settings {
    num_beams: u32,
    min_length: u32,
    max_length: u32,
    #[serde(default = "one")]
    length_penalty: f64,
    #[serde(default)]
    early_stopping: bool,
    num_return_sequences: Option<u32>,
}

fn one() -> f64 {
    1.0
}

#[derive(Deserialize)]
struct Warped {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    forbidden: u32,
    logits: Vec<f32>,
    tokens: Vec<u32>,
    probs: Vec<f64>,
}

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model)
}

fn expected(model: &str) -> Expected {
    let text = std::fs::read_to_string(folder(model).join("expected.json")).expect("fixture");
    serde_json::from_str(&text).expect("fixture")
}

fn request(model: &str) -> LoadRequest {
    LoadRequest {
        model_dir: folder(model).to_str().expect("utf-8 path").into(),
        config_json: std::fs::read_to_string(folder(model).join("config.json")).expect("fixture"),
        device: "cpu".into(),
        dtype: "auto".into(),
        options_json: "{}".into(),
    }
}

fn rows<'a>(rows: impl IntoIterator<Item = &'a Vec<u32>>) -> TokenRows {
    let mut made = TokenRows::new();
    for row in rows {
        made.push(row);
    }
    made
}

fn encoded(model: &str, sources: &[Vec<u32>]) -> (Box<dyn Generator>, EncodingId) {
    let mut generator = load(&request(model)).expect("model");
    let id = generator.encode(rows(sources).view(), &Unattended).expect("encode");
    (generator, id)
}

fn sequences(generated: &Generated) -> Vec<&[u32]> {
    generated.offsets.windows(2).map(|w| &generated.tokens[w[0] as usize..w[1] as usize]).collect()
}

fn beam(settings: &Settings) -> Decoding {
    Decoding {
        key: 0,
        method: Method::Beam {
            num_beams: settings.num_beams,
            length_penalty: settings.length_penalty,
            early_stopping: settings.early_stopping,
        },
        num_samples: settings.num_return_sequences.unwrap_or(1),
        min_length: settings.min_length,
        max_length: settings.max_length,
        min_length_rule: MinLengthRule::Pytorch,
    }
}

fn sampling(key: u64, temperature: f64, top_k: u32, top_p: f64, max_length: u32) -> Decoding {
    Decoding {
        key,
        method: Method::Sample { temperature, top_k, top_p },
        num_samples: 4,
        min_length: 3,
        max_length,
        min_length_rule: MinLengthRule::Pytorch,
    }
}

/// The seed's five decodings.
fn five() -> Vec<Decoding> {
    let settings = Settings {
        num_beams: 4,
        min_length: 3,
        max_length: 64,
        length_penalty: 1.0,
        early_stopping: false,
        num_return_sequences: None,
    };
    vec![
        beam(&settings),
        sampling(1, 1.0, 50, 1.0, 64),
        sampling(2, 0.9, 50, 1.0, 64),
        sampling(3, 1.0, 40, 1.0, 64),
        sampling(4, 1.0, 50, 0.95, 64),
    ]
}

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
