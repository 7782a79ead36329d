//! A checkpoint's tensors, as far as a rank needs them. Tensor names are transformers'.
//!
//! Norms, embeddings, the feed-forward network's output and the logits' matrix stay f32 in every number format, as
//! transformers keeps the output (`_keep_in_fp32_modules`): with half the digits there T5 overflows or drifts.

use std::ops::Range;

use cappy_plugin_models::t5::config::Config;
use cappy_plugin_models::weights::Checkpoint;
use tch::{Device, Kind, Tensor};

use super::shard::Shard;
use crate::engine::Result;
use crate::weights::Reader;

/// Attention over the own sequence; no biases, no scaling.
pub struct SelfAttention {
    /// `[d_model]`.
    pub norm: Tensor,
    /// `[3 * inner, d_model]`: queries, keys, values of this rank's heads.
    pub query_key_value: Tensor,
    /// `[d_model, inner]`.
    pub output: Tensor,
}

/// Attention over the source; no biases, no scaling, no position bias.
pub struct CrossAttention {
    /// `[d_model]`.
    pub norm: Tensor,
    /// `[inner, d_model]`.
    pub query: Tensor,
    /// `[2 * inner, d_model]`: keys, values, of the encoder's output.
    pub key_value: Tensor,
    /// `[d_model, inner]`.
    pub output: Tensor,
}

/// Feed-forward network.
pub struct FeedForward {
    /// `[d_model]`.
    pub norm: Tensor,
    /// `[d_ff, d_model]`, or `[2 * d_ff, d_model]` when gated: through the activation, then linear.
    pub up: Tensor,
    /// `[d_model, d_ff]`, f32.
    pub down: Tensor,
}

/// A layer of either stack; each part adds to the residual stream what it makes of its norm.
pub struct Layer {
    /// First.
    pub attention: SelfAttention,
    /// Second; decoder only.
    pub cross: Option<CrossAttention>,
    /// Last.
    pub forward: FeedForward,
}

/// Encoder or decoder.
pub struct Stack {
    /// In order.
    pub layers: Vec<Layer>,
    /// `[d_model]`, after the last layer.
    pub final_norm: Tensor,
    /// `[buckets, heads]` of this rank's heads, shared by all layers.
    pub bias: Vec<f32>,
}

/// A model, or a rank's slices of one.
pub struct Weights {
    /// `[tokens, d_model]` of this rank's tokens, f32; both stacks'.
    pub embedding: Tensor,
    /// Sources.
    pub encoder: Stack,
    /// Targets.
    pub decoder: Stack,
    /// `[tokens, d_model]`, f32; None: the embedding, with outputs scaled by `d_model^-0.5`.
    pub head: Option<Tensor>,
    /// Of the whole model.
    pub parameters: u64,
    /// Bytes in memory.
    pub bytes: u64,
}

impl Weights {
    /// Reads a rank's slices of all tensors.
    ///
    /// # Errors
    /// `BadModel` that names the missing or misshapen tensor.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        shard: &Shard,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        let (vocab, width) = (config.vocab_size, config.d_model);
        let mut loader = Loader {
            reader: Reader::new(checkpoint, device),
            checkpoint,
            config,
            kind,
            heads: shard.heads(config),
            inner: shard.inner(config),
        };
        let name = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
            .into_iter()
            .find(|name| checkpoint.contains(name))
            .unwrap_or("shared.weight");
        let mut table = |name: &str| {
            loader.reader.block(&[name], &[vocab, width], shard.tokens(config), 0..width, Kind::Float)
        };
        let embedding = table(name)?;
        let head = if config.tied { None } else { Some(table("lm_head.weight")?) };
        let encoder = loader.stack("encoder", config.num_layers)?;
        let decoder = loader.stack("decoder", config.num_decoder_layers)?;
        let Reader { parameters, bytes, .. } = loader.reader;
        Ok(Self { embedding, encoder, decoder, head, parameters, bytes })
    }
}

