//! `config.json` of a DeBERTa classifier.

use cappy_plugin_abi::Failure;
use serde::Deserialize;

use crate::encoder::family::{
    Family, Identity, LabelRow, check_heads, check_sizes, epsilon, not_computed, parse,
};

/// Functions between the head's layers, and behind the convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The exact form.
    Gelu,
    /// Hyperbolic tangent.
    Tanh,
}

/// Attention to relative positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relative {
    /// Distances from which logarithmic buckets begin are half of it; 0: no buckets.
    pub buckets: usize,
    /// Distances beyond it count as this one.
    pub max_distance: usize,
    /// Whether queries attend to positions of keys.
    pub c2p: bool,
    /// Whether keys attend to positions of queries.
    pub p2c: bool,
    /// Whether positions are projected with the weights of content.
    pub shared: bool,
    /// Whether the position embeddings are normalised.
    pub normalised: bool,
}

/// The convolution over the embeddings that some models add to the first layer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Tokens that one result is made of, odd.
    pub width: usize,
    /// Of its result.
    pub activation: Activation,
}

/// What the forward pass needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct DebertaConfig {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Longest row.
    pub max_positions: usize,
    /// Segments; 0: none.
    pub type_vocab_size: usize,
    /// Width of an embedding.
    pub embedding: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Width inside the feed-forward network.
    pub intermediate: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Added to variances.
    pub layer_norm_eps: f32,
    /// Whether absolute positions are added to the embeddings.
    pub absolute_positions: bool,
    /// None: attention to content alone.
    pub relative: Option<Relative>,
    /// Terms of a score, which it is scaled by.
    pub terms: usize,
    /// Behind the first layer.
    pub convolution: Option<Convolution>,
    /// Of the pooler.
    pub pooler_activation: Activation,
    /// Outputs of the head.
    pub labels: usize,
    /// Where the only output is one of several in the checkpoint.
    pub label_row: Option<LabelRow>,
}

/// Defaults are transformers' own.
#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: usize,
    embedding_size: Option<usize>,
    hidden_size: usize,
    attention_head_size: Option<usize>,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    layer_norm_eps: Option<f64>,
    position_biased_input: Option<bool>,
    #[serde(default)]
    relative_attention: bool,
    max_relative_positions: Option<i64>,
    position_buckets: Option<i64>,
    pos_att_type: Option<PositionTerms>,
    #[serde(default)]
    share_att_key: bool,
    norm_rel_ebd: Option<String>,
    conv_kernel_size: Option<usize>,
    conv_groups: Option<usize>,
    conv_act: Option<String>,
    hidden_act: Option<String>,
    pooler_hidden_act: Option<String>,
    pooler_hidden_size: Option<usize>,
}

/// `["p2c", "c2p"]` or `p2c|c2p`.
#[derive(Deserialize)]
#[serde(untagged)]
enum PositionTerms {
    List(Vec<String>),
    Text(String),
}

impl PositionTerms {
    fn has(&self, term: &str) -> bool {
        match self {
            Self::List(terms) => terms.iter().any(|found| found == term),
            Self::Text(terms) => terms.to_lowercase().split('|').any(|found| found.trim() == term),
        }
    }
}

const LAYER_NORM_EPS: f64 = 1e-7;

fn activation(field: &str, name: Option<&str>, default: Activation) -> Result<Activation, Failure> {
    match name {
        None => Ok(default),
        Some("gelu") => Ok(Activation::Gelu),
        Some("tanh") => Ok(Activation::Tanh),
        Some(other) => Err(not_computed(field, other)),
    }
}

