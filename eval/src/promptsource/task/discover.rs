//! Which tasks a folder of templates and a folder of datasets make together.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use super::Task;
use crate::promptsource::{
    CompiledTemplate, SkippedTemplate, TemplateFile, TemplateFileError, Variant, dataset, published,
};

/// What a folder of templates is called.
const TEMPLATE_FILE: &str = "templates.yaml";
/// Datasets lie at most this deep (`super_glue/wsc.fixed`).
const MAX_DEPTH: usize = 3;

/// The eleven tasks: name in the results table, folder, start of the names of its files.
///
/// Source: the table of the reference implementation's README, and the folders of the promptsource repository.
const TASKS: [(&str, &str, &str); 11] = [
    ("ANLI R1", "anli", "r1"),
    ("ANLI R2", "anli", "r2"),
    ("ANLI R3", "anli", "r3"),
    ("CB", "super_glue/cb", ""),
    ("RTE", "super_glue/rte", ""),
    ("StoryCloze", "story_cloze/2016", ""),
    ("WSC", "super_glue/wsc.fixed", ""),
    ("WiC", "super_glue/wic", ""),
    ("Winogrande", "winogrande/winogrande_xl", ""),
    ("WinoGender", "super_glue/axg", ""),
    ("Crows-Pairs", "crows_pairs", ""),
];

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Tasks with templates and files, in the order of the results table, others behind by folder.
    pub tasks: Vec<Task>,
    /// Folders that were left out.
    pub skipped: Vec<NamedSkip>,
}

/// A folder that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSkip {
    /// The folder of templates or data.
    pub name: String,
    /// Why.
    pub reason: String,
    /// Nothing is there to read: worth a word, no fault.
    pub is_absent: bool,
}

/// Why there are no tasks.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The file system refused.
    #[error("failed to read {path}")]
    Io {
        /// The folder.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The folder of templates has none.
    #[error("{path} holds no templates; expected <folder>/templates.yaml below it")]
    NoTemplates {
        /// The folder.
        path: String,
    },
    /// A dataset was asked for that is not there.
    #[error("there is no dataset `{name}` with both templates and files; there are: {known}")]
    UnknownDataset {
        /// As asked for.
        name: String,
        /// Those that are there.
        known: String,
    },
    /// No folder has both templates and files.
    #[error(
        "no folder below {path} has both templates and files (.jsonl, .csv or .parquet){}",
        first(skipped)
    )]
    NoData {
        /// The folder of datasets.
        path: String,
        /// Folders that came close.
        skipped: Vec<NamedSkip>,
    },
}

fn first(skipped: &[NamedSkip]) -> String {
    skipped.first().map(|skip| format!("; {}: {}", skip.name, skip.reason)).unwrap_or_default()
}

