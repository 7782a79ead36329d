//! `config.json` of a ModernBERT classifier.

use cappy_plugin_abi::Failure;
use serde::Deserialize;

use crate::encoder::family::{
    Family, Identity, LabelRow, check_heads, check_sizes, epsilon, not_computed, parse,
};

/// What the head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token.
    First,
    /// The mean of all tokens.
    Mean,
}

/// How a layer attends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Tokens before and behind that are seen; `None`: all.
    pub window: Option<usize>,
    /// Base period of the rotary positions.
    pub theta: f64,
}

/// What the forward pass needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct ModernBertConfig {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Longest row.
    pub max_tokens: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Width inside the feed-forward network.
    pub intermediate: usize,
    /// Attention heads.
    pub heads: usize,
    /// One a layer.
    pub attention: Vec<Attention>,
    /// Added to variances.
    pub norm_eps: f32,
    /// Whether normalisations have biases.
    pub norm_bias: bool,
    /// Whether attention's projections have biases.
    pub attention_bias: bool,
    /// Whether feed-forward networks have biases.
    pub mlp_bias: bool,
    /// Whether the head's dense layer has a bias.
    pub classifier_bias: bool,
    /// What the head reads.
    pub pooling: Pooling,
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
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    norm_eps: Option<f64>,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    classifier_bias: bool,
    classifier_pooling: Option<String>,
    classifier_activation: Option<String>,
    hidden_activation: Option<String>,
    global_attn_every_n_layers: Option<usize>,
    local_attention: Option<usize>,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    // Since version 5 of transformers.
    layer_types: Option<Vec<String>>,
    rope_parameters: Option<RopeParameters>,
}

#[derive(Deserialize)]
struct RopeParameters {
    full_attention: Rope,
    sliding_attention: Rope,
}

#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    rope_theta: Option<f64>,
}

const GLOBAL_EVERY: usize = 3;
const LOCAL_ATTENTION: usize = 128;
const GLOBAL_THETA: f64 = 160_000.0;
const LOCAL_THETA: f64 = 10_000.0;
const NORM_EPS: f64 = 1e-5;

impl ModernBertConfig {
    /// Parses and checks `config.json`.
    ///
    /// # Errors
    /// `BadModel` for what is wrong, `Unsupported` for what this backend does not compute; both name the field.
    pub fn parse(json: &str) -> Result<Self, Failure> {
        let Identity { family, labels, label_row, .. } = Identity::parse(json)?;
        if family != Family::ModernBert {
            return Err(Failure::unsupported(format!("`{}` is not a ModernBERT", family.model_type())));
        }
        let raw: Raw = parse(json)?;
        for (field, value) in [
            ("hidden_activation", &raw.hidden_activation),
            ("classifier_activation", &raw.classifier_activation),
        ] {
            if let Some(other) = value.as_deref().filter(|name| *name != "gelu") {
                return Err(not_computed(field, other));
            }
        }
        if let Some(scaling) = raw.rope_scaling.as_ref().filter(|scaling| !scaling.is_null()) {
            return Err(not_computed("rope_scaling", &scaling.to_string()));
        }
        let pooling = match raw.classifier_pooling.as_deref() {
            None | Some("cls") => Pooling::First,
            Some("mean") => Pooling::Mean,
            Some(other) => return Err(not_computed("classifier_pooling", other)),
        };
        let local_attention = raw.local_attention.unwrap_or(LOCAL_ATTENTION);
        check_sizes(&[
            ("vocab_size", raw.vocab_size),
            ("max_position_embeddings", raw.max_position_embeddings),
            ("hidden_size", raw.hidden_size),
            ("intermediate_size", raw.intermediate_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", raw.num_attention_heads),
            ("local_attention", local_attention),
        ])?;
        check_heads(raw.hidden_size, raw.num_attention_heads)?;
        if !(raw.hidden_size / raw.num_attention_heads).is_multiple_of(2) {
            return Err(Failure::bad_model(format!(
                "`config.json` has hidden_size {} and {} heads; rotary positions need an even width of a head",
                raw.hidden_size, raw.num_attention_heads
            )));
        }
        let is_global = raw.layers()?;
        let (global_theta, local_theta) = raw.thetas()?;
        let attention = is_global.into_iter().map(|global| match global {
            true => Attention { window: None, theta: global_theta },
            false => Attention { window: Some(local_attention / 2), theta: local_theta },
        });
        Ok(Self {
            vocab_size: raw.vocab_size,
            max_tokens: raw.max_position_embeddings,
            hidden: raw.hidden_size,
            intermediate: raw.intermediate_size,
            heads: raw.num_attention_heads,
            attention: attention.collect(),
            norm_eps: epsilon("norm_eps", raw.norm_eps.unwrap_or(NORM_EPS))?,
            norm_bias: raw.norm_bias,
            attention_bias: raw.attention_bias,
            mlp_bias: raw.mlp_bias,
            classifier_bias: raw.classifier_bias,
            pooling,
            labels,
            label_row,
        })
    }

    /// Numbers a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }
}

impl Raw {
    /// Whether each layer attends to all tokens.
    fn layers(&self) -> Result<Vec<bool>, Failure> {
        let Some(types) = &self.layer_types else {
            let every = self.global_attn_every_n_layers.unwrap_or(GLOBAL_EVERY).max(1);
            return Ok((0..self.num_hidden_layers).map(|i| i.is_multiple_of(every)).collect());
        };
        if types.len() != self.num_hidden_layers {
            return Err(Failure::bad_model(format!(
                "`config.json` has {} layer_types for {} layers",
                types.len(),
                self.num_hidden_layers
            )));
        }
        let is_global = |name: &String| match name.as_str() {
            "full_attention" => Ok(true),
            "sliding_attention" => Ok(false),
            other => Err(not_computed("layer_types", other)),
        };
        types.iter().map(is_global).collect()
    }

