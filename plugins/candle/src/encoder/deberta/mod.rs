//! DeBERTa versions 2 and 3: a BERT whose attention has, beside content, terms of content with relative position
//! (disentangled attention), with the distances in logarithmic buckets.
//!
//! Source: He et al., arXiv 2006.03654 and 2111.09543; transformers' `modeling_deberta_v2.py`.

mod fast;
mod plain;

pub use cappy_plugin_models::encoder::deberta::{DebertaConfig, Relative};
use cappy_plugin_models::encoder::deberta::{info, layout};
pub use fast::Fast;
pub use plain::Plain;
