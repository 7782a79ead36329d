//! Which network a `config.json` describes.

use std::ops::Range;

use cappy_plugin_abi::{Failure, ModelInfo};
use cappy_plugin_models::encoder::config::EncoderConfig;
use cappy_plugin_models::encoder::deberta::{self, DebertaConfig};
use cappy_plugin_models::encoder::family::{Family, Identity, parse};
use cappy_plugin_models::encoder::layout::Layout;
use cappy_plugin_models::encoder::modernbert::{self, ModernBertConfig};
use cappy_plugin_models::encoder::slots::Slots;
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::bert::Bert;
use super::deberta::Deberta;
use super::modernbert::ModernBert;
use super::parts::Parameters;
use super::pass::Pass;
use crate::engine::Result;

/// The forward pass of a classifier.
pub trait Network: Send {
    /// Raw logits, `(rows, labels)`, in the order of the pass's rows.
    ///
    /// # Errors
    /// `Cancelled`, `OutOfMemory`, `Internal`.
    fn forward(&self, pass: &Pass<'_>) -> Result<Tensor>;
}

/// A classifier before its tensors.
pub struct Architecture {
    /// What all families say alike.
    pub identity: Identity,
    /// Segments that it tells apart; 0 or 1: it ignores them.
    pub segments: usize,
    /// Indices of the head's tensors among the slots.
    pub head: Range<usize>,
    max_tokens: usize,
    vocab_size: usize,
    sizes: Sizes,
}

enum Sizes {
    Bert(EncoderConfig, Layout),
    ModernBert(ModernBertConfig, modernbert::layout::Layout, i64),
    Deberta(DebertaConfig, deberta::layout::Layout, i64),
}

#[derive(Deserialize)]
struct Pad {
    pad_token_id: Option<i64>,
}

impl Architecture {
    /// Parses `config.json`.
    ///
    /// # Errors
    /// `Unsupported` and `BadModel`, naming the field.
    pub fn parse(json: &str) -> std::result::Result<Self, Failure> {
        let identity = Identity::parse(json)?;
        let pad_token = |default: i64| parse::<Pad>(json).map(|pad| pad.pad_token_id.unwrap_or(default));
        let (sizes, segments, max_tokens, vocab_size) = match identity.family {
            Family::ModernBert => {
                let config = ModernBertConfig::parse(json)?;
                let (tokens, vocabulary) = (config.max_tokens, config.vocab_size);
                let layout = modernbert::layout::Layout::new(&config);
                // transformers' default.
                (Sizes::ModernBert(config, layout, pad_token(50283)?), 0, tokens, vocabulary)
            }
            Family::DebertaV2 => {
                let config = DebertaConfig::parse(json)?;
                let (types, tokens, vocabulary) =
                    (config.type_vocab_size, config.max_positions, config.vocab_size);
                let layout = deberta::layout::Layout::new(&config);
                (Sizes::Deberta(config, layout, pad_token(0)?), types, tokens, vocabulary)
            }
            _ => {
                let config = EncoderConfig::parse(json)?;
                let (types, tokens, vocabulary) =
                    (config.type_vocab_size, config.max_tokens(), config.vocab_size);
                let layout = Layout::new(&config);
                (Sizes::Bert(config, layout), types, tokens, vocabulary)
            }
        };
        let head = match &sizes {
            Sizes::Bert(_, layout) => layout.head(),
            Sizes::ModernBert(_, layout, _) => {
                layout.slots.within(&(layout.dense.weight.start..layout.out.bias.end))
            }
            Sizes::Deberta(_, layout, _) => {
                layout.slots.within(&(layout.dense.weight.start..layout.out.bias.end))
            }
        };
        Ok(Self { identity, segments, head, max_tokens, vocab_size, sizes })
    }

    /// Its parameters.
    pub fn slots(&self) -> &Slots {
        match &self.sizes {
            Sizes::Bert(_, layout) => &layout.slots,
            Sizes::ModernBert(_, layout, _) => &layout.slots,
            Sizes::Deberta(_, layout, _) => &layout.slots,
        }
    }

    /// What a loaded model tells about itself.
    pub fn info(&self, weight_bytes: u64, kind: Kind) -> ModelInfo {
        ModelInfo {
            architecture: self.identity.family.model_type().into(),
            parameters: self.slots().len() as u64,
            weight_bytes,
            dtype: if kind == Kind::BFloat16 { "bf16" } else { "f32" }.into(),
            max_tokens: self.max_tokens as u32,
            vocab_size: self.vocab_size as u32,
            labels: self.identity.labels as u32,
        }
    }

    /// The network, with its tensors.
    ///
    /// # Errors
    /// Those of `from`.
    pub fn network(&self, from: &mut dyn Parameters) -> Result<Box<dyn Network>> {
        Ok(match &self.sizes {
            Sizes::Bert(config, layout) => Box::new(Bert::new(config.clone(), layout, from)?),
            Sizes::ModernBert(config, layout, pad) => {
                Box::new(ModernBert::new(config.clone(), pad_row(*pad, config.vocab_size), layout, from)?)
            }
            Sizes::Deberta(config, layout, pad) => {
                Box::new(Deberta::new(config.clone(), pad_row(*pad, config.vocab_size), layout, from)?)
            }
        })
    }
}

/// The row of the word embeddings that gets no gradient; -1: none.
fn pad_row(token: i64, vocab_size: usize) -> i64 {
    if (0..vocab_size as i64).contains(&token) { token } else { -1 }
}
