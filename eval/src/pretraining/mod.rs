//! The mixture that a scorer is pretrained on, from a recipe.
//!
//! 1. A [`Recipe`] (TOML) names datasets with PromptSource templates, files of labelled rows, shares and caps.
//! 2. `sources.rs` renders each dataset: the target is right (1.0), other answer choices are wrong (0.0), and where the
//!    answer is free text, the targets of other examples are wrong.
//! 3. `spool.rs` sets everything aside in buckets on disk, by a key of its text; so a bucket at a time can be rid of
//!    duplicates, put in order and written, and the mixture may be larger than the memory.
//! 4. The [`Mixture`] says what was written: labelled examples, held-out examples, and prompts whose answers generators
//!    give and ROUGE-L labels, later in the job.
//!
//! Source: Cappy (arXiv 2311.06720), section 3.1.

mod mixture;
mod recipe;
mod sources;
mod spool;

pub use mixture::{Mixture, MixtureError, Note, SourceCounts};
pub use recipe::{DatasetEntry, Prompts, Recipe, RecipeError, RowsEntry, Training};

#[cfg(test)]
mod tests;
