//! T5 encoder-decoders (v1.0, v1.1, FLAN), as far as no engine is needed.
//!
//! [`config`] reads a model's shape. What a decoding makes of a step's logits is in [`search`]: it asks for the best
//! tokens or a draw, which [`sample`] answers, and the pure function of [`beam`] keeps the beams. [`bias`] has the
//! buckets of relative positions.
//!
//! Source: Raffel et al., arXiv 1910.10683; transformers' `modeling_t5.py`.

pub mod beam;
pub mod bias;
pub mod config;
pub mod sample;
pub mod search;