    /// Base periods of global and local layers.
    fn thetas(&self) -> Result<(f64, f64), Failure> {
        let global = self.global_rope_theta.unwrap_or(GLOBAL_THETA);
        let (mut global, mut local) = (global, self.local_rope_theta.unwrap_or(LOCAL_THETA));
        if let Some(parameters) = &self.rope_parameters {
            for (rope, theta) in
                [(&parameters.full_attention, &mut global), (&parameters.sliding_attention, &mut local)]
            {
                if let Some(other) = rope.rope_type.as_deref().filter(|name| *name != "default") {
                    return Err(not_computed("rope_type", other));
                }
                *theta = rope.rope_theta.unwrap_or(*theta);
            }
        }
        for theta in [global, local] {
            if !(theta >= 1.0 && theta.is_finite()) {
                return Err(Failure::bad_model(format!("`config.json` has a rotary theta of {theta}")));
            }
        }
        Ok((global, local))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::Code;

    const BASE: &str = r#"{"architectures": ["ModernBertForSequenceClassification"], "model_type": "modernbert",
        "vocab_size": 50368, "max_position_embeddings": 8192, "hidden_size": 768, "intermediate_size": 1152,
        "num_hidden_layers": 5, "num_attention_heads": 12, "global_attn_every_n_layers": 3, "local_attention": 128,
        "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "norm_eps": 1e-05, "num_labels": 1,
        "classifier_pooling": "mean"}"#;

    #[test]
    fn layers_alternate_in_old_and_new_words() {
        let config = ModernBertConfig::parse(BASE).unwrap();
        let global = Attention { window: None, theta: 160_000.0 };
        let local = Attention { window: Some(64), theta: 10_000.0 };
        assert_eq!(config.attention, [global, local, local, global, local]);
        assert_eq!((config.pooling, config.max_tokens, config.head_dim()), (Pooling::Mean, 8192, 64));

        let new = BASE
            .replace(
                "\"global_attn_every_n_layers\": 3,",
                r#""layer_types": ["full_attention", "sliding_attention",
                "sliding_attention", "full_attention", "sliding_attention"],"#,
            )
            .replace(
                "\"global_rope_theta\": 160000.0, \"local_rope_theta\": 10000.0",
                r#""rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}"#,
            );
        assert_eq!(ModernBertConfig::parse(&new).unwrap(), config);
    }

    #[test]
    fn wrong_configurations_are_refused_by_field() {
        let table = [
            ("\"mean\"", "\"max\"", Code::Unsupported, "classifier_pooling"),
            ("\"num_labels\": 1", "\"hidden_activation\": \"silu\"", Code::Unsupported, "hidden_activation"),
            (
                "\"num_labels\": 1",
                "\"rope_scaling\": {\"type\": \"yarn\"}",
                Code::Unsupported,
                "rope_scaling",
            ),
            ("\"num_labels\": 1", "\"layer_types\": [\"full_attention\"]", Code::BadModel, "layer_types"),
            ("768", "780", Code::BadModel, "even width"),
            ("\"global_rope_theta\": 160000.0", "\"global_rope_theta\": 0", Code::BadModel, "theta"),
            ("8192", "0", Code::BadModel, "max_position_embeddings"),
        ];
        for (from, to, code, names) in table {
            let failure = ModernBertConfig::parse(&BASE.replace(from, to)).unwrap_err();
            assert!(failure.code == code && failure.message.contains(names), "{from} -> {to}: {failure:?}");
        }
    }
}