impl DebertaConfig {
    /// Parses and checks `config.json`.
    ///
    /// # Errors
    /// `BadModel` for what is wrong, `Unsupported` for what this backend does not compute; both name the field.
    pub fn parse(json: &str) -> Result<Self, Failure> {
        let Identity { family, labels, label_row, .. } = Identity::parse(json)?;
        if family != Family::DebertaV2 {
            return Err(Failure::unsupported(format!("`{}` is not a DeBERTa", family.model_type())));
        }
        let raw: Raw = parse(json)?;
        if let Some(other) = raw.hidden_act.as_deref().filter(|name| *name != "gelu") {
            return Err(not_computed("hidden_act", other));
        }
        let embedding = raw.embedding_size.unwrap_or(raw.hidden_size);
        check_sizes(&[
            ("vocab_size", raw.vocab_size),
            ("max_position_embeddings", raw.max_position_embeddings),
            ("embedding_size", embedding),
            ("hidden_size", raw.hidden_size),
            ("intermediate_size", raw.intermediate_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", raw.num_attention_heads),
        ])?;
        check_heads(raw.hidden_size, raw.num_attention_heads)?;
        for (field, value, needed) in [
            ("pooler_hidden_size", raw.pooler_hidden_size, raw.hidden_size),
            ("attention_head_size", raw.attention_head_size, raw.hidden_size / raw.num_attention_heads),
        ] {
            if let Some(other) = value.filter(|value| *value != needed) {
                return Err(not_computed(field, &other.to_string()));
            }
        }
        let has = |term: &str| raw.pos_att_type.as_ref().is_some_and(|terms| terms.has(term));
        let (c2p, p2c) = (has("c2p"), has("p2c"));
        Ok(Self {
            vocab_size: raw.vocab_size,
            max_positions: raw.max_position_embeddings,
            type_vocab_size: raw.type_vocab_size,
            embedding,
            hidden: raw.hidden_size,
            intermediate: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            layer_norm_eps: epsilon("layer_norm_eps", raw.layer_norm_eps.unwrap_or(LAYER_NORM_EPS))?,
            absolute_positions: raw.position_biased_input.unwrap_or(true),
            relative: raw.relative(c2p, p2c)?,
            // As the reference counts them, whether or not relative positions are used.
            terms: 1 + usize::from(c2p) + usize::from(p2c),
            convolution: raw.convolution()?,
            pooler_activation: activation(
                "pooler_hidden_act",
                raw.pooler_hidden_act.as_deref(),
                Activation::Gelu,
            )?,
            labels,
            label_row,
        })
    }

    /// Numbers a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// What attention scores are multiplied by.
    pub fn scale(&self) -> f32 {
        ((self.head_dim() * self.terms) as f32).sqrt().recip()
    }
}

impl Raw {
    fn relative(&self, c2p: bool, p2c: bool) -> Result<Option<Relative>, Failure> {
        if !self.relative_attention {
            return Ok(None);
        }
        let positive = |value: Option<i64>| usize::try_from(value.unwrap_or(-1)).ok().filter(|n| *n > 0);
        let buckets = positive(self.position_buckets).unwrap_or(0);
        let max_distance = positive(self.max_relative_positions).unwrap_or(self.max_position_embeddings);
        check_sizes(&[("max_relative_positions", max_distance)])?;
        if buckets > 0 && (buckets < 4 || max_distance <= buckets / 2 + 1 || buckets > max_distance) {
            return Err(Failure::bad_model(format!(
                "`config.json` has position_buckets {buckets} for max_relative_positions {max_distance}"
            )));
        }
        let norms = self.norm_rel_ebd.as_deref().unwrap_or("none").to_lowercase();
        let normalised = norms.split('|').any(|norm| norm.trim() == "layer_norm");
        Ok(Some(Relative { buckets, max_distance, c2p, p2c, shared: self.share_att_key, normalised }))
    }

