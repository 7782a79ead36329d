//! Models of a given shape with random weights, for timing.

use cappy_plugin_abi::random::{fold, uniform};
use cappy_plugin_candle::encoder::config::EncoderConfig;
use cappy_plugin_candle::encoder::layout::Layout;

/// What costs time.
pub struct Shape {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width inside the feed-forward network.
    pub intermediate: usize,
}

/// Writes a model of random bf16 weights; returns its directory, which lives as long as the guard.
pub fn random_model(shape: &Shape) -> Result<tempfile::TempDir, Box<dyn std::error::Error>> {
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
