//! What every backend needs to know of the models that it loads, without an engine: configurations, checkpoints on
//! disk, and how a decoding chooses tokens.
//!
//! A backend reads `config.json` with [`encoder`] or [`t5`] and tensors with [`weights`]. [`trainer`] has the files and
//! first weights of training runs, [`dropout`] its masks, which do not depend on who computes them. What is computed
//! here itself ([`rows`]: softmax of a row of logits) runs on the CPU, with the instructions that [`simd`] finds.

pub mod dropout;
pub mod encoder;
pub mod rows;
pub mod simd;
pub mod t5;
pub mod trainer;
pub mod weights;
