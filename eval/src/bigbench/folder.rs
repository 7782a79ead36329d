//! The data folder: which subsets it has, and whether its rows are rows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::Split;
use crate::rows::{BadLine, JsonLines, ReadError, Row};

/// The list of a data folder's subsets.
pub(super) const SUBSET_NAMES_FILE: &str = "subset_names.json";

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
    /// A name that is no name of a file.
    #[error("{path} names the subset `{name}`, which would lie outside of the folder")]
    Outside {
        /// The file.
        path: String,
        /// The subset.
        name: String,
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
/// A folder without `subset_names.json` has the subsets that it has both files of.
///
/// # Errors
/// See [`FolderError`]; bad rows are no errors, they are counted and named.
pub fn inspect(folder: &Path, wanted: &[String]) -> Result<DataFolder, FolderError> {
    let shown = || folder.display().to_string();
    let names = match read_names(&folder.join(SUBSET_NAMES_FILE)) {
        Err(FolderError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            names_of_files(folder)?
        }
        names => names?,
    };
    if names.is_empty() {
        return Err(FolderError::Empty { path: shown() });
    }
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(name)) {
        let suggestion = nearest(unknown, names.iter().map(String::as_str));
        return Err(FolderError::UnknownSubset { path: shown(), subset: unknown.clone(), suggestion });
    }
    let subsets = names
        .into_iter()
        .filter(|name| wanted.is_empty() || wanted.contains(name))
        .map(|name| SubsetFiles::inspect(folder, name))
        .collect::<Result<_, _>>()?;
    Ok(DataFolder { path: folder.into(), subsets })
}

impl SubsetFiles {
    fn inspect(folder: &Path, subset: String) -> Result<Self, FolderError> {
        let find = |split: Split| {
            split_file(folder, &subset, split).ok_or_else(|| FolderError::MissingFile {
                path: folder.join(format!("{subset}_{split}.jsonl")).display().to_string(),
            })
        };
        let (train, validation) = (find(Split::Train)?, find(Split::Validation)?);
        let mut files = Self {
            subset,
            train_rows: 0,
            validation_rows: 0,
            bad: Vec::new(),
            bad_lines: 0,
            train: PathBuf::new(),
            validation: PathBuf::new(),
        };
        files.train_rows = files.count(&train)?;
        files.validation_rows = files.count(&validation)?;
        Ok(Self { train, validation, ..files })
    }

    /// Good rows of a file; bad lines are noted.
    fn count(&mut self, path: &Path) -> Result<u64, FolderError> {
        let mut good = 0;
        let io_error = |source_name, source| FolderError::Io { path: source_name, source };
        let rows = JsonLines::<Row>::open(path).map_err(|error| match error {
            ReadError::Io { source_name, source } => io_error(source_name, source),
            ReadError::Bad(bad) => io_error(bad.to_string(), io::ErrorKind::InvalidData.into()),
        })?;
        for row in rows {
            match row {
                Ok(_) => good += 1,
                Err(ReadError::Bad(bad)) => {
                    self.bad_lines += 1;
                    if self.bad.len() < Self::MAX_NAMED {
                        self.bad.push(bad);
                    }
                }
                Err(ReadError::Io { source_name, source }) => return Err(io_error(source_name, source)),
            }
        }
        Ok(good)
    }
}

/// The names in a `subset_names.json`.
pub(super) fn read_names(path: &Path) -> Result<Vec<String>, FolderError> {
    let shown = || path.display().to_string();
    let text = fs::read(path).map_err(|source| FolderError::Io { path: shown(), source })?;
    let names: Vec<String> =
        serde_json::from_slice(&text).map_err(|source| FolderError::Names { path: shown(), source })?;
    match names.iter().find(|name| name.contains(['/', '\\']) || *name == "..") {
        Some(name) => Err(FolderError::Outside { path: shown(), name: name.clone() }),
        None => Ok(names),
    }
}

/// The subsets that both splits are there of, by name.
fn names_of_files(folder: &Path) -> Result<Vec<String>, FolderError> {
    let io_error = |source| FolderError::Io { path: folder.display().to_string(), source };
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(io_error)? {
        let name = entry.map_err(io_error)?.file_name();
        let subset =
            name.to_str().and_then(|name| name.split_once("_validation.jsonl")).map(|(subset, _)| subset);
        if let Some(subset) = subset
            && Split::ALL.iter().all(|split| split_file(folder, subset, *split).is_some())
        {
            names.insert(subset.to_owned());
        }
    }
    Ok(names.into_iter().collect())
}

/// The known name that a mistyped one most likely means.
pub(super) fn nearest<'a>(mistyped: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    const MIN_SIMILARITY: f64 = 0.6;
    known
        .map(|name| (strsim::normalized_damerau_levenshtein(mistyped, name), name))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))
        .map(|(_, name)| name.to_owned())
}