struct Loader<'a> {
    reader: Reader<'a>,
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    kind: Kind,
    heads: Range<usize>,
    inner: Range<usize>,
}

impl Loader<'_> {
    /// The rows of this rank's heads, of matrices `[heads, d_model]`.
    fn heads_from(&mut self, prefix: &str, parts: &[&str]) -> Result<Tensor> {
        let Config { d_model, d_kv, .. } = *self.config;
        let rows = self.heads.start * d_kv..self.heads.end * d_kv;
        let names: Vec<String> = parts.iter().map(|part| format!("{prefix}.{part}.weight")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.reader.block(&names, &[self.config.inner(), d_model], rows, 0..d_model, self.kind)
    }

    /// The columns of this rank's heads, of a matrix `[d_model, heads]`.
    fn heads_to(&mut self, prefix: &str) -> Result<Tensor> {
        let Config { d_model, d_kv, .. } = *self.config;
        let columns = self.heads.start * d_kv..self.heads.end * d_kv;
        let shape = [d_model, self.config.inner()];
        self.reader.block(&[&format!("{prefix}.o.weight")], &shape, 0..d_model, columns, self.kind)
    }

    fn norm(&mut self, prefix: &str) -> Result<Tensor> {
        self.reader.whole(&format!("{prefix}.weight"), &[self.config.d_model], Kind::Float)
    }

    fn forward(&mut self, at: &str) -> Result<FeedForward> {
        let Config { d_model, d_ff, gated, .. } = *self.config;
        let names: &[&str] = if gated { &["wi_0", "wi_1"] } else { &["wi"] };
        let names: Vec<String> =
            names.iter().map(|name| format!("{at}.DenseReluDense.{name}.weight")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let inner = self.inner.clone();
        Ok(FeedForward {
            norm: self.norm(&format!("{at}.layer_norm"))?,
            up: self.reader.block(&names, &[d_ff, d_model], inner.clone(), 0..d_model, self.kind)?,
            down: self.reader.block(
                &[&format!("{at}.DenseReluDense.wo.weight")],
                &[d_model, d_ff],
                0..d_model,
                inner,
                Kind::Float,
            )?,
        })
    }

    fn layer(&mut self, at: &str, decoder: bool) -> Result<Layer> {
        let own = format!("{at}.0.SelfAttention");
        let attention = SelfAttention {
            norm: self.norm(&format!("{at}.0.layer_norm"))?,
            query_key_value: self.heads_from(&own, &["q", "k", "v"])?,
            output: self.heads_to(&own)?,
        };
        let source = format!("{at}.1.EncDecAttention");
        let cross = match decoder {
            true => Some(CrossAttention {
                norm: self.norm(&format!("{at}.1.layer_norm"))?,
                query: self.heads_from(&source, &["q"])?,
                key_value: self.heads_from(&source, &["k", "v"])?,
                output: self.heads_to(&source)?,
            }),
            false => None,
        };
        let last = if decoder { 2 } else { 1 };
        Ok(Layer { attention, cross, forward: self.forward(&format!("{at}.{last}"))? })
    }

    fn stack(&mut self, stack: &str, layers: usize) -> Result<Stack> {
        let Config { buckets, num_heads, .. } = *self.config;
        let made = (0..layers)
            .map(|i| self.layer(&format!("{stack}.block.{i}.layer"), stack == "decoder"))
            .collect::<Result<_>>()?;
        let name = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let mut bias = vec![0.0; buckets * self.heads.len()];
        self.checkpoint.read_block_into(
            &name,
            &[buckets, num_heads],
            0..buckets,
            self.heads.clone(),
            &mut bias,
        )?;
        self.reader.parameters += (buckets * num_heads) as u64;
        let final_norm = self.norm(&format!("{stack}.final_layer_norm"))?;
        Ok(Stack { layers: made, final_norm, bias })
    }
}
