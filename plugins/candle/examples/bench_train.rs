//! Times fine-tuning on random rows: one JSON line with rows and tokens a second.
//!
//! ```text
//! cargo run --release -p cappy-plugin-candle --example bench_train --
//!     [LAYERS HIDDEN HEADS INTERMEDIATE VOCABULARY ROWS TOKENS ACCUMULATE UPDATES]
//! ```
//! Rows have half to one and a half times `TOKENS` tokens. The defaults are the shape of the demo's scorer.

use std::time::Instant;

use cappy_plugin_abi::random::{fold, mix, uniform};
use cappy_plugin_abi::{Backend, LoadRequest, TokenRows, Unattended};
use cappy_plugin_candle::CandleBackend;
use cappy_plugin_candle::encoder::config::EncoderConfig;
use cappy_plugin_candle::encoder::layout::Layout;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = [4, 128, 4, 512, 4000, 8, 50, 16, 10];
    for (number, argument) in numbers.iter_mut().zip(std::env::args().skip(1)) {
        *number = argument.parse()?;
    }
    let [layers, hidden, heads, intermediate, vocab_size, rows, tokens, accumulate, updates] = numbers;
    let dir = random_model(&Shape { vocab_size, layers, hidden, heads, intermediate })?;
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

/// What costs time.
struct Shape {
    /// Token ids are below this.
    vocab_size: usize,
    /// Encoder layers.
    layers: usize,
    /// Width of a hidden state.
    hidden: usize,
    /// Attention heads.
    heads: usize,
    /// Width inside the feed-forward network.
    intermediate: usize,
}

/// Writes a model of random bf16 weights; returns its directory, which lives as long as the guard.
fn random_model(shape: &Shape) -> Result<tempfile::TempDir, Box<dyn std::error::Error>> {
    let json = serde_json::json!({
        "architectures": ["RobertaForSequenceClassification"], "model_type": "roberta", "vocab_size": shape.vocab_size,
        "max_position_embeddings": 514, "type_vocab_size": 1, "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "layer_norm_eps": 1e-5, "pad_token_id": 1, "num_labels": 1,
    })
    .to_string();
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("config.json"), &json)?;
    let layout = Layout::new(&EncoderConfig::parse(&json)?);
    let block: Vec<half::bf16> =
        (0..1 << 16).map(|i| half::bf16::from_f64(0.07 * (uniform(fold(1, i)) - 0.5))).collect();
    let ones = vec![half::bf16::ONE; 1 << 16];
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = layout
        .slots
        .list()
        .iter()
        .map(|slot| {
            let source = if slot.name.ends_with("LayerNorm.weight") { &ones } else { &block };
            let shift = slot.range.start % 977;
            let values = (0..slot.range.len()).flat_map(|i| source[(i + shift) % source.len()].to_le_bytes());
            (slot.name.clone(), slot.shape.clone(), values.collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes);
        (name, view.expect("as many bytes as the shape says"))
    });
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors"))?;
    Ok(dir)
}
