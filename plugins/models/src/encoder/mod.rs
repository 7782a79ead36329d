//! Sequence classifiers, as far as no engine is needed.
//!
//! [`family`] says which architecture a `config.json` describes. Those that are built like BERT (RoBERTa, XLM-R, BERT,
//! DistilBERT) share [`config`] (their sizes) and [`layout`] (where every parameter lies); [`modernbert`] and
//! [`deberta`] have both for themselves. [`slots`] are the named parameters of any of them, [`pieces`] cuts batches.

pub mod config;
pub mod deberta;
pub mod family;
pub mod layout;
pub mod modernbert;
pub mod pieces;
pub mod slots;

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
