//! Scoring on a device, timed and compared with the CPU: a classifier of random weights over rows whose lengths are
//! those of `tests/bench` (log-normal, mean about 90 tokens, 12 to 512).
//!
//! ```text
//! cargo run --release -p cappy-plugin-candle [--features cuda] --example bench_devices -- \
//!     [roberta-base|roberta-large|modernbert-large|deberta-large] [cpu|cuda:0] [auto|f32|bf16] [ROWS] [COMPARED]
//! ```
//!
//! Prints one JSON line: rows and tokens a second in the best and the median of five calls over all rows, the time of a
//! call with one row and with 32, and the largest difference from the CPU's scores, in f32, of the first `COMPARED` rows.

#[path = "shared/random_encoder.rs"]
mod random_encoder;

use std::error::Error;
use std::time::Instant;

use cappy_plugin_abi::random::{fold, uniform};
use cappy_plugin_abi::{Backend as _, LoadRequest, Scorer, TokenRows, Unattended};
use cappy_plugin_candle::CandleBackend;
use random_encoder::{Shape, random_model};
use serde_json::json;

const ROUNDS: usize = 5;
const LARGE: Shape =
    Shape { family: "roberta", vocab_size: 50265, layers: 24, hidden: 1024, heads: 16, intermediate: 4096 };

fn main() -> Result<(), Box<dyn Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize, default: &'static str| given.get(i).map_or(default, String::as_str);
    let (name, count) = (argument(0, "roberta-large"), argument(3, "2048").parse()?);
    let shape = match name {
        "roberta-base" => Shape { layers: 12, hidden: 768, heads: 12, intermediate: 3072, ..LARGE },
        "roberta-large" => LARGE,
        "modernbert-large" => {
            Shape { family: "modernbert", vocab_size: 50368, layers: 28, intermediate: 2624, ..LARGE }
        }
        "deberta-large" => Shape { family: "deberta-v2", vocab_size: 128100, ..LARGE },
        other => return Err(format!("no shape is called `{other}`").into()),
    };
    let model = random_model(&shape)?;
    let load = |device: &str, dtype: &str| {
        CandleBackend.load_scorer(&LoadRequest {
            model_dir: model.path().to_string_lossy().into_owned(),
            config_json: std::fs::read_to_string(model.path().join("config.json")).expect("was written"),
            device: device.into(),
            dtype: dtype.into(),
            options_json: String::new(),
        })
    };
    let rows: Vec<Vec<u32>> = (0..count).map(|row| random_row(row, shape.vocab_size)).collect();
    let (device, dtype) = (argument(1, "cpu"), argument(2, "auto"));
    let start = Instant::now();
    let mut scorer = load(device, dtype)?;
    let load_seconds = start.elapsed().as_secs_f64();
    // The first calls load kernels and choose products' algorithms.
    timed(scorer.as_mut(), &rows[..rows.len().min(64)])?;
    let mut seconds = Vec::new();
    let mut scores = Vec::new();
    for _ in 0..ROUNDS {
        let (taken, found) = timed(scorer.as_mut(), &rows)?;
        seconds.push(taken);
        scores = found;
    }
    seconds.sort_by(f64::total_cmp);
    let mut small = |rows: &[Vec<u32>]| -> Result<f64, Box<dyn Error>> {
        let mut all = (0..20)
            .map(|_| Ok(timed(scorer.as_mut(), rows)?.0))
            .collect::<Result<Vec<f64>, Box<dyn Error>>>()?;
        all.sort_by(f64::total_cmp);
        Ok(1e3 * all[all.len() / 2])
    };
    let (one, some) = (small(&rows[..1])?, small(&rows[..rows.len().min(32)])?);
    let info = scorer.info();
    let compared = argument(4, "32").parse::<usize>()?.min(rows.len());
    let expected =
        if compared > 0 { timed(load("cpu", "f32")?.as_mut(), &rows[..compared])?.1 } else { Vec::new() };
    let difference = expected.iter().zip(&scores).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let spread =
        expected.iter().copied().fold(f32::MIN, f32::max) - expected.iter().copied().fold(f32::MAX, f32::min);
    let tokens: usize = rows.iter().map(Vec::len).sum();
    let (best, median) = (seconds[0], seconds[ROUNDS / 2]);
    println!(
        "{}",
        json!({
            "model": name, "device": device, "dtype": info.dtype, "weight_bytes": info.weight_bytes,
            "load_s": load_seconds, "rows": count, "tokens": tokens, "median_s": median, "best_s": best,
            "tokens_per_s": tokens as f64 / median, "rows_per_s": count as f64 / median,
            "best_rows_per_s": count as f64 / best, "one_row_ms": one, "32_rows_ms": some, "compared": compared,
            "largest_difference": difference, "spread_of_scores": spread,
        })
    );
    Ok(())
}

/// Seconds of a call, and its scores.
fn timed(scorer: &mut dyn Scorer, rows: &[Vec<u32>]) -> Result<(f64, Vec<f32>), Box<dyn Error>> {
    let mut batch = TokenRows::new();
    rows.iter().for_each(|row| batch.push(row));
    let start = Instant::now();
    let scores = scorer.score(batch.view(), &Unattended)?;
    Ok((start.elapsed().as_secs_f64(), scores))
}

/// A row of a length drawn from a log-normal distribution.
fn random_row(row: u64, vocab_size: usize) -> Vec<u32> {
    let key = fold(7, row);
    // Twelve uniform numbers: nearly a normal one.
    let normal = (0..12).map(|i| uniform(fold(key, i))).sum::<f64>() - 6.0;
    let length = (4.3 + 0.65 * normal).exp().clamp(12.0, 512.0) as u64;
    let drawn = |i| (4.0 + uniform(fold(key, 100 + i)) * (vocab_size as f64 - 8.0)) as u32;
    (0..length).map(drawn).collect()
}
