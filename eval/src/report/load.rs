//! Under construction.
use super::ModelResults;
use crate::bigbench::SkippedTask;
use std::path::Path;
/// Results found, and files that were none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadedResults {
    /// One for each generator.
    pub models: Vec<ModelResults>,
    /// Files left out, with the reason.
    pub skipped: Vec<SkippedTask>,
}
/// Why there is nothing to report.
#[derive(Debug, thiserror::Error)]
pub enum LoadReportError {
    /// No results there.
    #[error("{path} holds no results; expected <model>/<subset>.json below it")]
    Empty {
        /// The folder.
        path: String,
    },
    /// The file system refused.
    #[error("failed to read {path}")]
    Io {
        /// The file or folder.
        path: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}
/// Loads `DIR/<model>/<subset>.json`, or `DIR/<subset>.json` for one model.
///
/// # Errors
/// If the folder cannot be read or holds no results.
pub fn load_results(folder: &Path) -> Result<LoadedResults, LoadReportError> {
    let _ = folder;
    unimplemented!()
}
/// Baselines from `GENERATIONS/<model>/<subset>_validation.jsonl` (or one model's folder); references come from the
/// rows, or from the data folder where given.
///
/// # Errors
/// If the folder cannot be read or holds no generations.
pub fn baselines_from_generations(
    generations: &Path,
    data: Option<&Path>,
) -> Result<LoadedResults, LoadReportError> {
    let _ = (generations, data);
    unimplemented!()
}
