//! Where every parameter of a BERT-like classifier lies, and transformers' names for its parts.
//!
//! Queries, keys and values of a layer are neighbours, so that they are one `(3 * hidden, hidden)` weight to
//! whoever multiplies, and three tensors in a checkpoint.

use std::ops::Range;

use super::config::{EncoderConfig, Family};
use super::slots::Slots;
pub use super::slots::{LinearAt, NormAt, Slot};

/// One encoder layer.
#[derive(Clone, Debug)]
pub struct LayerAt {
    /// Queries, keys, values: `(3 * hidden, hidden)`.
    pub qkv: LinearAt,
    /// Attention output: `(hidden, hidden)`.
    pub output: LinearAt,
    /// After attention.
    pub attention_norm: NormAt,
    /// `(intermediate, hidden)`.
    pub up: LinearAt,
    /// `(hidden, intermediate)`.
    pub down: LinearAt,
    /// After the feed-forward network.
    pub ffn_norm: NormAt,
}

/// Where every parameter lies.
#[derive(Clone, Debug)]
pub struct Layout {
    /// `(vocab_size, hidden)`.
    pub word: Range<usize>,
    /// `(max_positions, hidden)`.
    pub position: Range<usize>,
    /// `(type_vocab_size, hidden)`; empty in DistilBERT.
    pub token_type: Range<usize>,
    /// After the embeddings.
    pub embedding_norm: NormAt,
    /// In order.
    pub layers: Vec<LayerAt>,
    /// RoBERTa's `classifier.dense`, BERT's pooler, DistilBERT's `pre_classifier`: `(hidden, hidden)`.
    pub dense: LinearAt,
    /// `(labels, hidden)`.
    pub out: LinearAt,
    /// All tensors, ascending.
    pub slots: Slots,
}

/// transformers' names of a layer's parts.
pub struct LayerNames {
    /// Of the list of layers.
    pub layers: &'static str,
    /// Queries, keys, values.
    pub qkv: [&'static str; 3],
    /// Attention output.
    pub output: &'static str,
    /// After attention.
    pub attention_norm: &'static str,
    /// Into the feed-forward network.
    pub up: &'static str,
    /// Out of it.
    pub down: &'static str,
    /// After it.
    pub ffn_norm: &'static str,
}

const BERT_NAMES: LayerNames = LayerNames {
    layers: "encoder.layer",
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    ffn_norm: "output.LayerNorm",
};

const DISTILBERT_NAMES: LayerNames = LayerNames {
    layers: "transformer.layer",
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    ffn_norm: "output_layer_norm",
};

impl LayerNames {
    /// Those of a family.
    pub fn of(family: Family) -> &'static Self {
        if family == Family::DistilBert { &DISTILBERT_NAMES } else { &BERT_NAMES }
    }
}

impl Layout {
    /// The layout of a configuration.
    pub fn new(config: &EncoderConfig) -> Self {
        let (h, f) = (config.hidden, config.intermediate);
        let base = config.family.base();
        let names = LayerNames::of(config.family);
        let (dense, out) = match config.family {
            Family::Bert => ("bert.pooler.dense", "classifier"),
            Family::DistilBert => ("pre_classifier", "classifier"),
            _ => ("classifier.dense", "classifier.out_proj"),
        };
        let mut slots = Slots::new(base);
        let embedding = |part: &str| format!("{base}.embeddings.{part}_embeddings.weight");
        let word = slots.add(embedding("word"), &[config.vocab_size, h]);
        let position = slots.add(embedding("position"), &[config.max_positions, h]);
        let token_type = if config.type_vocab_size > 0 {
            slots.add(embedding("token_type"), &[config.type_vocab_size, h])
        } else {
            position.end..position.end
        };
        let embedding_norm = slots.norm(&format!("{base}.embeddings.LayerNorm"), h, true);
        let layers = (0..config.layers)
            .map(|i| {
                let name = |part: &str| format!("{base}.{}.{i}.{part}", names.layers);
                LayerAt {
                    qkv: slots.stacked(&names.qkv.map(name), h, h, true),
                    output: slots.linear(name(names.output), h, h, true),
                    attention_norm: slots.norm(&name(names.attention_norm), h, true),
                    up: slots.linear(name(names.up), f, h, true),
                    down: slots.linear(name(names.down), h, f, true),
                    ffn_norm: slots.norm(&name(names.ffn_norm), h, true),
                }
            })
            .collect();
        let dense = slots.linear(dense, h, h, true);
        let out = slots.labels(out, config.labels, h, config.label_row);
        Self { word, position, token_type, embedding_norm, layers, dense, out, slots }
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none, which no configuration has.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Indices of the classification head's tensors.
    pub fn head(&self) -> Range<usize> {
        self.slots.within(&(self.dense.weight.start..self.out.bias.end))
    }
}
