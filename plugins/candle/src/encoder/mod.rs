//! Sequence classifiers.
//!
//! [`family`] says which architecture a `config.json` describes. Those that are built like BERT (RoBERTa, XLM-R, BERT,
//! DistilBERT) share [`config`] (their sizes), [`layout`] (where every parameter lies), [`fast`] (scores on the CPU)
//! and [`plain`] (the same model in candle's operations: CUDA, and what the others are tested against). [`modernbert`]
//! and [`deberta`] each have these four for themselves. [`slots`] are the named parameters of any of them, `parts.rs`
//! and `tensors.rs` the layers that fast and plain paths are made of. [`scorer`] is what the host gets.

pub mod config;
pub mod deberta;
pub mod family;
pub mod fast;
pub mod layout;
pub mod modernbert;
mod parts;
pub mod pieces;
pub mod plain;
pub mod scorer;
pub mod slots;
mod tensors;

use cappy_plugin_abi::{Failure, ModelInfo, RaggedTokens};

/// Checks a batch against a model with `segments` segments.
///
/// # Errors
/// `InvalidArgument` naming the row.
pub fn check(info: &ModelInfo, segments: usize, batch: RaggedTokens<'_>) -> Result<(), Failure> {
    batch.check(info.vocab_size)?;
    for row in 0..batch.rows() {
        let length = batch.row(row).len();
        if length > info.max_tokens as usize {
            return Err(Failure::invalid_argument(format!(
                "ragged batch: row {row} has {length} tokens, the model takes {}; truncate it",
                info.max_tokens
            )));
        }
        // Models with one segment ignore them, as transformers' tokenizers for them make none.
        let (start, end) = (batch.offsets[row] as usize, batch.offsets[row + 1] as usize);
        let given = if segments > 1 { batch.type_ids.get(start..end) } else { None };
        if let Some(id) = given.unwrap_or(&[]).iter().find(|&&id| usize::from(id) >= segments) {
            return Err(Failure::invalid_argument(format!(
                "ragged batch: row {row} has type id {id}, the model has {segments} segments"
            )));
        }
    }
    Ok(())
}
