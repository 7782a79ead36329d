//! Sequence classifiers.
//!
//! What needs no engine is in [`cappy_plugin_models::encoder`]: [`family`], [`config`], [`layout`], [`slots`],
//! [`pieces`]. Architectures that are built like BERT (RoBERTa, XLM-R, BERT, DistilBERT) share [`fast`] (scores on
//! the CPU) and [`plain`] (the same model in candle's operations: CUDA, and what the others are tested against);
//! [`modernbert`] and [`deberta`] each have these two for themselves. `parts.rs` and `tensors.rs` are the layers that
//! fast and plain paths are made of. [`scorer`] is what the host gets.

mod attention;
pub mod deberta;
pub mod fast;
mod groups;
pub mod modernbert;
mod parts;
pub mod plain;
pub mod scorer;
mod tensors;

pub use cappy_plugin_models::encoder::{check, config, family, layout, pieces, slots};
