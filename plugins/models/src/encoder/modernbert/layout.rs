//! Where every parameter of a ModernBERT classifier lies, and transformers' names for its parts.

use std::ops::Range;

use super::config::ModernBertConfig;
use crate::encoder::family::Family;
use crate::encoder::slots::{LinearAt, NormAt, Slots};

/// One encoder layer.
pub struct LayerAt {
    /// None in the first layer, behind the embeddings' own.
    pub attention_norm: Option<NormAt>,
    /// `(3 * hidden, hidden)`.
    pub qkv: LinearAt,
    /// `(hidden, hidden)`.
    pub output: LinearAt,
    /// Before the feed-forward network.
    pub mlp_norm: NormAt,
    /// `(2 * intermediate, hidden)`: what is activated, then its gate.
    pub up: LinearAt,
    /// `(hidden, intermediate)`.
    pub down: LinearAt,
}

/// Where every parameter lies.
pub struct Layout {
    /// `(vocab_size, hidden)`.
    pub word: Range<usize>,
    /// Behind the embeddings.
    pub embedding_norm: NormAt,
    /// In order.
    pub layers: Vec<LayerAt>,
    /// After the last layer.
    pub final_norm: NormAt,
    /// `(hidden, hidden)`.
    pub dense: LinearAt,
    /// Within the head, before the labels.
    pub head_norm: NormAt,
    /// `(labels, hidden)`.
    pub out: LinearAt,
    /// All tensors, ascending.
    pub slots: Slots,
}

impl Layout {
    /// The layout of a configuration.
    pub fn new(config: &ModernBertConfig) -> Self {
        let (h, f) = (config.hidden, config.intermediate);
        let mut slots = Slots::new(Family::ModernBert.base());
        let word = slots.add("model.embeddings.tok_embeddings.weight", &[config.vocab_size, h]);
        let embedding_norm = slots.norm("model.embeddings.norm", h, config.norm_bias);
        let layers = (0..config.attention.len())
            .map(|i| {
                let name = |part: &str| format!("model.layers.{i}.{part}");
                LayerAt {
                    attention_norm: (i > 0).then(|| slots.norm(&name("attn_norm"), h, config.norm_bias)),
                    qkv: slots.linear(name("attn.Wqkv"), 3 * h, h, config.attention_bias),
                    output: slots.linear(name("attn.Wo"), h, h, config.attention_bias),
                    mlp_norm: slots.norm(&name("mlp_norm"), h, config.norm_bias),
                    up: slots.linear(name("mlp.Wi"), 2 * f, h, config.mlp_bias),
                    down: slots.linear(name("mlp.Wo"), h, f, config.mlp_bias),
                }
            })
            .collect();
        let final_norm = slots.norm("model.final_norm", h, config.norm_bias);
        let dense = slots.linear("head.dense", h, h, config.classifier_bias);
        let head_norm = slots.norm("head.norm", h, config.norm_bias);
        let out = slots.labels("classifier", config.labels, h, config.label_row);
        Self { word, embedding_norm, layers, final_norm, dense, head_norm, out, slots }
    }
}
