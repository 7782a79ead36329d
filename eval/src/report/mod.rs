//! The tables of the reference implementation: the scorer's result per subset, and its mean beside the baselines.
//!
//! [`load_results`] finds the results of one or several generators under a folder, [`published`] knows the figures of
//! the reference implementation, [`scores_table`] and [`methods_table`] put them side by side, [`details_table`] shows
//! one generator closely, [`Table`] is drawn by [`render`], and [`plot`] draws gains.

mod build;
mod details;
mod load;
pub mod plot;
pub mod published;
pub mod render;
mod table;

use indexmap::IndexMap;

pub use build::{methods_table, overall_interval, scores_table};
pub use details::details_table;
pub use load::{LoadReportError, LoadedResults, SkippedFile, baselines_from_generations, load_results};
pub use table::{Cell, Table, TableRow};

use crate::selection::SubsetResult;

/// Places behind the point, of figures that are times 100.
pub const DECIMALS: usize = 4;

/// The results of one generator, subset by subset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelResults {
    /// The generator, as its results folder is called (`flan-t5-xxl`).
    pub model: String,
    /// By subset name, in the order of the table.
    pub subsets: IndexMap<String, SubsetResult>,
}
