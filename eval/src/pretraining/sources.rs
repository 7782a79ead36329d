//! Labelled pairs and prompts from the sources of a recipe.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;

use super::recipe::{DatasetEntry, Recipe, RowsEntry};
use crate::keyed::Keyed;
use crate::promptsource::{AskOptions, Asked, Event, FindError, Variant, find_tasks};
use crate::rows::{BadLine, JsonLines, Numbered, ReadError};

/// Free-text answers are mismatched within this many questions of one template that come after each other.
const WINDOW: usize = 1024;

/// What a source gives.
pub(super) enum Given<'a> {
    /// A labelled pair.
    Pair { instruction: &'a str, response: &'a str, label: f64, kind: Kind },
    /// A question for the generators.
    Prompt { instruction: &'a str, reference: &'a str },
    /// Something that cannot be used.
    Bad(BadLine),
}

/// Where a label comes from; of equal pairs, the first kind stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Right,
    Labelled,
    WrongChoice,
    Mismatched,
}

/// Renders a dataset and labels what comes out.
///
/// # Errors
/// If the dataset or its templates are not there, or `sink` fails.
pub(super) fn from_dataset<E: From<FindError>>(
    recipe: &Recipe,
    entry: &DatasetEntry,
    mut sink: impl FnMut(Given<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let folder = |own: &Option<std::path::PathBuf>, shared: &Option<std::path::PathBuf>| {
        recipe.resolve(own.as_deref().or(shared.as_deref()).unwrap_or(Path::new("")))
    };
    let templates = folder(&entry.templates, &recipe.templates);
    let datasets = folder(&entry.datasets, &recipe.datasets);
    let wanted = [entry.folder.clone()];
    let found = find_tasks(&templates, &datasets, &wanted, Variant::Truncating, entry.original_task)?;
    for task in found.tasks {
        for skipped in &task.skipped {
            sink(Given::Bad(BadLine {
                source_name: task.folder.clone(),
                line: 0,
                reason: format!("template `{}` is left out: {}", skipped.template, skipped.reason),
            }))?;
        }
        let mut windows: HashMap<String, Window> = HashMap::new();
        let asking = AskOptions { limit: entry.limit, seed: recipe.seed };
        task.ask(asking, |event| match event {
            Event::NothingToAsk => Ok(()),
            Event::Bad(bad) => sink(Given::Bad(bad)),
            Event::GivenUp(skipped) => sink(Given::Bad(BadLine {
                source_name: task.folder.clone(),
                line: 0,
                reason: format!("template `{}` is left out: {}", skipped.template, skipped.reason),
            })),
            Event::Asked(asked) => label(entry, asked, &mut sink, |asked, sink| {
                let template = asked.template.to_owned();
                let window = windows
                    .entry(template)
                    .or_insert_with_key(|template| Window::new(recipe.seed, &task.name, template));
                window.push(asked, entry.mismatched, sink)
            }),
        })?;
        let mut windows: Vec<_> = windows.into_iter().collect();
        windows.sort_by(|a, b| a.0.cmp(&b.0));
        for (_, mut window) in windows {
            window.flush(entry.mismatched, &mut sink)?;
        }
    }
    Ok(())
}

/// The right pair, the wrong choices and the prompt of one question; free text goes to its window.
fn label<E, S: FnMut(Given<'_>) -> Result<(), E>>(
    entry: &DatasetEntry,
    asked: Asked<'_>,
    sink: &mut S,
    mismatch: impl FnOnce(Asked<'_>, &mut S) -> Result<(), E>,
) -> Result<(), E> {
    if asked.target.is_empty() {
        return Ok(());
    }
    let (instruction, target) = (asked.instruction.as_str(), asked.target.as_str());
    sink(Given::Pair { instruction, response: target, label: 1.0, kind: Kind::Right })?;
    if entry.prompts > 0 {
        sink(Given::Prompt { instruction, reference: target })?;
    }
    match &asked.choices {
        Some(choices) => {
            for wrong in choices.iter().filter(|choice| **choice != asked.target) {
                sink(Given::Pair { instruction, response: wrong, label: 0.0, kind: Kind::WrongChoice })?;
            }
            Ok(())
        }
        None if entry.mismatched > 0 => mismatch(asked, sink),
        None => Ok(()),
    }
}

/// Questions of one template whose answers are drawn for each other.
struct Window {
    questions: Vec<(String, String)>,
    draws: Keyed,
}

impl Window {
    fn new(seed: u64, dataset: &str, template: &str) -> Self {
        let draws = Keyed::new(seed, &format!("pretraining/mismatched/{dataset}/{template}"));
        Self { questions: Vec::new(), draws }
    }

    fn push<E>(
        &mut self,
        asked: Asked<'_>,
        draws_each: u32,
        sink: &mut impl FnMut(Given<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.questions.push((asked.instruction, asked.target));
        if self.questions.len() >= WINDOW { self.flush(draws_each, sink) } else { Ok(()) }
    }

    fn flush<E>(
        &mut self,
        draws_each: u32,
        sink: &mut impl FnMut(Given<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (instruction, target) in &self.questions {
            for _ in 0..draws_each {
                let (_, response) = &self.questions[self.draws.below(self.questions.len())];
                if response != target {
                    sink(Given::Pair { instruction, response, label: 0.0, kind: Kind::Mismatched })?;
                }
            }
        }
        self.questions.clear();
        Ok(())
    }
}

#[derive(Deserialize)]
struct LabelledRow {
    instruction: String,
    response: String,
    label: f64,
}

/// Labelled rows of a file.
///
/// # Errors
/// If `sink` fails; a file that cannot be read is told as bad.
pub(super) fn from_rows<E>(
    recipe: &Recipe,
    entry: &RowsEntry,
    mut sink: impl FnMut(Given<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let path = recipe.resolve(&entry.file);
    let name = path.display().to_string();
    let unreadable = |error: ReadError| match error {
        ReadError::Bad(bad) => bad,
        ReadError::Io { source_name, source } => {
            BadLine { source_name, line: 0, reason: format!("the rest cannot be read: {source}") }
        }
    };
    let lines = match JsonLines::<LabelledRow>::open(&path) {
        Ok(lines) => lines,
        Err(error) => return sink(Given::Bad(unreadable(error))),
    };
    for row in lines {
        match row {
            Ok(Numbered { value: LabelledRow { instruction, response, label }, .. })
                if (0.0..=1.0).contains(&label) =>
            {
                sink(Given::Pair {
                    instruction: &instruction,
                    response: &response,
                    label,
                    kind: Kind::Labelled,
                })?;
            }
            Ok(Numbered { line, value }) => {
                let reason = format!("label {} is not in [0, 1]", value.label);
                sink(Given::Bad(BadLine { source_name: name.clone(), line, reason }))?;
            }
            Err(error) => sink(Given::Bad(unreadable(error)))?,
        }
    }
    Ok(())
}
