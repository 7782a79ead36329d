//! The BERT-like classifier in candle's tensor operations: what the fast path and the trainer are tested against, and
//! what runs on CUDA.
//!
//! Source: transformers' `modeling_roberta.py`, `modeling_bert.py` and `modeling_distilbert.py`.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};
use cappy_plugin_abi::{Control, Failure, RaggedTokens};

use super::config::{EncoderConfig, Family};
use super::layout::{LayerNames, Layout};
use super::tensors::{Tensors, join_heads, softmax, split_heads};
use crate::weights::Checkpoint;

/// A loaded classifier.
pub struct PlainEncoder {
    config: EncoderConfig,
    tensors: Tensors,
}

impl PlainEncoder {
    /// Loads the weights onto a device, as f32.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or of another shape.
    pub fn load(
        config: EncoderConfig,
        checkpoint: &Checkpoint,
        device: Device,
    ) -> std::result::Result<Self, Failure> {
        let tensors = Tensors::load(&Layout::new(&config).slots, checkpoint, device)?;
        Ok(Self { config, tensors })
    }

    /// A classifier over tensors of the caller, by transformers' names: variables to differentiate by.
    pub fn from_tensors(config: EncoderConfig, tensors: HashMap<String, Tensor>, device: Device) -> Self {
        Self { config, tensors: Tensors::new(tensors, device) }
    }

    /// What was loaded.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Raw logits, `(rows, labels)`. The batch must have been checked against the configuration.
    ///
    /// # Errors
    /// `Cancelled`, `OutOfMemory`, `Internal`.
    pub fn score(
        &self,
        batch: RaggedTokens<'_>,
        control: &dyn Control,
    ) -> std::result::Result<Vec<f32>, Failure> {
        Tensors::score_by_length(batch, self.config.labels, control, |rows| self.forward(batch, rows))
    }

    /// Raw logits `(rows.len(), labels)` of rows of one length, as a tensor with its graph.
    ///
    /// # Errors
    /// candle's.
    pub fn forward(&self, batch: RaggedTokens<'_>, rows: &[usize]) -> Result<Tensor> {
        let Self { config, tensors } = self;
        let length = batch.row(rows[0]).len();
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        let mut types = Vec::new();
        for &row in rows {
            let tokens = batch.row(row);
            ids.extend_from_slice(tokens);
            positions.extend(config.positions(tokens).map(|p| p as u32));
            let start = batch.offsets[row] as usize;
            types.extend((start..start + length).map(|t| {
                let segment = batch.type_ids.get(t).copied().unwrap_or(0);
                if config.type_vocab_size > 1 { u32::from(segment) } else { 0 }
            }));
        }
        let base = config.family.base();
        let shape = (rows.len(), length, config.hidden);
        let embedding = |part: &str, index: Vec<u32>| {
            tensors.look_up(&format!("{base}.embeddings.{part}_embeddings.weight"), index, shape)
        };
        let mut x = embedding("word", ids)?.add(&embedding("position", positions)?)?;
        if config.type_vocab_size > 0 {
            x = x.add(&embedding("token_type", types)?)?;
        }
        let mut x = self.layer_norm(&x, &format!("{base}.embeddings.LayerNorm"))?;
        let names = LayerNames::of(config.family);
        for i in 0..config.layers {
            x = self.layer(&x, &format!("{base}.{}.{i}", names.layers), names)?;
        }
        let first = x.narrow(1, 0, 1)?.squeeze(1)?;
        match config.family {
            Family::Bert => {
                tensors.linear(&tensors.linear(&first, "bert.pooler.dense")?.tanh()?, "classifier")
            }
            Family::DistilBert => {
                tensors.linear(&tensors.linear(&first, "pre_classifier")?.relu()?, "classifier")
            }
            _ => tensors.linear(&tensors.linear(&first, "classifier.dense")?.tanh()?, "classifier.out_proj"),
        }
    }

    fn layer_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        self.tensors.layer_norm(x, name, self.config.layer_norm_eps)
    }

    /// `x`: `(rows, length, hidden)`.
    fn layer(&self, x: &Tensor, name: &str, parts: &LayerNames) -> Result<Tensor> {
        let linear = |x: &Tensor, part: &str| self.tensors.linear(x, &format!("{name}.{part}"));
        let split = |part: &str| split_heads(&linear(x, part)?, self.config.heads);
        let [query, key, value] = parts.qkv;
        // (rows, heads, length, length)
        let scale = (self.config.head_dim() as f64).powf(-0.5);
        let scores = (split(query)?.matmul(&split(key)?.t()?.contiguous()?)? * scale)?;
        let context = join_heads(&softmax(&scores)?.matmul(&split(value)?)?)?;
        let attended = linear(&context, parts.output)?;
        let x = self.layer_norm(&(attended + x)?, &format!("{name}.{}", parts.attention_norm))?;
        let inner = linear(&x, parts.up)?.gelu_erf()?;
        let down = linear(&inner, parts.down)?;
        self.layer_norm(&(down + x)?, &format!("{name}.{}", parts.ffn_norm))
    }
}
