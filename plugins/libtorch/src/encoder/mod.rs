//! Sequence classifiers: RoBERTa, XLM-R, BERT and DistilBERT (`bert.rs`), ModernBERT (`modernbert.rs`), DeBERTa versions 2
//! and 3 (`deberta.rs`).
//!
//! A request's way: [`architecture`] reads `config.json` and says which tensors there are; a network is made of whatever
//! gives these tensors (`parts.rs`): a checkpoint for a [`scorer`], variables for a trainer. Rows are sorted by length
//! and cut into batches (`batch.rs`); a [`pass::Pass`] sends one through the network: all tokens at once through
//! linear layers, rows as they lie (`packed.rs`) or groups of rows of nearly equal lengths (`padded.rs`) through attention
//! (`attention.rs`), first tokens only through what follows the last attention, where the head reads nothing else. The
//! same code scores and trains; dropout (`pass.rs`, `masks.rs`) is the only difference.

pub mod architecture;
mod attention;
pub mod batch;
mod bert;
mod deberta;
mod masks;
mod modernbert;
pub mod packed;
pub mod padded;
pub mod parts;
pub mod pass;
pub mod scorer;
