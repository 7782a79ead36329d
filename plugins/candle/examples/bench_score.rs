//! Our side of `cargo xtask bench score`: one timed pass over rows of token ids.
//!
//! `bench_score MODEL_DIR ROWS.json THREADS [DEVICE] [DTYPE]`, where the rows are a JSON list of lists of ids. Prints one
//! JSON line.

use std::{env, error::Error, fs, path::Path, time::Instant};

use cappy_plugin_abi::{Backend as _, LoadRequest, TokenRows, Unattended};
use cappy_plugin_candle::CandleBackend;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, rows, threads, place @ ..] = arguments.as_slice() else {
        return Err("expected MODEL_DIR ROWS.json THREADS [DEVICE] [DTYPE]".into());
    };
    let place = |i: usize, default: &str| place.get(i).map_or(default.to_owned(), String::clone);
    rayon::ThreadPoolBuilder::new().num_threads(threads.parse()?).build_global()?;
    let rows: Vec<Vec<u32>> = serde_json::from_str(&fs::read_to_string(rows)?)?;
    let mut scorer = CandleBackend.load_scorer(&LoadRequest {
        model_dir: model.clone(),
        config_json: fs::read_to_string(Path::new(model).join("config.json"))?,
        device: place(0, "cpu"),
        dtype: place(1, "f32"),
        options_json: "{}".into(),
    })?;
    let mut batch = TokenRows::new();
    rows.iter().for_each(|row| batch.push(row));
    let mut warm_up = TokenRows::new();
    rows.iter().take(2).for_each(|row| warm_up.push(row));
    scorer.score(warm_up.view(), &Unattended)?;
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
