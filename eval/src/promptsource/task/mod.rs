//! One dataset with its templates: what to ask about each example.

mod discover;

use std::path::{Path, PathBuf};

pub use discover::{FindError, Found, NamedSkip, find};

use super::dataset::{self, Example};
use super::{CompiledTemplate, DrawKey, RenderError, SkippedTemplate};
use crate::rows::{BadLine, ReadError};

/// A template that failed this often and never worked is given up.
const FAILURES_BEFORE_GIVING_UP: u64 = 5;

/// A dataset, its files, and the templates that ask about it.
#[derive(Debug)]
pub struct Task {
    /// As the results table calls it (`ANLI R1`), or its folder if the table does not know it.
    pub name: String,
    /// Folder of templates and of data (`super_glue/cb`).
    pub folder: String,
    /// Files of examples, read one after the other.
    pub files: Vec<PathBuf>,
    /// Templates that compile.
    pub templates: Vec<CompiledTemplate>,
    /// Templates that do not, and entries that are none.
    pub skipped: Vec<SkippedTemplate>,
}

/// One question about one example.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The file that the example is from.
    pub file: &'a Path,
    /// Its line or row there, from 1.
    pub line: u64,
    /// Position of the example within the dataset, from 0, over all its files.
    pub example_idx: u64,
    /// The template.
    pub template: &'a str,
    /// The rendered prompt.
    pub instruction: String,
    /// The right answer; may be empty where the dataset keeps it secret.
    pub target: String,
    /// What to choose from; `None` if the answer is free text.
    pub choices: Option<Vec<String>>,
}

/// What [`Task::ask`] meets.
#[derive(Debug)]
pub enum Event<'a> {
    /// A question.
    Asked(Asked<'a>),
    /// A template has nothing to ask about an example: its rendering does not split into instruction and target.
    NothingToAsk,
    /// A row that cannot be read, or a template that cannot be rendered on it.
    Bad(BadLine),
    /// A template failed on every example so far and is left out from here on.
    GivenUp(SkippedTemplate),
}

/// How a task is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct AskOptions {
    /// Only this many examples, from the first.
    pub limit: Option<u64>,
    /// Seed of the draws within templates.
    pub seed: u64,
}

/// How often a template worked and failed.
#[derive(Clone, Copy, Default)]
struct Tally {
    worked: u64,
    failed: u64,
}

impl Tally {
    fn is_given_up(self) -> bool {
        self.worked == 0 && self.failed >= FAILURES_BEFORE_GIVING_UP
    }
}

impl Task {
    /// Renders every example under every template, example by example, in file order. Returns the number of examples.
    ///
    /// # Errors
    /// The first error of `sink`, which may be how it ends the walk.
    pub fn ask<E>(
        &self,
        options: AskOptions,
        mut sink: impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut tallies = vec![Tally::default(); self.templates.len()];
        let mut example_idx = 0;
        for file in &self.files {
            for row in dataset::read(file, &self.folder) {
                if options.limit.is_some_and(|limit| example_idx >= limit) {
                    return Ok(example_idx);
                }
                match row {
                    Ok((line, example)) => {
                        let place = Place { file, line, example_idx };
                        self.ask_one(options, &example, place, &mut tallies, &mut sink)?;
                    }
                    Err(ReadError::Bad(bad)) => sink(Event::Bad(bad))?,
                    Err(ReadError::Io { source_name, source }) => {
                        let reason = format!("the rest cannot be read: {source}");
                        sink(Event::Bad(BadLine { source_name, line: 0, reason }))?;
                    }
                }
                // A bad row keeps its place, so that the others keep theirs when it is mended.
                example_idx += 1;
            }
        }
        Ok(example_idx)
    }

    fn ask_one<E>(
        &self,
        options: AskOptions,
        example: &Example,
        place: Place<'_>,
        tallies: &mut [Tally],
        sink: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for (compiled, tally) in self.templates.iter().zip(tallies) {
            if tally.is_given_up() {
                continue;
            }
            let key = DrawKey { seed: options.seed, dataset: &self.name, example_idx: place.example_idx };
            match compiled.apply(example, key) {
                Ok(rendered) => {
                    tally.worked += 1;
                    sink(place.event(&compiled.template().name, rendered))?;
                }
                Err(error) => {
                    tally.failed += 1;
                    sink(Event::Bad(place.bad(&compiled.template().name, &error)))?;
                    if tally.is_given_up() {
                        sink(Event::GivenUp(SkippedTemplate {
                            template: compiled.template().name.clone(),
                            reason: format!("it failed on each of its first {} examples", tally.failed),
                        }))?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a Path,
    line: u64,
    example_idx: u64,
}

impl<'a> Place<'a> {
    fn event(self, template: &'a str, rendered: super::Rendered) -> Event<'a> {
        let mut parts = rendered.parts.into_iter();
        let (Some(instruction), Some(target)) = (parts.next(), parts.next()) else {
            return Event::NothingToAsk;
        };
        if instruction.is_empty() {
            return Event::NothingToAsk;
        }
        Event::Asked(Asked {
            file: self.file,
            line: self.line,
            example_idx: self.example_idx,
            template,
            instruction,
            target,
            choices: rendered.choices,
        })
    }

    fn bad(self, template: &str, error: &RenderError) -> BadLine {
        BadLine {
            source_name: self.file.display().to_string(),
            line: self.line,
            reason: format!("template `{template}`: {error}"),
        }
    }
}

impl Asked<'_> {
    /// A complaint about this question.
    pub fn bad(&self, reason: impl std::fmt::Display) -> BadLine {
        BadLine {
            source_name: self.file.display().to_string(),
            line: self.line,
            reason: format!("template `{}`: {reason}", self.template),
        }
    }
}