/// Pairs `TEMPLATES/<folder>/templates.yaml` with the files of `DATASETS/<folder>`.
///
/// `wanted`: names or folders of datasets; empty for all. Templates that do not compile are left out by name.
///
/// # Errors
/// If a folder cannot be read, or nothing (or not everything that is wanted) is there.
pub fn find(
    templates: &Path,
    datasets: &Path,
    wanted: &[String],
    variant: Variant,
    original_tasks_only: bool,
) -> Result<Found, FindError> {
    let mut folders = Vec::new();
    template_folders(templates, "", &mut folders)
        .map_err(|source| FindError::Io { path: templates.display().to_string(), source })?;
    if folders.is_empty() {
        return Err(FindError::NoTemplates { path: templates.display().to_string() });
    }
    folders.sort();
    if let Err(source) = std::fs::read_dir(datasets) {
        return Err(FindError::Io { path: datasets.display().to_string(), source });
    }
    let mut found = Found::default();
    let is_wanted = |name: &str, folder: &str| {
        wanted.is_empty() || wanted.iter().any(|w| is_same(w, name) || w == folder)
    };
    let mut known = Vec::new();
    for folder in &folders {
        let data = datasets.join(folder);
        let named: Vec<(&str, &str)> = match TASKS.iter().any(|(_, of, _)| of == folder) {
            true => TASKS
                .iter()
                .filter(|(_, of, _)| of == folder)
                .map(|(name, _, start)| (*name, *start))
                .collect(),
            false => vec![(folder.as_str(), "")],
        };
        if !data.is_dir() {
            continue;
        }
        let files = dataset::files_in(&data)
            .map_err(|source| FindError::Io { path: data.display().to_string(), source })?;
        for (name, start) in named {
            let files: Vec<_> = files
                .iter()
                .filter(|file| {
                    file.file_name().and_then(|f| f.to_str()).is_some_and(|f| f.starts_with(start))
                })
                .cloned()
                .collect();
            if files.is_empty() {
                if is_wanted(name, folder) {
                    let expected = if start.is_empty() { String::new() } else { format!(" named {start}*") };
                    found.skip(
                        name,
                        format!("its folder has no .jsonl, .csv or .parquet file{expected}"),
                        true,
                    );
                }
                continue;
            }
            known.push((name.to_owned(), folder.clone()));
            if is_wanted(name, folder) {
                match load(&templates.join(folder).join(TEMPLATE_FILE), variant, original_tasks_only) {
                    Ok((templates, skipped)) => found.tasks.push(Task {
                        name: name.to_owned(),
                        folder: folder.clone(),
                        files,
                        templates,
                        skipped,
                    }),
                    Err(error) => found.skip(folder, crate::rows::explain_chain(&error), false),
                }
            }
        }
    }
    if let Some(name) =
        wanted.iter().find(|w| !known.iter().any(|(name, folder)| is_same(w, name) || w == &folder))
    {
        let known: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
        return Err(FindError::UnknownDataset { name: name.clone(), known: known.join(", ") });
    }
    if found.tasks.is_empty() {
        return Err(FindError::NoData { path: datasets.display().to_string(), skipped: found.skipped });
    }
    found.tasks.sort_by_key(|task| published::place(&task.name));
    Ok(found)
}

impl Found {
    fn skip(&mut self, name: &str, reason: String, is_absent: bool) {
        self.skipped.push(NamedSkip { name: name.to_owned(), reason, is_absent });
    }
}

/// Names are typed by people.
fn is_same(wanted: &str, name: &str) -> bool {
    wanted.eq_ignore_ascii_case(name)
}

fn load(
    file: &Path,
    variant: Variant,
    original_tasks_only: bool,
) -> Result<(Vec<CompiledTemplate>, Vec<SkippedTemplate>), TemplateFileError> {
    let TemplateFile { mut templates, mut skipped, .. } = TemplateFile::load(file)?;
    if original_tasks_only && templates.iter().any(|template| template.original_task == Some(true)) {
        templates.retain(|template| template.original_task == Some(true));
    }
    let mut names = HashSet::new();
    let mut compiled = Vec::new();
    for template in templates {
        let name = template.name.clone();
        if !names.insert(name.clone()) {
            skipped.push(SkippedTemplate { template: name, reason: "another template has its name".into() });
            continue;
        }
        match CompiledTemplate::new(template, variant) {
            Ok(template) => compiled.push(template),
            Err(error) => skipped.push(SkippedTemplate { template: name, reason: error.to_string() }),
        }
    }
    Ok((compiled, skipped))
}

fn template_folders(root: &Path, below: &str, folders: &mut Vec<String>) -> io::Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name == TEMPLATE_FILE && !below.is_empty() {
            folders.push(below.to_owned());
        } else if entry.path().is_dir() && !name.starts_with('.') {
            let folder = if below.is_empty() { name } else { format!("{below}/{name}") };
            if folder.matches('/').count() < MAX_DEPTH {
                template_folders(root, &folder, folders)?;
            }
        }
    }
    Ok(())
}
