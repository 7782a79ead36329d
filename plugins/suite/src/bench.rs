//! A backend's side of `cargo xtask bench`: one timed pass over rows of token ids, whatever the backend.
//!
//! `PROGRAM MODEL_DIR ROWS.json [DEVICE] [DTYPE] [BATCH]`, where the rows are a JSON list of lists of ids. Prints one JSON
//! line with `seconds`. Threads are the environment's: `RAYON_NUM_THREADS`, `OMP_NUM_THREADS`.

use std::{env, error::Error, fs, path::Path, time::Instant};

use cappy_plugin_abi::random::key_of;
use cappy_plugin_abi::{
    Backend, Decoding, Generator, LoadRequest, Method, MinLengthRule, TokenRows, Unattended,
};
use serde_json::json;

use crate::batch_of;

/// New tokens of each candidate: random weights rarely end by themselves.
const NEW_TOKENS: u32 = 32;

/// What the command line says.
struct Work {
    request: LoadRequest,
    rows: Vec<Vec<u32>>,
    /// Prompts encoded together.
    batch: usize,
}

impl Work {
    fn read() -> Result<Self, Box<dyn Error>> {
        let arguments: Vec<String> = env::args().skip(1).collect();
        let [model, rows, place @ ..] = arguments.as_slice() else {
            return Err("expected MODEL_DIR ROWS.json [DEVICE] [DTYPE] [BATCH]".into());
        };
        let place = |i: usize, default: &str| place.get(i).map_or(default.to_owned(), String::clone);
        Ok(Self {
            request: LoadRequest {
                model_dir: model.clone(),
                config_json: fs::read_to_string(Path::new(model).join("config.json"))?,
                device: place(0, "cpu"),
                dtype: place(1, "f32"),
                options_json: "{}".into(),
            },
            rows: serde_json::from_str(&fs::read_to_string(rows)?)?,
            batch: place(2, "16").parse()?,
        })
    }
}

/// Scores all rows.
///
/// # Errors
/// What the command line, the files or the backend say.
pub fn score(backend: &dyn Backend) -> Result<(), Box<dyn Error>> {
    let Work { request, rows, .. } = Work::read()?;
    let mut scorer = backend.load_scorer(&request)?;
    let batch = batch_of(&rows);
    // On the CPU two rows wake everything up; a GPU's libraries choose their kernels by size.
    let some = if request.device == "cpu" { 2 } else { rows.len() };
    scorer.score(batch_of(rows.iter().take(some)).view(), &Unattended)?;
    let start = Instant::now();
    let scores = scorer.score(batch.view(), &Unattended)?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens = batch.tokens.len();
    println!(
        "{}",
        json!({ "seconds": seconds, "tokens": tokens, "tokens_per_s": tokens as f64 / seconds, "scores": scores })
    );
    Ok(())
}

/// The seed's five decodings of every prompt (17 candidates, 32 new tokens each), and the log-likelihood of every
/// candidate, computed anew although generation has met the same numbers.
///
/// # Errors
/// As [`score`].
pub fn generate(backend: &dyn Backend) -> Result<(), Box<dyn Error>> {
    let Work { request, mut rows, batch } = Work::read()?;
    rows.sort_by_key(|row| std::cmp::Reverse(row.len()));
    let mut generator = backend.load_generator(&request)?;
    let warm_up =
        if request.device == "cpu" { &rows[rows.len() - 2..] } else { &rows[..batch.min(rows.len())] };
    candidates(generator.as_mut(), warm_up)?;
    let start = Instant::now();
    let (mut seconds, mut out_tokens) = ([0.0; 3], 0);
    for batch in rows.chunks(batch) {
        let (parts, tokens) = candidates(generator.as_mut(), batch)?;
        seconds.iter_mut().zip(parts).for_each(|(all, part)| *all += part);
        out_tokens += tokens;
    }
    let total = start.elapsed().as_secs_f64();
    let [encode, generate, likelihood] = seconds;
    println!(
        "{}",
        json!({
            "seconds": total, "encode_s": encode, "generate_s": generate, "likelihood_s": likelihood,
            "rows": rows.len(), "out_tokens": out_tokens, "out_tokens_per_s": out_tokens as f64 / total,
        })
    );
    Ok(())
}

/// Candidates and their likelihoods: seconds of encoding, generating and judging, and the number of generated tokens.
fn candidates(generator: &mut dyn Generator, rows: &[Vec<u32>]) -> Result<([f64; 3], usize), Box<dyn Error>> {
    let sources = batch_of(rows);
    let start = Instant::now();
    let encoding = generator.encode(sources.view(), &Unattended)?;
    let encoded = start.elapsed().as_secs_f64();
    let keys: Vec<u64> = (0..rows.len() as u64).collect();
    let generated = generator.generate(encoding, &decodings(), 11111, &keys, &Unattended)?;
    let done = start.elapsed().as_secs_f64();
    let per_row = (generated.offsets.len() - 1) / rows.len();
    let owners: Vec<u32> = (0..per_row * rows.len()).map(|i| (i / per_row) as u32).collect();
    let count = generated.tokens.len();
    let targets = TokenRows { tokens: generated.tokens, offsets: generated.offsets, type_ids: Vec::new() };
    generator.log_likelihood(encoding, targets.view(), &owners, &Unattended)?;
    generator.forget(encoding);
    Ok(([encoded, done - encoded, start.elapsed().as_secs_f64() - done], count))
}

/// The seed's, of a fixed length.
fn decodings() -> Vec<Decoding> {
    let sample = |temperature, top_k, top_p| Method::Sample { temperature, top_k, top_p };
    [
        ("beam4", 1, Method::Beam { num_beams: 4, length_penalty: 1.0, early_stopping: false }),
        ("sampling", 4, sample(1.0, 50, 1.0)),
        ("temp0.9", 4, sample(0.9, 50, 1.0)),
        ("topk40", 4, sample(1.0, 40, 1.0)),
        ("topp0.95", 4, sample(1.0, 50, 0.95)),
    ]
    .map(|(name, num_samples, method)| Decoding {
        key: key_of(name),
        method,
        num_samples,
        min_length: NEW_TOKENS + 1,
        max_length: NEW_TOKENS + 1,
        min_length_rule: MinLengthRule::Pytorch,
    })
    .to_vec()
}
