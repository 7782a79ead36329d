//! The benchmark's sources: an archive, read once from front to back, or a folder.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use super::ImportError;
use super::archive;

/// The folder of the tasks within BIG-bench's sources.
const TASKS_FOLDER: &str = "benchmark_tasks";
const METADATA_FILE: &str = "task_metadata.json";
const TASK_FILE: &str = "task.json";

/// A file that an import may want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Member {
    /// `task_metadata.json`.
    Metadata,
    /// `<task>/task.json`, or `<task>/<part>/task.json`.
    Task { task: String, part: Option<String> },
}

impl Member {
    /// Judges a path below the folder of the tasks.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let names: Option<Vec<&str>> = path
            .components()
            .map(|component| match component {
                Component::Normal(name) => name.to_str(),
                _ => None,
            })
            .collect();
        match names?.as_slice() {
            [METADATA_FILE] => Some(Self::Metadata),
            [task, TASK_FILE] => Some(Self::Task { task: (*task).into(), part: None }),
            [task, part, TASK_FILE] => Some(Self::Task { task: (*task).into(), part: Some((*part).into()) }),
            _ => None,
        }
    }

    /// The same for a path from the top of BIG-bench's sources.
    pub(super) fn of_bigbench(path: &Path) -> Option<Self> {
        let mut components = path.components();
        components.find(|component| component.as_os_str() == TASKS_FOLDER)?;
        Self::of(components.as_path())
    }
}

/// Who reads the sources.
pub(super) trait Visitor {
    /// Whether to read the member.
    fn wants(&mut self, member: &Member) -> bool;

    /// Reads the member; `path` is what complaints call it.
    fn read(&mut self, member: Member, path: &str, reader: &mut dyn Read) -> Result<(), ImportError>;
}

/// Where tasks come from.
#[derive(Debug)]
pub(super) enum Source {
    /// A (gzipped) tar archive of BIG-bench's sources.
    Archive(PathBuf),
    /// BIG-bench's folder of tasks.
    Checkout(PathBuf),
    /// Any other folder of tasks.
    Folder(PathBuf),
}

impl Source {
    /// Finds out what `path` is.
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        let read_error = |source| ImportError::Read { path: path.display().to_string(), source };
        if !fs::metadata(path).map_err(read_error)?.is_dir() {
            return Ok(Self::Archive(path.into()));
        }
        let mut candidates =
            vec![path.to_owned(), path.join(TASKS_FOLDER), path.join("bigbench").join(TASKS_FOLDER)];
        for entry in fs::read_dir(path).map_err(read_error)? {
            candidates.push(entry.map_err(read_error)?.path().join("bigbench").join(TASKS_FOLDER));
        }
        let is_tasks_folder = |folder: &PathBuf| {
            folder.is_dir() && (folder.ends_with(TASKS_FOLDER) || folder.join(METADATA_FILE).is_file())
        };
        Ok(match candidates.into_iter().find(is_tasks_folder) {
            Some(folder) => Self::Checkout(folder),
            None => Self::Folder(path.into()),
        })
    }

    /// Whether these are BIG-bench's own sources.
    pub(super) fn is_bigbench(&self) -> bool {
        !matches!(self, Self::Folder(_))
    }

    /// Shows every member, in the order in which it comes.
    pub(super) fn visit(&self, visitor: &mut dyn Visitor) -> Result<(), ImportError> {
        match self {
            Self::Archive(path) => archive::visit(path, visitor),
            Self::Checkout(folder) | Self::Folder(folder) => visit_folder(folder, visitor),
        }
    }
}

/// Every `task.json` at most two folders deep, by name; links are not followed.
fn visit_folder(root: &Path, visitor: &mut dyn Visitor) -> Result<(), ImportError> {
    let mut paths = Vec::new();
    collect_files(root, 2, &mut paths)
        .map_err(|source| ImportError::Read { path: root.display().to_string(), source })?;
    for path in paths {
        let below = path.strip_prefix(root).expect("found below the root");
        let Some(member) = Member::of(below).filter(|member| visitor.wants(member)) else { continue };
        let mut file = File::open(&path)
            .map_err(|source| ImportError::Read { path: path.display().to_string(), source })?;
        visitor.read(member, &path.display().to_string(), &mut file)?;
    }
    Ok(())
}

fn collect_files(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_file() && [TASK_FILE, METADATA_FILE].iter().any(|name| entry.file_name() == *name) {
            paths.push(entry.path());
        } else if kind.is_dir() && depth > 0 {
            collect_files(&entry.path(), depth - 1, paths)?;
        }
    }
    Ok(())
}
