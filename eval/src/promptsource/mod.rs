//! PromptSource: classification tasks as prompts with answer choices, and how often a scorer picks the right one.
//!
//! 1. A [`TemplateFile`] holds the templates of one dataset; a [`CompiledTemplate`] applies one of them to an example
//!    as the promptsource package does with Jinja2 in Python (`python/` makes up for what differs between the engines).
//! 2. [`find_tasks`] pairs a folder of templates with a folder of datasets (`dataset/` reads JSON Lines, CSV and
//!    Parquet); [`Task::ask`] walks the examples of one.
//! 3. [`import`] writes a test file of [`PromptRow`]s, one for each answer choice.
//! 4. A scorer scores the rows; [`Accuracy`] takes them with their scores and makes the results table, with the
//!    [`published`] figures beside it.
//!
//! Source: Bach et al., "PromptSource", 2022 (arXiv 2202.01279), and its package (`promptsource/templates.py`).

mod accuracy;
mod dataset;
mod import;
pub mod published;
mod python;
mod renderer;
mod row;
mod task;
mod template;

pub use accuracy::{Accuracy, AccuracyError, AccuracyReport, DatasetAccuracy, TemplateAccuracy};
pub(crate) use import::with_deep_stack;
pub use import::{ImportError, ImportOptions, ImportReport, ImportedDataset, Note, import};
pub use renderer::{CompiledTemplate, DrawKey, RenderError, Rendered, TEXT_VAR_LENGTH, Variant};
pub use row::PromptRow;
pub use task::{AskOptions, Asked, Event, FindError, Found, NamedSkip, Task, find as find_tasks};
pub use template::{SkippedTemplate, Template, TemplateFile, TemplateFileError};
