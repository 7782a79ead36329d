//! The import: from the benchmark's sources to a data folder.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::folder::{SUBSET_NAMES_FILE, nearest, read_names};
use super::gathered::{Gathered, Part};
use super::mersenne::python_shuffle;
use super::source::Source;
use super::split::{SEED, places};
use super::spool::Spool;
use super::{GENERATIVE_SUBSETS, Split, split_file};
use crate::rows::{JsonStyle, Row, WriteError, persist, temporary_beside, write_json_line};

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
    /// The train file.
    pub train: ImportedFile,
    /// The validation file.
    pub validation: ImportedFile,
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
/// `<task>/task.json`) into the data folder `output`. `progress` hears the name of each subset before it is written.
///
/// Nothing is written before the whole source was read. Subsets that `output` already has stay, and stay listed.
///
/// # Errors
/// See [`ImportError`]; single bad or absent tasks are no errors, the report names them.
pub fn import(
    source: &Path,
    output: &Path,
    options: &ImportOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<ImportReport, ImportError> {
    let tasks = Source::open(source)?;
    let wanted: BTreeSet<&str> = if options.subsets.is_empty() && tasks.is_bigbench() {
        GENERATIVE_SUBSETS.into()
    } else {
        options.subsets.iter().map(String::as_str).collect()
    };
    let write_error = |source| ImportError::Write(WriteError::Io { path: output.to_owned(), source });
    std::fs::create_dir_all(output).map_err(write_error)?;
    let mut gathered = Gathered::new(&wanted, Spool::new(output).map_err(write_error)?);
    tasks.visit(&mut gathered)?;
    if gathered.met.is_empty() {
        return Err(ImportError::NoTasks { path: source.display().to_string() });
    }

    let mut report = ImportReport::default();
    for subset in &wanted {
        if gathered.met.contains(*subset) {
            continue;
        }
        if !GENERATIVE_SUBSETS.contains(subset) {
            let known = gathered.met.iter().map(String::as_str).chain(GENERATIVE_SUBSETS);
            return Err(ImportError::UnknownSubset {
                subset: (*subset).into(),
                suggestion: nearest(subset, known),
            });
        }
        report.absent.push((*subset).into());
    }
    let Gathered { mut spool, tasks, metadata, mut skipped, .. } = gathered;
    for (task, gathered) in tasks {
        let order = metadata.get(&task).map_or(&[][..], Vec::as_slice);
        match gathered.into_parts(&task, order) {
            Ok(parts) => {
                progress(&task);
                report.subsets.push(write_subset(output, &task, &parts, &mut spool, options.row_cap)?);
            }
            Err(reason) => skipped.push(SkippedTask { task, reason }),
        }
    }
    report.subsets.sort_by(|a, b| a.subset.cmp(&b.subset));
    report.skipped = skipped;
    write_names(output, &report.subsets).map_err(write_error)?;
    Ok(report)
}

/// Writes the two files of a subset.
fn write_subset(
    output: &Path,
    subset: &str,
    parts: &[Part],
    spool: &mut Spool,
    row_cap: Option<usize>,
) -> Result<ImportedSubset, ImportError> {
    let mut write = |split: Split| {
        let path = output.join(format!("{subset}_{split}.jsonl"));
        write_split(&path, subset, split, parts, spool, row_cap.unwrap_or(usize::MAX))
            .map_err(|source| ImportError::Write(WriteError::Io { path, source }))
    };
    Ok(ImportedSubset {
        subset: subset.into(),
        train: write(Split::Train)?,
        validation: write(Split::Validation)?,
    })
}

fn write_split(
    path: &Path,
    subset: &str,
    split: Split,
    parts: &[Part],
    spool: &mut Spool,
    row_cap: usize,
) -> io::Result<ImportedFile> {
    let mut out = BufWriter::with_capacity(256 * 1024, Hashed::new(temporary_beside(path)?));
    let mut rows = 0;
    for part in parts {
        let examples = &part.examples;
        let order = python_shuffle(SEED, examples.len());
        let places =
            places(examples.len(), parts.len(), split).expect("checked when the parts were put together");
        for &at in order[places].iter().take(row_cap - rows) {
            let (instruction, references) = part.frame.apply(&spool.get(examples[at])?);
            let row = Row {
                dataset: subset.into(),
                example_idx: rows as u64,
                instruction,
                references,
                ..Row::default()
            };
            write_json_line(&mut out, &row, JsonStyle::Python)?;
            rows += 1;
        }
    }
    let Hashed { inner, hash } = out.into_inner().map_err(|error| error.into_error())?;
    persist(inner, path)?;
    Ok(ImportedFile { path: path.into(), rows: rows as u64, sha256: hex::encode(hash.finalize()) })
}

/// Writes `subset_names.json` with the imported subsets and those that the folder already had.
fn write_names(output: &Path, imported: &[ImportedSubset]) -> io::Result<()> {
    let path = output.join(SUBSET_NAMES_FILE);
    // A list that cannot be read is made anew.
    let mut names: BTreeSet<String> = read_names(&path).unwrap_or_default().into_iter().collect();
    names.retain(|name| Split::ALL.iter().all(|split| split_file(output, name, *split).is_some()));
    names.extend(imported.iter().map(|subset| subset.subset.clone()));
    let mut file = temporary_beside(&path)?;
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    names.serialize(&mut serde_json::Serializer::with_formatter(&mut file, formatter))?;
    persist(file, &path)
}

/// A writer that hashes what passes.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new() }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
