//! Our side of `cargo xtask bench generate`: one timed pass over prompts of token ids.
//!
//! `bench_generate MODEL_DIR ROWS.json THREADS`: the seed's five decodings (17 candidates a prompt, 32 new tokens each)
//! and the log-likelihood of every candidate, computed anew although generation has met the same numbers. Prints one
//! JSON line.

use std::{env, error::Error, fs, path::Path, time::Instant};

use cappy_plugin_abi::{
    Backend as _, Decoding, Generator, LoadRequest, Method, MinLengthRule, TokenRows, Unattended,
    random::key_of,
};
use cappy_plugin_candle::CandleBackend;
use serde_json::json;

const NEW_TOKENS: u32 = 32;
/// Prompts encoded together, as on the peer's side.
const BATCH: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, rows, threads] = arguments.as_slice() else {
        return Err("expected MODEL_DIR ROWS.json THREADS".into());
    };
    rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    let mut rows: Vec<Vec<u32>> = serde_json::from_str(&fs::read_to_string(rows)?)?;
    rows.sort_by_key(|row| std::cmp::Reverse(row.len()));
    let mut generator = CandleBackend.load_generator(&LoadRequest {
        model_dir: model.clone(),
        config_json: fs::read_to_string(Path::new(model).join("config.json"))?,
        device: "cpu".into(),
        dtype: "f32".into(),
        options_json: "{}".into(),
    })?;
    run(generator.as_mut(), &rows[rows.len() - 2..])?;
    let start = Instant::now();
    let mut out_tokens = 0;
    for batch in rows.chunks(BATCH) {
        out_tokens += run(generator.as_mut(), batch)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({ "seconds": seconds, "out_tokens": out_tokens, "out_tokens_per_s": out_tokens as f64 / seconds })
    );
    Ok(())
}

/// Candidates and their likelihoods; returns the number of generated tokens.
fn run(generator: &mut dyn Generator, rows: &[Vec<u32>]) -> Result<usize, Box<dyn Error>> {
    let mut sources = TokenRows::new();
    rows.iter().for_each(|row| sources.push(row));
    let encoding = generator.encode(sources.view(), &Unattended)?;
    let sample = |temperature, top_k, top_p| Method::Sample { temperature, top_k, top_p };
    let decodings: Vec<Decoding> = [
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
    .to_vec();
    let keys: Vec<u64> = (0..rows.len() as u64).collect();
    let generated = generator.generate(encoding, &decodings, 11111, &keys, &Unattended)?;
    let per_row = (generated.offsets.len() - 1) / rows.len();
    let mut targets = TokenRows::new();
    let mut owners = Vec::new();
    for (index, ends) in generated.offsets.windows(2).enumerate() {
        targets.push(&generated.tokens[ends[0] as usize..ends[1] as usize]);
        owners.push((index / per_row) as u32);
    }
    generator.log_likelihood(encoding, targets.view(), &owners, &Unattended)?;
    generator.forget(encoding);
    Ok(generated.tokens.len())
}
