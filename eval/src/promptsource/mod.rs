//! PromptSource: classification tasks as prompts with answer choices, and how often a scorer picks the right one.
//!
//! [`PromptRow`] is one line of a test file; [`Accuracy`] takes rows with their scores and makes the results table,
//! with the [`published`] figures beside it.

mod accuracy;
pub mod published;
mod row;

pub use accuracy::{Accuracy, AccuracyError, AccuracyReport, DatasetAccuracy, TemplateAccuracy};
pub use row::PromptRow;
