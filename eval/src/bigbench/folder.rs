//! The data folder: which subsets it has, and whether its rows are rows.

use std::path::{Path, PathBuf};

use super::Split;
use crate::rows::BadLine;

/// A data folder that can be run on.
#[derive(Clone, Debug, PartialEq)]
pub struct DataFolder {
    /// Where it lies.
    pub path: PathBuf,
    /// The wanted subsets, or all of them, in the order of `subset_names.json`.
    pub subsets: Vec<SubsetFiles>,
}

/// The files of one subset.
#[derive(Clone, Debug, PartialEq)]
pub struct SubsetFiles {
    /// Its name.
    pub subset: String,
    /// `<subset>_train.jsonl`, or its packed form.
    pub train: PathBuf,
    /// `<subset>_validation.jsonl`, or its packed form.
    pub validation: PathBuf,
    /// Good rows of the train file.
    pub train_rows: u64,
    /// Good rows of the validation file.
    pub validation_rows: u64,
    /// Bad lines of both files: the first [`SubsetFiles::MAX_NAMED`].
    pub bad: Vec<BadLine>,
    /// All bad lines of both files.
    pub bad_lines: u64,
}

impl SubsetFiles {
    /// How many bad lines are kept by name; more are only counted.
    pub const MAX_NAMED: usize = 20;
}

/// Why a data folder cannot be run on.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Nothing there.
    #[error("{path} holds no benchmark data; make some with `cappy-client data bigbench` or `data demo`")]
    Empty {
        /// The folder.
        path: String,
    },
    /// The folder has no such subset.
    #[error("{path} has no subset `{subset}`{}", suggestion.as_ref().map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())]
    UnknownSubset {
        /// The folder.
        path: String,
        /// As it was asked for.
        subset: String,
        /// The nearest name.
        suggestion: Option<String>,
    },
    /// A file that the list of subsets promises is not there.
    #[error("{path} is missing")]
    MissingFile {
        /// The file.
        path: String,
    },
    /// `subset_names.json` is not a list of names.
    #[error("{path} is not a JSON list of subset names")]
    Names {
        /// The file.
        path: String,
        /// The reason.
        #[source]
        source: serde_json::Error,
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

/// The file of one split of a subset in a data or generations folder: `.jsonl`, else `.jsonl.gz`, else `.jsonl.zst`;
/// `None` if there is none.
pub fn split_file(folder: &Path, subset: &str, split: Split) -> Option<PathBuf> {
    [".jsonl", ".jsonl.gz", ".jsonl.zst"]
        .iter()
        .map(|ending| folder.join(format!("{subset}_{split}{ending}")))
        .find(|path| path.is_file())
}

/// Checks a data folder and counts its rows. `wanted` empty means every subset it has.
///
/// # Errors
/// See [`FolderError`]; bad rows are no errors, they are counted and named.
pub fn inspect(folder: &Path, wanted: &[String]) -> Result<DataFolder, FolderError> {
    let _ = (folder, wanted);
    unimplemented!()
}
