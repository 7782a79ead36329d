//! A checkpoint's tensors, packed for the products that use them. Tensor names are transformers'.

use super::config::Config;
use crate::kernels::Packed;
use crate::weights::Checkpoint;
use cappy_plugin_abi::Failure;

/// Attention over the own sequence; no biases, no scaling.
pub struct SelfAttention {
    /// `[d_model]`.
    pub norm: Vec<f32>,
    /// `[d_model, 3 * inner]`: queries, keys, values.
    pub query_key_value: Packed,
    /// `[inner, d_model]`.
    pub output: Packed,
}

/// Attention over the source; no biases, no scaling, no position bias.
pub struct CrossAttention {
    /// `[d_model]`.
    pub norm: Vec<f32>,
    /// `[d_model, inner]`.
    pub query: Packed,
    /// `[d_model, 2 * inner]`: keys, values, of the encoder's output.
    pub key_value: Packed,
    /// `[inner, d_model]`.
    pub output: Packed,
}

/// Feed-forward network.
pub struct FeedForward {
    /// `[d_model]`.
    pub norm: Vec<f32>,
    /// `[d_model, d_ff]`, or `[d_model, 2 * d_ff]` when gated: through the activation, then linear.
    pub up: Packed,
    /// `[d_ff, d_model]`.
    pub down: Packed,
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
    pub final_norm: Vec<f32>,
    /// `[buckets, heads]`, shared by all layers.
    pub bias: Vec<f32>,
}

/// A whole model.
pub struct Weights {
    /// `[vocab, d_model]`, of both stacks.
    pub embedding: Vec<f32>,
    /// Sources.
    pub encoder: Stack,
    /// Targets.
    pub decoder: Stack,
    /// `[d_model, vocab]`; for tied embeddings with the scale `d_model^-0.5` in it.
    pub head: Packed,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes in memory.
    pub bytes: u64,
}

impl Weights {
    /// Reads and packs all tensors.
    ///
    /// # Errors
    /// `BadModel` that names the missing or misshapen tensor.
    pub fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self, Failure> {
        let mut loader = Loader { checkpoint, config, parameters: 0, packed_bytes: 0 };
        let (vocab, width) = (config.vocab_size, config.d_model);
        let name = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
            .into_iter()
            .find(|name| checkpoint.contains(name))
            .unwrap_or("shared.weight");
        let embedding = loader.tensor(name, &[vocab, width])?;
        let encoder = loader.stack("encoder", config.num_layers)?;
        let decoder = loader.stack("decoder", config.num_decoder_layers)?;
        let head = if config.tied {
            let scale = (width as f64).powf(-0.5) as f32;
            let scaled: Vec<f32> = embedding.iter().map(|w| w * scale).collect();
            Packed::from_weight(&scaled, vocab, width)
        } else {
            Packed::from_weight(&loader.tensor("lm_head.weight", &[vocab, width])?, vocab, width)
        };
        let bytes = loader.packed_bytes + head.bytes() + size_of_val(&embedding[..]);
        Ok(Self { embedding, encoder, decoder, head, parameters: loader.parameters, bytes: bytes as u64 })
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    parameters: u64,
    packed_bytes: usize,
}

impl Loader<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Failure> {
        let values = self.checkpoint.read(name, shape)?;
        self.parameters += values.len() as u64;
        Ok(values)
    }

    /// Several `[outputs, inputs]` matrices with the same inputs, side by side.
    fn linear(
        &mut self,
        prefix: &str,
        parts: &[&str],
        outputs: usize,
        inputs: usize,
    ) -> Result<Packed, Failure> {
        let mut all = Vec::with_capacity(parts.len() * outputs * inputs);
        for part in parts {
            all.extend(self.tensor(&format!("{prefix}.{part}.weight"), &[outputs, inputs])?);
        }
        let packed = Packed::from_weight(&all, parts.len() * outputs, inputs);
        self.packed_bytes += packed.bytes();
        Ok(packed)
    }

    fn stack(&mut self, stack: &str, layers: usize) -> Result<Stack, Failure> {
        let Config { d_model, d_ff, buckets, num_heads, gated, .. } = *self.config;
        let inner = self.config.inner();
        let mut made = Vec::with_capacity(layers);
        for i in 0..layers {
            let part = |part: usize, name: &str| format!("{stack}.block.{i}.layer.{part}.{name}");
            let at = part(0, "SelfAttention");
            let attention = SelfAttention {
                norm: self.tensor(&part(0, "layer_norm.weight"), &[d_model])?,
                query_key_value: self.linear(&at, &["q", "k", "v"], inner, d_model)?,
                output: self.linear(&at, &["o"], d_model, inner)?,
            };
            let at = part(1, "EncDecAttention");
            let cross = match stack {
                "decoder" => Some(CrossAttention {
                    norm: self.tensor(&part(1, "layer_norm.weight"), &[d_model])?,
                    query: self.linear(&at, &["q"], inner, d_model)?,
                    key_value: self.linear(&at, &["k", "v"], inner, d_model)?,
                    output: self.linear(&at, &["o"], d_model, inner)?,
                }),
                _ => None,
            };
            let last = if cross.is_some() { 2 } else { 1 };
            let at = part(last, "DenseReluDense");
            let up: &[&str] = if gated { &["wi_0", "wi_1"] } else { &["wi"] };
            let forward = FeedForward {
                norm: self.tensor(&part(last, "layer_norm.weight"), &[d_model])?,
                up: self.linear(&at, up, d_ff, d_model)?,
                down: self.linear(&at, &["wo"], d_model, d_ff)?,
            };
            made.push(Layer { attention, cross, forward });
        }
        let name = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        Ok(Stack {
            layers: made,
            final_norm: self.tensor(&format!("{stack}.final_layer_norm.weight"), &[d_model])?,
            bias: self.tensor(&name, &[buckets, num_heads])?,
        })
    }
}
