//! Generation and likelihoods, timed: a T5 of flan-t5-small's or -large's shape with random weights, over 32 random
//! prompts of up to 200 tokens, the seed's five decodings (17 candidates a prompt, 32 new tokens each), and the
//! likelihood of every candidate.
//!
//! ```text
//! cargo run --release -p cappy-plugin-libtorch --features torch --example compare_backends -- \
//!     [libtorch|candle] [small|large] [cpu|cuda:0] [f32|bf16]
//! ```
//!
//! Prints one JSON line.

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/groups/random_t5.rs"]
mod random_t5;

use std::error::Error;
use std::time::Instant;

use cappy_plugin_abi::random::key_of;
use cappy_plugin_abi::{
    Backend, Decoding, Generator, LoadRequest, Method, MinLengthRule, TokenRows, Unattended,
};
use cappy_plugin_candle::CandleBackend;
use cappy_plugin_libtorch::LibtorchBackend;
use random_t5::{Model, Shape, directory, request, some_rows};
use serde_json::json;

const SMALL: Shape = Shape { vocab: 32128, width: 512, head: 64, heads: 6, inner: 1024, layers: 8 };
const LARGE: Shape = Shape { vocab: 32128, width: 1024, head: 64, heads: 16, inner: 2816, layers: 24 };
const NEW_TOKENS: u32 = 32;
const PROMPTS: u64 = 32;
const LONGEST: u64 = 200;
/// Prompts encoded together.
const BATCH: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize, default: &'static str| given.get(i).map_or(default, String::as_str);
    let (backend, size) = (argument(0, "libtorch"), argument(1, "small"));
    let shape = if size == "large" { LARGE } else { SMALL };
    let _model = Model::write(std::process::id(), size, &shape)?;
    let request = LoadRequest {
        device: argument(2, "cpu").into(),
        dtype: argument(3, "f32").into(),
        ..request(&directory(std::process::id(), size), None)
    };
    let mut generator = match backend {
        "candle" => CandleBackend.load_generator(&request)?,
        _ => LibtorchBackend.load_generator(&request)?,
    };
    let rows = some_rows(1, PROMPTS, LONGEST, shape.vocab);
    let mut rows: Vec<&[u32]> = (0..rows.view().rows()).map(|i| rows.view().row(i)).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.len()));
    run(generator.as_mut(), &rows[rows.len() - 2..])?;
    let (mut encoding, mut generating, mut judging, mut tokens) = (0.0, 0.0, 0.0, 0);
    for batch in rows.chunks(BATCH) {
        let times = run(generator.as_mut(), batch)?;
        encoding += times.0;
        generating += times.1;
        judging += times.2;
        tokens += times.3;
    }
    println!(
        "{}",
        json!({
            "backend": backend, "shape": size, "device": request.device, "dtype": request.dtype,
            "encode_s": encoding, "generate_s": generating, "likelihood_s": judging, "out_tokens": tokens,
            "out_tokens_per_s": tokens as f64 / (encoding + generating + judging),
        })
    );
    Ok(())
}

/// Seconds of each part, and the number of generated tokens.
fn run(generator: &mut dyn Generator, rows: &[&[u32]]) -> Result<(f64, f64, f64, usize), Box<dyn Error>> {
    let mut sources = TokenRows::new();
    rows.iter().for_each(|row| sources.push(row));
    let start = Instant::now();
    let encoding = generator.encode(sources.view(), &Unattended)?;
    let encoded = start.elapsed().as_secs_f64();
    let sample = |temperature, top_k, top_p| Method::Sample { temperature, top_k, top_p };
    let decodings = [
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
    });
    let keys: Vec<u64> = (0..rows.len() as u64).collect();
    let generated = generator.generate(encoding, &decodings, 11111, &keys, &Unattended)?;
    let done = start.elapsed().as_secs_f64();
    let a_row = (generated.offsets.len() - 1) / rows.len();
    let owners: Vec<u32> = (0..a_row * rows.len()).map(|i| (i / a_row) as u32).collect();
    let count = generated.tokens.len();
    let targets = TokenRows { tokens: generated.tokens, offsets: generated.offsets, type_ids: Vec::new() };
    generator.log_likelihood(encoding, targets.view(), &owners, &Unattended)?;
    generator.forget(encoding);
    Ok((encoded, done - encoded, start.elapsed().as_secs_f64() - done, count))
}
