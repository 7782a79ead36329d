//! ModernBERT: a classifier with rotary positions, attention within a window in most layers, gated feed-forward
//! networks, normalisation before each block, and (as published) no biases.
//!
//! Source: Warner et al., arXiv 2412.13663; transformers' `modeling_modernbert.py`.

mod config;
pub mod layout;

pub use config::{Attention, ModernBertConfig, Pooling};

use cappy_plugin_abi::ModelInfo;

use super::family::Family;
use layout::Layout;

/// What a loaded model tells about itself.
pub fn info(config: &ModernBertConfig, weight_bytes: usize) -> ModelInfo {
    ModelInfo {
        architecture: Family::ModernBert.model_type().into(),
        parameters: Layout::new(config).slots.len() as u64,
        weight_bytes: weight_bytes as u64,
        dtype: "f32".into(),
        max_tokens: config.max_tokens as u32,
        vocab_size: config.vocab_size as u32,
        labels: config.labels as u32,
    }
}
