//! The tasks of an import while their files come in, in whatever order the sources have them.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;

use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::source::{Member, Visitor};
use super::split::places;
use super::spool::{Place, Spool};
use super::task::{Frame, TaskError, TaskFile, read_task};
use super::{ImportError, SkippedTask, Split};
use crate::rows::WriteError;

/// What the sources hold, as far as they were read.
pub(super) struct Gathered<'a> {
    /// The subsets to read; empty for all.
    wanted: &'a BTreeSet<&'a str>,
    pub(super) spool: Spool,
    /// Every task of the sources, wanted or not.
    pub(super) met: BTreeSet<String>,
    pub(super) tasks: IndexMap<String, GatheredTask>,
    /// The parts of each task, in the order in which they are joined.
    pub(super) metadata: HashMap<String, Vec<String>>,
    pub(super) skipped: Vec<SkippedTask>,
}

/// One task.
#[derive(Default)]
pub(super) struct GatheredTask {
    /// Its own `task.json`.
    own: Option<TaskFile>,
    /// Those below it, by the name of their folder.
    parts: Vec<(String, TaskFile)>,
    /// One of them could not be read: what is left would not be the subset.
    broken: Option<String>,
}

/// A part of a task, ready to be split.
pub(super) struct Part {
    pub(super) frame: Frame,
    pub(super) examples: Vec<Place>,
}

impl<'a> Gathered<'a> {
    pub(super) fn new(wanted: &'a BTreeSet<&'a str>, spool: Spool) -> Self {
        Self {
            wanted,
            spool,
            met: BTreeSet::new(),
            tasks: IndexMap::new(),
            metadata: HashMap::new(),
            skipped: Vec::new(),
        }
    }
}

impl Visitor for Gathered<'_> {
    fn wants(&mut self, member: &Member) -> bool {
        match member {
            Member::Metadata => true,
            Member::Task { task, .. } => {
                if !self.met.contains(task) {
                    self.met.insert(task.clone());
                }
                self.wanted.is_empty() || self.wanted.contains(task.as_str())
            }
        }
    }

    fn read(&mut self, member: Member, path: &str, reader: &mut dyn Read) -> Result<(), ImportError> {
        let read_error = |source| ImportError::Read { path: path.into(), source };
        let (task, part) = match member {
            Member::Task { task, part } => (task, part),
            Member::Metadata => {
                match read_metadata(reader) {
                    Ok(metadata) => self.metadata = metadata,
                    Err(error) if error.is_io() => return Err(read_error(error.into())),
                    Err(error) => {
                        let reason = format!("not JSON, so parts are joined by name: {error}");
                        self.skipped.push(SkippedTask { task: path.into(), reason });
                    }
                }
                return Ok(());
            }
        };
        let file = read_task(reader, &mut self.spool);
        let gathered = self.tasks.entry(task).or_default();
        match (file, part) {
            (Ok(file), None) => gathered.own = Some(file),
            (Ok(file), Some(part)) => gathered.parts.push((part, file)),
            (Err(TaskError::Source(source)), _) => return Err(read_error(source)),
            (Err(TaskError::Spool(source)), _) => {
                return Err(ImportError::Write(WriteError::Io { path: "the temporary file".into(), source }));
            }
            (Err(error), _) => gathered.broken = Some(format!("{path} is {error}")),
        }
        Ok(())
    }
}

impl GatheredTask {
    /// The parts in the order in which their rows are joined, or why the task gives no rows.
    ///
    /// `order`: the metadata's names of the parts.
    pub(super) fn into_parts(self, task: &str, order: &[String]) -> Result<Vec<Part>, String> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let own = self.own.unwrap_or_default();
        let mut files = self.parts;
        if own.examples.is_some() {
            files = vec![(task.to_owned(), own)];
        } else {
            let parent = own.name.as_deref().unwrap_or(task);
            let order: HashMap<String, usize> =
                order.iter().enumerate().map(|(at, name)| (sanitized(name), at)).collect();
            // Parts that the metadata does not know come last, by folder.
            files.sort_by_cached_key(|(folder, file)| {
                let name = file.name.as_deref().unwrap_or(folder);
                let place =
                    [name, folder].iter().find_map(|name| order.get(&sanitized(&format!("{parent}:{name}"))));
                (place.copied().unwrap_or(usize::MAX), folder.clone())
            });
        }
        if files.is_empty() {
            return Err("its task.json has no `examples`, and no task.json below it has".into());
        }

        let mut generative = false;
        let mut parts = Vec::with_capacity(files.len());
        for (folder, file) in files {
            let Some(examples) = file.examples else {
                return Err(format!("the task.json of its part `{folder}` has no `examples`"));
            };
            if examples.malformed > 0 {
                let n = examples.malformed;
                return Err(format!("{n} examples of `{folder}` have no input or no answer"));
            }
            generative |= examples.generative;
            parts.push(Part { frame: file.frame, examples: examples.places });
        }
        if !generative {
            return Err("multiple choice, not generative".into());
        }
        let too_small = |part: &&Part| places(part.examples.len(), parts.len(), Split::Train).is_none();
        if let Some(small) = parts.iter().find(too_small) {
            let n = small.examples.len();
            return Err(format!("{n} examples are too few for a train and a validation split"));
        }
        Ok(parts)
    }
}

/// Names of parts differ between folders and metadata in characters that some file systems do not like.
fn sanitized(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '_') { c } else { '_' })
        .collect()
}

/// The parts of each task; entries that describe no task are passed over.
fn read_metadata(reader: &mut dyn Read) -> serde_json::Result<HashMap<String, Vec<String>>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Entry {
        Task { subtask_names: Vec<String> },
        Other(IgnoredAny),
    }
    let entries: HashMap<String, Entry> = serde_json::from_reader(std::io::BufReader::new(reader))?;
    Ok(entries
        .into_iter()
        .filter_map(|(task, entry)| match entry {
            Entry::Task { subtask_names } => Some((task, subtask_names)),
            Entry::Other(_) => None,
        })
        .collect())
}
