//! ModernBERT: a classifier with rotary positions, attention within a window in most layers, gated feed-forward
//! networks, normalisation before each block, and (as published) no biases.
//!
//! Source: Warner et al., arXiv 2412.13663; transformers' `modeling_modernbert.py`.

mod fast;
mod plain;

pub use cappy_plugin_models::encoder::modernbert::{ModernBertConfig, Pooling};
use cappy_plugin_models::encoder::modernbert::{info, layout};
pub use fast::Fast;
pub use plain::Plain;
