//! Where every parameter of a DeBERTa classifier lies, and transformers' names for its parts.

use std::ops::Range;

use super::config::DebertaConfig;
use crate::encoder::family::Family;
use crate::encoder::slots::{LinearAt, NormAt, Slots};

/// One encoder layer.
pub struct LayerAt {
    /// Queries, keys, values: `(3 * hidden, hidden)`.
    pub qkv: LinearAt,
    /// Keys of positions, where they have weights of their own: `(hidden, hidden)`.
    pub position_key: Option<LinearAt>,
    /// Likewise queries.
    pub position_query: Option<LinearAt>,
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

/// The convolution behind the first layer.
pub struct ConvolutionAt {
    /// `(hidden, hidden, width)`.
    pub weight: Range<usize>,
    /// `(hidden)`.
    pub bias: Range<usize>,
    /// After it and the first layer.
    pub norm: NormAt,
}

/// Where every parameter lies.
pub struct Layout {
    /// `(vocab_size, embedding)`.
    pub word: Range<usize>,
    /// `(max_positions, embedding)`, or empty.
    pub position: Range<usize>,
    /// `(type_vocab_size, embedding)`, or empty.
    pub token_type: Range<usize>,
    /// `(hidden, embedding)`, where they differ.
    pub projection: Option<LinearAt>,
    /// Behind the embeddings.
    pub embedding_norm: NormAt,
    /// `(2 * span, hidden)`, or empty.
    pub relative: Range<usize>,
    /// Of the relative embeddings.
    pub relative_norm: Option<NormAt>,
    /// Where there is one.
    pub convolution: Option<ConvolutionAt>,
    /// In order.
    pub layers: Vec<LayerAt>,
    /// `(hidden, hidden)`.
    pub dense: LinearAt,
    /// `(labels, hidden)`.
    pub out: LinearAt,
    /// All tensors, ascending.
    pub slots: Slots,
}

impl Layout {
    /// The layout of a configuration.
    pub fn new(config: &DebertaConfig) -> Self {
        let (e, h, f) = (config.embedding, config.hidden, config.intermediate);
        let mut slots = Slots::new(Family::DebertaV2.base());
        let embedding = |part: &str| format!("deberta.embeddings.{part}_embeddings.weight");
        let word = slots.add(embedding("word"), &[config.vocab_size, e]);
        let mut optional = |wanted: bool, name: String, rows: usize, width: usize| match wanted {
            true => slots.add(name, &[rows, width]),
            false => slots.len()..slots.len(),
        };
        let position = optional(config.absolute_positions, embedding("position"), config.max_positions, e);
        let types = config.type_vocab_size;
        let token_type = optional(types > 0, embedding("token_type"), types, e);
        let span = config.relative.map_or(0, |relative| relative.span());
        let relative = optional(span > 0, "deberta.encoder.rel_embeddings.weight".into(), 2 * span, h);
        let projection = (e != h).then(|| slots.linear("deberta.embeddings.embed_proj", h, e, false));
        let embedding_norm = slots.norm("deberta.embeddings.LayerNorm", h, true);
        let normalised = config.relative.is_some_and(|relative| relative.normalised);
        let relative_norm = normalised.then(|| slots.norm("deberta.encoder.LayerNorm", h, true));
        let convolution = config.convolution.map(|convolution| ConvolutionAt {
            weight: slots.add("deberta.encoder.conv.conv.weight", &[h, h, convolution.width]),
            bias: slots.add("deberta.encoder.conv.conv.bias", &[h]),
            norm: slots.norm("deberta.encoder.conv.LayerNorm", h, true),
        });
        let own = config.relative.filter(|relative| !relative.shared);
        let layers = (0..config.layers)
            .map(|i| {
                let name = |part: &str| format!("deberta.encoder.layer.{i}.{part}");
                let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}_proj")));
                let mut position = |wanted: bool, part: &str| {
                    wanted.then(|| slots.linear(name(&format!("attention.self.pos_{part}_proj")), h, h, true))
                };
                let position_key = position(own.is_some_and(|relative| relative.c2p), "key");
                let position_query = position(own.is_some_and(|relative| relative.p2c), "query");
                LayerAt {
                    position_key,
                    position_query,
                    qkv: slots.stacked(&qkv, h, h, true),
                    output: slots.linear(name("attention.output.dense"), h, h, true),
                    attention_norm: slots.norm(&name("attention.output.LayerNorm"), h, true),
                    up: slots.linear(name("intermediate.dense"), f, h, true),
                    down: slots.linear(name("output.dense"), h, f, true),
                    ffn_norm: slots.norm(&name("output.LayerNorm"), h, true),
                }
            })
            .collect();
        let dense = slots.linear("pooler.dense", h, h, true);
        let out = slots.labels("classifier", config.labels, h, config.label_row);
        Self {
            word,
            position,
            token_type,
            projection,
            embedding_norm,
            relative,
            relative_norm,
            convolution,
            layers,
            dense,
            out,
            slots,
        }
    }
}
