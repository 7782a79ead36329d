//! DeBERTa versions 2 and 3: a BERT whose attention has, beside content, terms of content with relative position
//! (disentangled attention), with the distances in logarithmic buckets.
//!
//! Source: He et al., arXiv 2006.03654 and 2111.09543; transformers' `modeling_deberta_v2.py`.

mod config;
pub mod layout;

pub use config::{Activation, Convolution, DebertaConfig, Relative};

use cappy_plugin_abi::ModelInfo;

use super::family::Family;
use layout::Layout;

/// What a loaded model tells about itself.
pub fn info(config: &DebertaConfig, weight_bytes: usize) -> ModelInfo {
    ModelInfo {
        architecture: Family::DebertaV2.model_type().into(),
        parameters: Layout::new(config).slots.len() as u64,
        weight_bytes: weight_bytes as u64,
        dtype: "f32".into(),
        max_tokens: config.max_positions as u32,
        vocab_size: config.vocab_size as u32,
        labels: config.labels as u32,
    }
}
