//! The fields of a T5 `config.json` that decide the computation, with transformers' defaults (`T5Config`).

use cappy_plugin_abi::Failure;
use serde_json::Value;

/// `model_type` of the configurations.
pub const ARCHITECTURE: &str = "t5";

/// Nonlinearity of the feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0): T5 v1.0.
    Relu,
    /// Tanh approximation: v1.1, FLAN.
    GeluNew,
}

/// Shape of a T5 encoder-decoder. Source: Raffel et al., arXiv 1910.10683; v1.1: Shazeer, arXiv 2002.05202.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of a head; `d_kv * num_heads` need not be `d_model`.
    pub d_kv: usize,
    /// Width of the feed-forward network.
    pub d_ff: usize,
    /// Encoder layers.
    pub num_layers: usize,
    /// Decoder layers.
    pub num_decoder_layers: usize,
    /// Heads of every attention.
    pub num_heads: usize,
    /// Buckets of relative distances.
    pub buckets: usize,
    /// Distances from here on share the last bucket.
    pub max_distance: usize,
    /// Of the RMS norms.
    pub epsilon: f32,
    /// Of the feed-forward network.
    pub activation: Activation,
    /// Two input matrices, one of them through the activation (v1.1).
    pub gated: bool,
    /// The embedding is the output matrix too, with outputs scaled by `d_model^-0.5` (v1.0).
    pub tied: bool,
    /// Ends a sequence.
    pub eos_token: u32,
    /// First decoder input.
    pub start_token: u32,
}

impl Config {
    /// Width of all heads together.
    pub fn inner(&self) -> usize {
        self.num_heads * self.d_kv
    }

    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// `BadModel` that names the field; `Unsupported` for an activation that no released T5 uses.
    pub fn parse(json: &str) -> Result<Self, Failure> {
        let fields: Value = serde_json::from_str(json)
            .map_err(|e| Failure::bad_model(format!("config.json is not valid json: {e}")))?;
        match fields["model_type"].as_str() {
            Some(ARCHITECTURE) | None => {}
            Some(other) => {
                return Err(Failure::unsupported(format!(
                    "`{other}` is not a generator of this backend; it must be {ARCHITECTURE}"
                )));
            }
        }
        let bad = |name: &str, what: &str| Failure::bad_model(format!("config.json: `{name}` {what}"));
        let size = |name: &str, default: usize| match &fields[name] {
            Value::Null => Ok(default),
            value => value
                .as_u64()
                .filter(|v| (1..=1 << 24).contains(v))
                .map(|v| v as usize)
                .ok_or_else(|| bad(name, "must be a positive integer")),
        };
        let num_layers = size("num_layers", 6)?;
        let proj = match &fields["feed_forward_proj"] {
            Value::Null => "relu",
            value => value.as_str().ok_or_else(|| bad("feed_forward_proj", "must be a string"))?,
        };
        let (activation, gated) = match proj {
            "relu" => (Activation::Relu, false),
            "gated-relu" => (Activation::Relu, true),
            "gelu_new" => (Activation::GeluNew, false),
            "gated-gelu" | "gated-gelu_new" => (Activation::GeluNew, true),
            other => {
                return Err(Failure::unsupported(format!(
                    "feed_forward_proj `{other}` is not supported; it must be relu, gated-relu, gelu_new or gated-gelu"
                )));
            }
        };
        let epsilon = match &fields["layer_norm_epsilon"] {
            Value::Null => 1e-6,
            value => value
                .as_f64()
                .filter(|v| *v >= 0.0)
                .ok_or_else(|| bad("layer_norm_epsilon", "must be a number"))?,
        };
        let tied = match &fields["tie_word_embeddings"] {
            Value::Null => true,
            value => value.as_bool().ok_or_else(|| bad("tie_word_embeddings", "must be true or false"))?,
        };
        let vocab_size = size("vocab_size", 32128)?;
        let token = |name: &str, default: u32| {
            let value = match &fields[name] {
                Value::Null => return Ok(default),
                Value::Array(ids) if ids.len() == 1 => &ids[0],
                value => value,
            };
            value
                .as_u64()
                .filter(|v| *v < vocab_size as u64)
                .map(|v| v as u32)
                .ok_or_else(|| bad(name, "must be one token id below `vocab_size`"))
        };
        let pad = token("pad_token_id", 0)?;
        let config = Self {
            vocab_size,
            d_model: size("d_model", 512)?,
            d_kv: size("d_kv", 64)?,
            d_ff: size("d_ff", 2048)?,
            num_layers,
            num_decoder_layers: size("num_decoder_layers", num_layers)?,
            num_heads: size("num_heads", 8)?,
            buckets: size("relative_attention_num_buckets", 32)?,
            max_distance: size("relative_attention_max_distance", 128)?,
            epsilon: epsilon as f32,
            activation,
            gated,
            tied,
            eos_token: token("eos_token_id", 1)?,
            start_token: token("decoder_start_token_id", pad)?,
        };
        // The bidirectional table halves the buckets, and half of those are exact distances.
        if config.buckets < 4
            || !config.buckets.is_multiple_of(2)
            || config.max_distance <= config.buckets / 2
        {
            return Err(bad(
                "relative_attention_num_buckets",
                "does not fit `relative_attention_max_distance`",
            ));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_bad_ones_named() {
        let flan = Config::parse(
            r#"{"d_model": 512, "d_ff": 1024, "num_heads": 6, "num_layers": 8, "feed_forward_proj": "gated-gelu",
                "tie_word_embeddings": false, "decoder_start_token_id": 0, "eos_token_id": 1}"#,
        )
        .expect("flan-t5-small");
        assert_eq!((flan.inner(), flan.num_decoder_layers, flan.gated, flan.tied), (384, 8, true, false));
        for (json, named) in [
            ("{", "json"),
            (r#"{"model_type": "bart"}"#, "bart"),
            (r#"{"d_model": 0}"#, "d_model"),
            (r#"{"num_heads": "6"}"#, "num_heads"),
            (r#"{"eos_token_id": 40000}"#, "eos_token_id"),
            (r#"{"eos_token_id": [1, 2]}"#, "eos_token_id"),
            (r#"{"feed_forward_proj": "gelu"}"#, "feed_forward_proj"),
            (r#"{"relative_attention_num_buckets": 3}"#, "relative_attention_num_buckets"),
            (r#"{"tie_word_embeddings": 1}"#, "tie_word_embeddings"),
        ] {
            let failure = Config::parse(json).expect_err(json);
            assert!(failure.message.contains(named), "{json}: {failure}");
        }
    }
}
