//! The BERT-like classifier in candle's tensor operations: what the fast path and the trainer are tested against, and
//! what runs on CUDA.
//!
//! Source: transformers' `modeling_roberta.py`, `modeling_bert.py` and `modeling_distilbert.py`.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};
use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens};

use super::attention::{Heads, Seen};
use super::config::{EncoderConfig, Family};
use super::groups::Group;
use super::layout::{LayerNames, Layout};
use super::scorer::{Classifier, info};
use super::tensors::Tensors;
use crate::place::Place;
use crate::weights::Checkpoint;

/// A loaded classifier.
pub struct PlainEncoder {
    config: EncoderConfig,
    tensors: Tensors,
}

impl PlainEncoder {
    /// Loads the weights onto a device.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or of another shape.
    pub fn load(
        config: EncoderConfig,
        checkpoint: &Checkpoint,
        place: impl Into<Place>,
    ) -> std::result::Result<Self, Failure> {
        let layout = Layout::new(&config);
        let tensors = Tensors::load(&layout.slots, config.family.base(), checkpoint, place.into())?;
        Ok(Self { config, tensors })
    }

    /// A classifier over tensors of the caller, by transformers' names: variables to differentiate by.
    pub fn from_tensors(config: EncoderConfig, tensors: HashMap<String, Tensor>, device: Device) -> Self {
        Self { config, tensors: Tensors::differentiable(tensors, device.into()) }
    }

    /// What was loaded.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Raw logits `(rows.len(), labels)` of some rows of a batch that was checked against the configuration, as a tensor
    /// with its graph. Rows are padded to the longest of them.
    ///
    /// # Errors
    /// candle's.
    pub fn forward(&self, batch: RaggedTokens<'_>, rows: &[usize]) -> Result<Tensor> {
        let Self { config, tensors } = self;
        let group = Group::new(batch, rows);
        let base = config.family.base();
        let shape = group.shape(config.hidden);
        let embedding = |part: &str, index: Vec<u32>| {
            tensors.look_up(&format!("{base}.embeddings.{part}_embeddings.weight"), index, shape)
        };
        let positions = group.numbers(|tokens| config.positions(tokens).map(|position| position as u32));
        let mut x = embedding("word", group.ids())?.add(&embedding("position", positions)?)?;
        if config.type_vocab_size > 0 {
            x = x.add(&embedding("token_type", group.segments(config.type_vocab_size))?)?;
        }
        let mut x = self.layer_norm(&x, &format!("{base}.embeddings.LayerNorm"))?;
        let seen = Seen::new(&group, None, tensors)?;
        let names = LayerNames::of(config.family);
        for i in 0..config.layers {
            // The head reads first tokens only, so the last layer makes no others.
            let made = if i + 1 < config.layers { x.clone() } else { x.narrow(1, 0, 1)?.contiguous()? };
            x = self.layer(&made, &x, &seen, &format!("{base}.{}.{i}", names.layers), names)?;
        }
        let first = x.squeeze(1)?;
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

    /// `x`, `(rows, made, hidden)`, which attends to `all`, `(rows, length, hidden)`.
    fn layer(&self, x: &Tensor, all: &Tensor, seen: &Seen, name: &str, parts: &LayerNames) -> Result<Tensor> {
        let linear = |x: &Tensor, part: &str| self.tensors.linear(x, &format!("{name}.{part}"));
        let heads = Heads { count: self.config.heads, width: self.config.head_dim() };
        let split =
            |x: &Tensor, part: &str, scale: f64| self.tensors.heads(&linear(x, part)?, 0, heads, scale);
        let [query, key, value] = parts.qkv;
        let query = split(x, query, (heads.width as f64).powf(-0.5))?;
        // (rows, heads, made, length)
        let scores = query.matmul(&split(all, key, 1.0)?.t()?)?;
        let context = self.tensors.attend(scores, seen, &split(all, value, 1.0)?)?;
        let attended = linear(&context, parts.output)?;
        let x = self.layer_norm(&(attended + x)?, &format!("{name}.{}", parts.attention_norm))?;
        let inner = linear(&x, parts.up)?.gelu_erf()?;
        let down = linear(&inner, parts.down)?;
        self.layer_norm(&(down + x)?, &format!("{name}.{}", parts.ffn_norm))
    }
}

impl Classifier for PlainEncoder {
    fn info(&self) -> ModelInfo {
        let dtype = self.tensors.place.dtype.as_str().into();
        ModelInfo { dtype, ..info(&self.config, self.tensors.bytes() as u64) }
    }

    fn segments(&self) -> usize {
        self.config.type_vocab_size
    }

    fn score(
        &mut self,
        batch: RaggedTokens<'_>,
        control: &dyn Control,
    ) -> std::result::Result<Vec<f32>, Failure> {
        let sizes = (self.config.labels, self.config.heads);
        Tensors::score_by_groups(batch, sizes, control, |rows| self.forward(batch, rows))
    }
}
