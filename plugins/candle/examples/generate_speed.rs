//! Times T5 generation and log-likelihoods on the CPU: FLAN-T5-small's shape, random weights, 64 prompts.
//!
//! ```text
//! cargo run --release -p cappy-plugin-candle --example generate_speed -- [MODEL_DIR] [--only NAME] [--runs N]
//! ```
//! Without a directory it makes the weights (and removes them). Every output has 32 tokens: the end token is
//! forbidden until then. Prints one line a workload: median seconds, processor seconds (what to compare where the
//! machine has other work; 0 where the system does not tell), output tokens (or rows) a second.
//! `RAYON_NUM_THREADS` sets the threads.

use cappy_plugin_abi::{
    Decoding, Generator, LoadRequest, Method, MinLengthRule, TokenRows, Unattended, random,
};
use safetensors::tensor::{Dtype, TensorView};
use std::path::{Path, PathBuf};
use std::time::Instant;

const VOCAB: usize = 32128;
const CONFIG: &str = r#"{"model_type": "t5", "vocab_size": 32128, "d_model": 512, "d_ff": 1024, "d_kv": 64,
    "num_heads": 6, "num_layers": 8, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false}"#;
/// Prompt lengths in tokens: log-normal, mean 62.
const LENGTHS: [usize; 64] = [
    18, 65, 91, 30, 42, 57, 78, 96, 24, 247, 32, 70, 23, 61, 37, 44, 38, 17, 54, 49, 37, 48, 65, 156, 47, 33,
    48, 107, 23, 56, 54, 78, 79, 42, 33, 59, 35, 25, 166, 64, 38, 159, 105, 46, 55, 87, 30, 111, 74, 127, 86,
    81, 43, 11, 24, 30, 29, 68, 71, 24, 101, 72, 18, 40,
];
const NEW_TOKENS: u32 = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut dir, mut only, mut runs) = (None, None, 3);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--only" => only = args.next(),
            "--runs" => runs = args.next().ok_or("--runs needs a number")?.parse()?,
            _ => dir = Some(PathBuf::from(arg)),
        }
    }
    let made = std::env::temp_dir().join(format!("t5-speed-{}", std::process::id()));
    let model_dir = match &dir {
        Some(dir) => dir.clone(),
        None => {
            make_model(&made)?;
            made.clone()
        }
    };
    let config_json = std::fs::read_to_string(model_dir.join("config.json"))?;
    let request = LoadRequest {
        model_dir: model_dir.to_str().ok_or("the directory's name is not UTF-8")?.into(),
        config_json,
        device: "cpu".into(),
        dtype: "f32".into(),
        options_json: "{}".into(),
    };
    let loaded = cappy_plugin_candle::t5::load(&request);
    if dir.is_none() {
        std::fs::remove_dir_all(&made)?;
    }
    measure(loaded?.as_mut(), only.as_deref(), runs)
}

