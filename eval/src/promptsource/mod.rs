//! PromptSource: classification tasks as prompts with answer choices, and how often a scorer picks the right one.
//!
//! [`PromptRow`] is one line of a test file; [`Accuracy`] takes rows with their scores and makes the results table,
//! with the [`published`] figures beside it.

mod accuracy;
pub mod published;
mod python;
mod renderer;
mod row;
mod template;

pub use accuracy::{Accuracy, AccuracyError, AccuracyReport, DatasetAccuracy, TemplateAccuracy};
pub use renderer::{CompiledTemplate, DrawKey, RenderError, Rendered, TEXT_VAR_LENGTH, Variant};
pub use row::PromptRow;
pub use template::{SkippedTemplate, Template, TemplateFile, TemplateFileError};
