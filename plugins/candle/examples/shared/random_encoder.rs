//! Classifiers of any shape with random weights, written as checkpoints.

use std::error::Error;

use cappy_plugin_abi::random::{fold, uniform};
use cappy_plugin_models::encoder::config::EncoderConfig;
use cappy_plugin_models::encoder::family::{Family, Identity};
use cappy_plugin_models::encoder::layout::Layout;
use cappy_plugin_models::encoder::slots::Slots;
use cappy_plugin_models::encoder::{deberta, modernbert};

/// What costs time.
pub struct Shape {
    /// transformers' `model_type`: `roberta`, `modernbert` or `deberta-v2`.
    pub family: &'static str,
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
pub fn random_model(shape: &Shape) -> Result<tempfile::TempDir, Box<dyn Error>> {
    let json = config(shape).to_string();
    let slots = match Identity::parse(&json)?.family {
        Family::ModernBert => {
            modernbert::layout::Layout::new(&modernbert::ModernBertConfig::parse(&json)?).slots
        }
        Family::DebertaV2 => deberta::layout::Layout::new(&deberta::DebertaConfig::parse(&json)?).slots,
        _ => Layout::new(&EncoderConfig::parse(&json)?).slots,
    };
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("config.json"), &json)?;
    write(&slots, &dir.path().join("model.safetensors"))?;
    Ok(dir)
}

fn config(shape: &Shape) -> serde_json::Value {
    let mut config = serde_json::json!({
        "model_type": shape.family, "vocab_size": shape.vocab_size, "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_labels": 1,
    });
    let more = match shape.family {
        // As answerdotai/ModernBERT-large.
        "modernbert" => serde_json::json!({
            "architectures": ["ModernBertForSequenceClassification"], "max_position_embeddings": 8192,
            "pad_token_id": 50283, "norm_eps": 1e-5, "norm_bias": false, "attention_bias": false,
            "mlp_bias": false, "local_attention": 128, "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "classifier_pooling": "mean",
            "hidden_activation": "gelu", "classifier_activation": "gelu", "classifier_bias": false,
        }),
        // As microsoft/deberta-v3-large.
        "deberta-v2" => serde_json::json!({
            "architectures": ["DebertaV2ForSequenceClassification"], "max_position_embeddings": 512,
            "type_vocab_size": 0, "pad_token_id": 0, "layer_norm_eps": 1e-7, "relative_attention": true,
            "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": true,
            "pos_att_type": ["p2c", "c2p"], "max_relative_positions": -1, "position_biased_input": false,
            "hidden_act": "gelu", "pooler_hidden_act": "gelu", "pooler_hidden_size": shape.hidden,
        }),
        _ => serde_json::json!({
            "architectures": ["RobertaForSequenceClassification"], "max_position_embeddings": 514,
            "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5,
        }),
    };
    let fields = config.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    config
}

fn write(slots: &Slots, file: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let block: Vec<half::bf16> =
        (0..1 << 16).map(|i| half::bf16::from_f64(0.07 * (uniform(fold(1, i)) - 0.5))).collect();
    let ones = vec![half::bf16::ONE; 1 << 16];
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = slots
        .list()
        .iter()
        .map(|slot| {
            let source = if slot.name.ends_with("orm.weight") { &ones } else { &block };
            let shift = slot.range.start % 977;
            let values = (0..slot.range.len()).flat_map(|i| source[(i + shift) % source.len()].to_le_bytes());
            (slot.name.clone(), slot.shape.clone(), values.collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes);
        (name, view.expect("as many bytes as the shape says"))
    });
    safetensors::serialize_to_file(views, None, file)?;
    Ok(())
}
