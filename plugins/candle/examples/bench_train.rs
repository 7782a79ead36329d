//! Times fine-tuning on random rows: one JSON line with rows and tokens a second.
//!
//! ```text
//! cargo run --release -p cappy-plugin-candle --example bench_train --
//!     [LAYERS HIDDEN HEADS INTERMEDIATE VOCABULARY ROWS TOKENS ACCUMULATE UPDATES]
//! ```
//! Rows have half to one and a half times `TOKENS` tokens. The defaults are the shape of the demo's scorer.

#[path = "shared/random_encoder.rs"]
mod random_encoder;

use std::time::Instant;

use cappy_plugin_abi::random::mix;
use cappy_plugin_abi::{Backend, LoadRequest, TokenRows, Unattended};
use cappy_plugin_candle::CandleBackend;
use random_encoder::{Shape, random_model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = [4, 128, 4, 512, 4000, 8, 50, 16, 10];
    for (number, argument) in numbers.iter_mut().zip(std::env::args().skip(1)) {
        *number = argument.parse()?;
    }
    let [layers, hidden, heads, intermediate, vocab_size, rows, tokens, accumulate, updates] = numbers;
    let dir = random_model(&Shape { family: "roberta", vocab_size, layers, hidden, heads, intermediate })?;
    let request = LoadRequest {
        model_dir: dir.path().to_string_lossy().into_owned(),
        config_json: std::fs::read_to_string(dir.path().join("config.json"))?,
        device: "cpu".into(),
        dtype: "f32".into(),
        options_json: "{}".into(),
    };
    let mut trainer = CandleBackend.load_trainer(&request)?;
    let mut drawn = 0;
    let mut draw = |below: usize| {
        drawn += 1;
        (mix(drawn) % below as u64) as usize
    };
    let mut batches = Vec::new();
    for _ in 0..accumulate {
        let mut batch = TokenRows::new();
        for _ in 0..rows {
            let length = (tokens / 2 + draw(tokens)).clamp(2, 510);
            let row: Vec<u32> = (0..length).map(|_| (4 + draw(vocab_size - 4)) as u32).collect();
            batch.push(&row);
        }
        batches.push(batch);
    }
    let labels: Vec<f32> = (0..rows).map(|i| i as f32 / rows as f32).collect();
    let mut seconds = Vec::new();
    for k in 0..=updates {
        let start = Instant::now();
        for (i, batch) in batches.iter().enumerate() {
            trainer.accumulate(batch.view(), &labels, (k * accumulate + i) as u64, &Unattended)?;
        }
        trainer.update(1e-5)?;
        if k > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let (median, best) = (seconds[seconds.len() / 2], seconds[0]);
    let total: usize = batches.iter().map(|batch| batch.tokens.len()).sum();
    println!(
        "{}",
        serde_json::json!({
            "name": "cappy-candle-train-f32", "rows_per_s": (rows * accumulate) as f64 / median,
            "tokens_per_s": total as f64 / median, "steps_per_s": accumulate as f64 / median,
            "best_rows_per_s": (rows * accumulate) as f64 / best, "median_update_s": median,
            "threads": rayon::current_num_threads(),
        })
    );
    Ok(())
}
