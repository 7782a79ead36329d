//! Sequence classifiers: RoBERTa, XLM-R, BERT.
//!
//! [`config`] reads `config.json`, [`layout`] names every parameter, [`fast`] scores on the CPU, [`plain`] is the
//! same model in candle's operations (CUDA, and what the others are tested against). [`scorer`] is what the host
//! gets.

pub mod config;
pub mod fast;
pub mod layout;
pub mod pieces;
pub mod plain;
pub mod scorer;

use cappy_plugin_abi::{Failure, RaggedTokens};

use config::EncoderConfig;

/// Checks a batch against a model.
///
/// # Errors
/// `InvalidArgument` naming the row.
pub fn check(config: &EncoderConfig, batch: RaggedTokens<'_>) -> Result<(), Failure> {
    batch.check(u32::try_from(config.vocab_size).unwrap_or(u32::MAX))?;
    for row in 0..batch.rows() {
        let length = batch.row(row).len();
        if length > config.max_tokens() {
            return Err(Failure::invalid_argument(format!(
                "ragged batch: row {row} has {length} tokens, the model takes {}; truncate it",
                config.max_tokens()
            )));
        }
        // Models with one segment ignore them, as transformers' tokenizers for them make none.
        let (start, end) = (batch.offsets[row] as usize, batch.offsets[row + 1] as usize);
        let segments = if config.type_vocab_size > 1 { batch.type_ids.get(start..end) } else { None };
        if let Some(id) =
            segments.unwrap_or(&[]).iter().find(|&&id| usize::from(id) >= config.type_vocab_size)
        {
            return Err(Failure::invalid_argument(format!(
                "ragged batch: row {row} has type id {id}, the model has {} segments",
                config.type_vocab_size
            )));
        }
    }
    Ok(())
}
