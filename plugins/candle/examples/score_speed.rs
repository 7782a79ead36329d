//! Times scoring of ragged rows: one JSON line with tokens a second.
//!
//! ```text
//! cargo run --release -p cappy-plugin-candle --example score_speed -- --lengths LENGTHS.json
//!     [--model-dir DIR | --layers 24 --hidden 1024 --heads 16 --intermediate 4096] [--runs 3] [--threads N]
//! ```
//! `LENGTHS.json` is `{"lengths": [tokens of each row]}`. Without `--model-dir` the weights are random.

mod shapes;

use std::path::PathBuf;
use std::time::Instant;

use cappy_plugin_abi::{Backend, LoadRequest, TokenRows, Unattended};
use cappy_plugin_candle::CandleBackend;
use shapes::Shape;

#[derive(serde::Deserialize)]
struct Lengths {
    lengths: Vec<usize>,
}

struct Arguments {
    lengths: PathBuf,
    model_dir: Option<PathBuf>,
    shape: Shape,
    runs: usize,
    threads: Option<usize>,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        lengths: PathBuf::new(),
        model_dir: None,
        shape: Shape { vocab_size: 50_265, layers: 24, hidden: 1024, heads: 16, intermediate: 4096 },
        runs: 3,
        threads: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("`{flag}` needs a value"))?;
        let number = || value.parse::<usize>().map_err(|e| format!("`{flag} {value}`: {e}"));
        match flag.as_str() {
            "--lengths" => parsed.lengths = value.into(),
            "--model-dir" => parsed.model_dir = Some(value.into()),
            "--layers" => parsed.shape.layers = number()?,
            "--hidden" => parsed.shape.hidden = number()?,
            "--heads" => parsed.shape.heads = number()?,
            "--intermediate" => parsed.shape.intermediate = number()?,
            "--runs" => parsed.runs = number()?.max(1),
            "--threads" => parsed.threads = Some(number()?),
            _ => return Err(format!("unknown argument `{flag}`")),
        }
    }
    Ok(parsed)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments()?;
    if let Some(threads) = arguments.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let lengths: Lengths = serde_json::from_str(&std::fs::read_to_string(&arguments.lengths)?)?;
    let mut random = None;
    let dir = match &arguments.model_dir {
        Some(dir) => dir.clone(),
        None => random.insert(shapes::random_model(&arguments.shape)?).path().to_path_buf(),
    };
    let request = LoadRequest {
        model_dir: dir.to_string_lossy().into_owned(),
        config_json: std::fs::read_to_string(dir.join("config.json"))?,
        device: "cpu".into(),
        dtype: "f32".into(),
        options_json: "{}".into(),
    };
    let start = Instant::now();
    let mut scorer = CandleBackend.load_scorer(&request)?;
    let load = start.elapsed().as_secs_f64();
    let vocabulary = u64::from(scorer.info().vocab_size);
    let mut batch = TokenRows::new();
    let mut drawn = 0;
    for &length in &lengths.lengths {
        let row: Vec<u32> = (0..length)
            .map(|i| {
                drawn += 1;
                match i {
                    0 => 0,
                    _ if i + 1 == length => 2,
                    _ => (4 + cappy_plugin_abi::random::mix(drawn) % (vocabulary - 4)) as u32,
                }
            })
            .collect();
        batch.push(&row);
    }
    let tokens = batch.tokens.len();
    let mut warm = TokenRows::new();
    warm.push(&batch.tokens[..batch.offsets[1] as usize]);
    scorer.score(warm.view(), &Unattended)?;
    let mut seconds: Vec<f64> = (0..arguments.runs)
        .map(|_| {
            let start = Instant::now();
            scorer.score(batch.view(), &Unattended).map(|_| start.elapsed().as_secs_f64())
        })
        .collect::<Result<_, _>>()?;
    let runs = seconds.clone();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!(
        "{}",
        serde_json::json!({
            "name": "cappy-candle-f32", "pairs": lengths.lengths.len(), "tokens": tokens, "runs_s": runs,
            "median_s": median, "tokens_per_s": tokens as f64 / median, "best_tokens_per_s": tokens as f64 / seconds[0],
            "load_s": load, "threads": rayon::current_num_threads(),
        })
    );
    Ok(())
}