    fn convolution(&self) -> Result<Option<Convolution>, Failure> {
        let Some(width) = self.conv_kernel_size.filter(|width| *width > 0) else { return Ok(None) };
        if width.is_multiple_of(2) || width > 31 {
            return Err(not_computed("conv_kernel_size", &width.to_string()));
        }
        if let Some(groups) = self.conv_groups.filter(|groups| *groups != 1) {
            return Err(not_computed("conv_groups", &groups.to_string()));
        }
        let activation = activation("conv_act", self.conv_act.as_deref(), Activation::Tanh)?;
        Ok(Some(Convolution { width, activation }))
    }
}

impl Relative {
    /// Rows of the position embeddings on each side of distance 0.
    pub fn span(&self) -> usize {
        if self.buckets > 0 { self.buckets } else { self.max_distance }
    }

    /// The position embedding of a distance (query minus key): below half the buckets each has its own, beyond it
    /// they share one within ranges that grow geometrically.
    pub fn index(&self, distance: i64) -> usize {
        let span = self.span() as i64;
        let bucket = if self.buckets > 0 { self.bucket(distance) } else { distance };
        usize::try_from((bucket + span).clamp(0, 2 * span - 1)).expect("it was clamped to 0 or more")
    }

    /// In f32, as the reference computes it.
    fn bucket(&self, distance: i64) -> i64 {
        let middle = (self.buckets / 2) as i64;
        if distance.abs() <= middle {
            return distance;
        }
        let farthest = ((self.max_distance - 1) as f64 / middle as f64) as f32;
        let ratio = (distance.unsigned_abs() as f32 / middle as f32).ln() / farthest.ln();
        let bucket = (ratio * (middle - 1) as f32).ceil() + middle as f32;
        bucket as i64 * distance.signum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::Code;

    const V3: &str = r#"{"architectures": ["DebertaV2ForSequenceClassification"], "model_type": "deberta-v2",
        "vocab_size": 128100, "max_position_embeddings": 512, "type_vocab_size": 0, "hidden_size": 768,
        "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "layer_norm_eps": 1e-07,
        "relative_attention": true, "max_relative_positions": -1, "position_buckets": 256,
        "norm_rel_ebd": "layer_norm", "share_att_key": true, "pos_att_type": "p2c|c2p",
        "position_biased_input": false, "pooler_hidden_act": "gelu", "hidden_act": "gelu", "num_labels": 1}"#;

    #[test]
    fn version_3() {
        let config = DebertaConfig::parse(V3).unwrap();
        let relative = config.relative.unwrap();
        assert_eq!((relative.span(), relative.max_distance, config.terms), (256, 512, 3));
        assert!(relative.c2p && relative.p2c && relative.shared && relative.normalised);
        assert!(!config.absolute_positions && config.convolution.is_none());
        // What `make_log_bucket_position` gives, plus the span.
        let table =
            [(0, 256), (1, 257), (-128, 128), (129, 385), (200, 425), (-300, 49), (511, 511), (2000, 511)];
        for (distance, index) in table {
            assert_eq!(relative.index(distance), index, "{distance}");
        }
    }

    #[test]
    fn wrong_configurations_are_refused_by_field() {
        let table = [
            ("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"relu\"", Code::Unsupported, "hidden_act"),
            ("\"num_labels\": 1", "\"conv_kernel_size\": 4", Code::Unsupported, "conv_kernel_size"),
            (
                "\"num_labels\": 1",
                "\"conv_kernel_size\": 3, \"conv_groups\": 2",
                Code::Unsupported,
                "conv_groups",
            ),
            ("\"num_labels\": 1", "\"pooler_hidden_size\": 64", Code::Unsupported, "pooler_hidden_size"),
            ("\"position_buckets\": 256", "\"position_buckets\": 2", Code::BadModel, "position_buckets"),
            ("1e-07", "7", Code::BadModel, "layer_norm_eps"),
        ];
        for (from, to, code, names) in table {
            let failure = DebertaConfig::parse(&V3.replace(from, to)).unwrap_err();
            assert!(failure.code == code && failure.message.contains(names), "{from} -> {to}: {failure:?}");
        }
    }
}
