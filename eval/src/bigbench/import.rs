//! The import: from the benchmark's sources to a data folder.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// What to import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Subsets to import, in the order of the data folder. Empty: the 45 of [`super::GENERATIVE_SUBSETS`] from
    /// BIG-bench's sources, every generative task from any other folder of tasks.
    pub subsets: Vec<String>,
    /// Cuts each split to this many rows, as the hub's copy does at 50,000.
    pub row_cap: Option<usize>,
}

/// What an import made, and what it did not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// Imported subsets, in the order of `subset_names.json`.
    pub subsets: Vec<ImportedSubset>,
    /// Wanted subsets that the sources do not have.
    pub absent: Vec<String>,
    /// Tasks that were met and left out.
    pub skipped: Vec<SkippedTask>,
}

/// One imported subset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportedSubset {
    /// Its name.
    pub subset: String,
    /// The train file; `None` if the task is too small to have one.
    pub train: Option<ImportedFile>,
    /// The validation file; `None` if the task has no examples for it.
    pub validation: Option<ImportedFile>,
}

/// One written file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportedFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its rows.
    pub rows: u64,
    /// Its content's SHA-256, lowercase hex.
    pub sha256: String,
}

/// A task that gave no rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkippedTask {
    /// The task, or the path of its `task.json`.
    pub task: String,
    /// Why.
    pub reason: String,
}

/// Why an import failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The sources cannot be read.
    #[error("failed to read {path}")]
    Read {
        /// The archive or folder.
        path: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// No tasks there.
    #[error(
        "{path} holds no benchmark tasks; give bigbench-1.0.0.tar.gz, a BIG-bench checkout, or a folder of <task>/task.json"
    )]
    NoTasks {
        /// The archive or folder.
        path: String,
    },
    /// The archive tries to write outside, to link, or to overflow.
    #[error("refused {path}: {reason}")]
    Hostile {
        /// The archive.
        path: String,
        /// What it tried.
        reason: String,
    },
    /// A wanted subset is known neither to the benchmark nor to the sources.
    #[error("there is no subset `{subset}`{}", suggestion.as_ref().map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())]
    UnknownSubset {
        /// As it was asked for.
        subset: String,
        /// The nearest name.
        suggestion: Option<String>,
    },
    /// The data folder cannot be written.
    #[error(transparent)]
    Write(#[from] crate::rows::WriteError),
}

/// Imports `source` (the PyPI `.tar.gz`, a folder it was unpacked to, a BIG-bench checkout, or a folder of
/// `<task>/task.json`) into the data folder `output`. `progress` hears the name of each subset as it is written.
///
/// # Errors
/// See [`ImportError`]; single bad or absent tasks are no errors, the report names them.
pub fn import(
    source: &Path,
    output: &Path,
    options: &ImportOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<ImportReport, ImportError> {
    let _ = (source, output, options, progress);
    unimplemented!()
}
