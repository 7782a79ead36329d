//! Results and generations as they lie in folders.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::{ModelResults, published};
use crate::bigbench::{Split, split_file};
use crate::rows::{BadLinePolicy, GeneratedRow, Row, explain_chain, load};
use crate::selection::{SubsetResult, baselines};

/// A report that an earlier run left among the results.
const REPORT_FILE: &str = "report.json";
const VALIDATION_ENDING: &str = "_validation.jsonl";

/// Results found, and files that were none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadedResults {
    /// One for each generator: the published ones by size, others behind by name.
    pub models: Vec<ModelResults>,
    /// Files left out.
    pub skipped: Vec<SkippedFile>,
}

/// A file that gave no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedFile {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Why there is nothing to report.
#[derive(Debug, thiserror::Error)]
pub enum LoadReportError {
    /// No results there.
    #[error("{path} holds no results; expected <model>/<subset>.json below it{}", first_reason(skipped))]
    NoResults {
        /// The folder.
        path: String,
        /// Files that looked like results.
        skipped: Vec<SkippedFile>,
    },
    /// No generations there.
    #[error(
        "{path} holds no generations; expected <model>/<subset>_validation.jsonl below it{}",
        first_reason(skipped)
    )]
    NoGenerations {
        /// The folder.
        path: String,
        /// Files that looked like generations.
        skipped: Vec<SkippedFile>,
    },
    /// The file system refused.
    #[error("failed to read {path}")]
    Io {
        /// The file or folder.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

fn first_reason(skipped: &[SkippedFile]) -> String {
    skipped.first().map(|file| format!(" ({}: {})", file.path.display(), file.reason)).unwrap_or_default()
}

/// Loads `DIR/<model>/<subset>.json`, or `DIR/<subset>.json` for the one model that the folder is named after.
///
/// # Errors
/// If the folder cannot be read or holds no results. A file that is no result (the reference implementation leaves
/// `running...` in those of killed runs) is skipped by name.
pub fn load_results(folder: &Path) -> Result<LoadedResults, LoadReportError> {
    let mut loaded = LoadedResults::default();
    for (model, files) in files_by_model(folder, |name| {
        name.strip_suffix(".json").filter(|_| name != REPORT_FILE && name != "subset_names.json")
    })? {
        let mut subsets = IndexMap::new();
        for (subset, path) in files {
            match SubsetResult::load(&path) {
                Ok(result) => drop(subsets.insert(subset, result)),
                Err(error) => loaded.skip(path, &error),
            }
        }
        loaded.add(model, subsets);
    }
    loaded.sort();
    match loaded.models.is_empty() {
        true => {
            Err(LoadReportError::NoResults { path: folder.display().to_string(), skipped: loaded.skipped })
        }
        false => Ok(loaded),
    }
}

/// The baselines of `GENERATIONS/<model>/<subset>_validation.jsonl`, or of one model's folder.
///
/// References come from the generated rows; where a row has none and `data` is given, from the row with the same
/// `example_idx` there. Subsets whose file is bad are skipped by name.
///
/// # Errors
/// If the folder cannot be read or holds no generations.
pub fn baselines_from_generations(
    generations: &Path,
    data: Option<&Path>,
) -> Result<LoadedResults, LoadReportError> {
    let mut loaded = LoadedResults::default();
    for (model, files) in files_by_model(generations, |name| {
        name.split_once(VALIDATION_ENDING)
            .filter(|(_, packed)| ["", ".gz", ".zst"].contains(packed))
            .map(|(subset, _)| subset)
    })? {
        let mut subsets = IndexMap::new();
        for (subset, path) in files {
            match subset_baselines(&path, &subset, data) {
                Ok(result) => drop(subsets.insert(subset, result)),
                Err(error) => loaded.skip(path, error.as_ref()),
            }
        }
        loaded.add(model, subsets);
    }
    loaded.sort();
    match loaded.models.is_empty() {
        true => Err(LoadReportError::NoGenerations {
            path: generations.display().to_string(),
            skipped: loaded.skipped,
        }),
        false => Ok(loaded),
    }
}

impl LoadedResults {
    fn add(&mut self, model: String, subsets: IndexMap<String, SubsetResult>) {
        if !subsets.is_empty() {
            self.models.push(ModelResults { model, subsets });
        }
    }

    /// The published generators by size, others behind by name.
    fn sort(&mut self) {
        self.models.sort_by_key(|model| published::place(&model.model));
    }

    fn skip(&mut self, path: PathBuf, error: &(dyn std::error::Error + 'static)) {
        self.skipped.push(SkippedFile { path, reason: explain_chain(error) });
    }
}

type AnyError = Box<dyn std::error::Error>;

fn subset_baselines(path: &Path, subset: &str, data: Option<&Path>) -> Result<SubsetResult, AnyError> {
    let mut rows = load::<GeneratedRow>(path, BadLinePolicy::Strict)?.rows;
    let lacking = rows.iter().any(|row| row.row.references.is_empty());
    if let Some(file) = data.filter(|_| lacking).and_then(|data| split_file(data, subset, Split::Validation))
    {
        let references: BTreeMap<u64, Vec<String>> = load::<Row>(&file, BadLinePolicy::Strict)?
            .rows
            .into_iter()
            .map(|row| (row.example_idx, row.references))
            .collect();
        for row in rows.iter_mut().filter(|row| row.row.references.is_empty()) {
            if let Some(known) = references.get(&row.row.example_idx) {
                row.row.references.clone_from(known);
            }
        }
    }
    Ok(baselines(&rows)?)
}

type FilesBySubset = BTreeMap<String, PathBuf>;

/// The files of each model that `subset_of` finds a subset's name in: those of the folders below, else the folder's
/// own.
fn files_by_model(
    folder: &Path,
    subset_of: impl Fn(&str) -> Option<&str>,
) -> Result<BTreeMap<String, FilesBySubset>, LoadReportError> {
    let files_in = |folder: &Path| -> Result<(FilesBySubset, Vec<PathBuf>), LoadReportError> {
        let io_error = |source| LoadReportError::Io { path: folder.display().to_string(), source };
        let (mut files, mut folders) = (FilesBySubset::new(), Vec::new());
        for entry in fs::read_dir(folder).map_err(io_error)? {
            let path = entry.map_err(io_error)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(subset) = subset_of(name) {
                files.insert(subset.to_owned(), path);
            }
        }
        Ok((files, folders))
    };
    let name_of = |folder: &Path| {
        let absolute = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        absolute.file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    let (own, folders) = files_in(folder)?;
    let mut models = BTreeMap::new();
    for below in folders {
        let (files, _) = files_in(&below)?;
        if !files.is_empty() {
            models.insert(name_of(&below), files);
        }
    }
    if models.is_empty() && !own.is_empty() {
        models.insert(name_of(folder), own);
    }
    Ok(models)
}