fn measure(
    generator: &mut dyn Generator,
    only: Option<&str>,
    runs: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let token = |key: u64| 3 + (random::uniform(key) * (VOCAB - 28) as f64) as u32;
    let mut sources = TokenRows::new();
    for (i, &length) in LENGTHS.iter().enumerate() {
        let mut row: Vec<u32> = (1..length).map(|j| token(random::fold(i as u64, j as u64))).collect();
        row.push(1);
        sources.push(&row);
    }
    let keys: Vec<u64> = (0..LENGTHS.len() as u64).collect();
    let decoding = |name: &str, num_samples, method| Decoding {
        key: random::key_of(name),
        method,
        num_samples,
        min_length: NEW_TOKENS + 1,
        max_length: NEW_TOKENS + 1,
        min_length_rule: MinLengthRule::Pytorch,
    };
    let sample =
        |name, temperature, top_k, top_p| decoding(name, 4, Method::Sample { temperature, top_k, top_p });
    let beam4 =
        decoding("beam4", 1, Method::Beam { num_beams: 4, length_penalty: 1.0, early_stopping: false });
    let five = vec![
        beam4,
        sample("sampling", 1.0, 50, 1.0),
        sample("temp0.9", 0.9, 50, 1.0),
        sample("topk40", 1.0, 40, 1.0),
        sample("topp0.95", 1.0, 50, 0.95),
    ];
    let workloads = [
        ("beam4", vec![beam4]),
        ("sample4", vec![sample("sampling", 1.0, 0, 1.0)]),
        ("five decodings", five),
    ];
    for (name, decodings) in workloads {
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let mut tokens = 0;
        let (seconds, processor) = median(runs, || {
            let encoding = generator.encode(sources.view(), &Unattended)?;
            let generated = generator.generate(encoding, &decodings, 1, &keys, &Unattended)?;
            generator.forget(encoding);
            tokens = generated.tokens.len();
            Ok(())
        })?;
        println!(
            "{name}: {seconds:.3} s ({processor:.2} processor s), {:.1} output tokens/s",
            tokens as f64 / seconds
        );
    }
    if only.is_none_or(|only| only == "likelihood") {
        let mut targets = TokenRows::new();
        for i in 0..LENGTHS.len() as u64 {
            let row: Vec<u32> =
                (0..u64::from(NEW_TOKENS)).map(|j| token(random::fold(i + 1000, j))).collect();
            targets.push(&row);
        }
        let rows: Vec<u32> = (0..LENGTHS.len() as u32).collect();
        let (seconds, processor) = median(runs, || {
            let encoding = generator.encode(sources.view(), &Unattended)?;
            generator.log_likelihood(encoding, targets.view(), &rows, &Unattended)?;
            generator.forget(encoding);
            Ok(())
        })?;
        println!(
            "likelihood: {seconds:.3} s ({processor:.2} processor s), {:.1} rows/s",
            rows.len() as f64 / seconds
        );
    }
    Ok(())
}

/// Median wall and processor seconds.
fn median(
    runs: usize,
    mut run: impl FnMut() -> Result<(), cappy_plugin_abi::Failure>,
) -> Result<(f64, f64), cappy_plugin_abi::Failure> {
    let (mut wall, mut processor) = (Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        let (start, used) = (Instant::now(), processor_seconds());
        run()?;
        wall.push(start.elapsed().as_secs_f64());
        processor.push(processor_seconds() - used);
    }
    let middle = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok((middle(&mut wall), middle(&mut processor)))
}

/// What this process has used so far, of all its threads, in Linux's ticks of 10 ms.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15; the second may hold spaces, but ends with the last parenthesis.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>()
        / 100.0
}

/// Writes a random model in bf16.
fn make_model(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (d, ff, inner) = (512, 1024, 384);
    let mut shapes: Vec<(String, Vec<usize>)> =
        vec![("shared.weight".into(), vec![VOCAB, d]), ("lm_head.weight".into(), vec![VOCAB, d])];
    for stack in ["encoder", "decoder"] {
        shapes.push((format!("{stack}.final_layer_norm.weight"), vec![d]));
        let bias = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        shapes.push((bias, vec![32, 6]));
        for block in 0..8 {
            let attentions: &[&str] =
                if stack == "encoder" { &["SelfAttention"] } else { &["SelfAttention", "EncDecAttention"] };
            for layer in 0..=attentions.len() {
                let at = format!("{stack}.block.{block}.layer.{layer}");
                shapes.push((format!("{at}.layer_norm.weight"), vec![d]));
                let Some(attention) = attentions.get(layer) else {
                    shapes.push((format!("{at}.DenseReluDense.wi_0.weight"), vec![ff, d]));
                    shapes.push((format!("{at}.DenseReluDense.wi_1.weight"), vec![ff, d]));
                    shapes.push((format!("{at}.DenseReluDense.wo.weight"), vec![d, ff]));
                    continue;
                };
                for part in ["q", "k", "v"] {
                    shapes.push((format!("{at}.{attention}.{part}.weight"), vec![inner, d]));
                }
                shapes.push((format!("{at}.{attention}.o.weight"), vec![d, inner]));
            }
        }
    }
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let key = random::key_of(&name);
            let scale = if shape.len() == 1 { 0.0 } else { 3.0 / (shape[1] as f64).sqrt() };
            let value = |i: usize| {
                let noise = (random::uniform(random::fold(key, i as u64)) - 0.5) * scale;
                half::bf16::from_f64(if shape.len() == 1 { 1.0 } else { noise })
            };
            let bytes = (0..shape.iter().product()).flat_map(|i| value(i).to_le_bytes()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::BF16, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    std::fs::create_dir_all(dir)?;
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors"))?;
    std::fs::write(dir.join("config.json"), CONFIG)?;
    Ok(())
}
