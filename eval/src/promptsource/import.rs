//! Test rows from templates and datasets: a row for each answer choice of each example under each template.

use std::path::Path;

use super::task::{self, AskOptions, Asked, Event, FindError, NamedSkip, Task};
use super::{PromptRow, SkippedTemplate, Variant};
use crate::rows::{BadLine, JsonLinesWriter, JsonStyle, WriteError};

/// Templates that nest values deeply are taken apart by recursion; bounded work fits into this.
const STACK_BYTES: usize = 512 << 20;

/// What to import, and how.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Names (`ANLI R1`) or folders (`super_glue/cb`) of datasets; empty for all.
    pub datasets: Vec<String>,
    /// Only this many examples of each dataset, from the first.
    pub limit: Option<u64>,
    /// Whether long texts are cut.
    pub variant: Variant,
    /// Of datasets with templates for their original task, only those templates.
    pub original_tasks_only: bool,
    /// Seed of the draws within templates.
    pub seed: u64,
    /// Stop at the first bad row.
    pub strict: bool,
}

/// What an import came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportReport {
    /// In the order of the results table.
    pub datasets: Vec<ImportedDataset>,
    /// Datasets that were left out.
    pub skipped: Vec<NamedSkip>,
    /// Rows written.
    pub rows: u64,
}

/// What one dataset came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportedDataset {
    /// As in the rows.
    pub dataset_name: String,
    /// Examples read.
    pub examples: u64,
    /// Templates that gave rows.
    pub templates: u64,
    /// Rows written.
    pub rows: u64,
    /// Renderings left out: the template had nothing to ask, or the dataset does not give the answer away.
    pub without_answer: u64,
    /// Rows of files that cannot be read, and renderings that failed.
    pub bad: u64,
    /// Templates left out, those without answer choices not counted.
    pub skipped: Vec<SkippedTemplate>,
}

impl ImportReport {
    /// Rows and renderings that were bad, and datasets that could not be used or gave nothing.
    pub fn bad(&self) -> u64 {
        let faults = self.skipped.iter().filter(|skip| !skip.is_absent).count();
        let empty = self.datasets.iter().filter(|dataset| dataset.rows == 0 && dataset.bad == 0).count();
        self.datasets.iter().map(|dataset| dataset.bad).sum::<u64>() + (faults + empty) as u64
    }
}

/// What is told while an import runs.
#[derive(Debug)]
pub enum Note<'a> {
    /// A dataset is done.
    Done(&'a ImportedDataset),
    /// A bad row or rendering.
    Bad(BadLine),
    /// A template is left out of a dataset.
    Skipped {
        /// The dataset.
        dataset: &'a str,
        /// The template and the reason.
        template: &'a SkippedTemplate,
    },
}

/// Why an import ended early; nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Nothing to import.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The output could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The first bad row, where the import is strict.
    #[error("{0}")]
    Bad(BadLine),
}

/// Renders `DATASETS/<folder>/*` through `TEMPLATES/<folder>/templates.yaml` into `output`
/// (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`).
///
/// Templates without answer choices give no rows. The right choice is the one whose text is the rendered target; where
/// the target is empty (the template's condition is not met, or the split has no labels), there are no rows.
///
/// # Errors
/// See [`ImportError`]. Bad rows are told and counted, unless `options.strict`.
pub fn import(
    templates: &Path,
    datasets: &Path,
    output: &Path,
    options: &ImportOptions,
    tell: &mut (dyn FnMut(Note<'_>) + Send),
) -> Result<ImportReport, ImportError> {
    with_deep_stack(|| {
        let found =
            task::find(templates, datasets, &options.datasets, options.variant, options.original_tasks_only)?;
        let mut report = ImportReport { skipped: found.skipped, ..ImportReport::default() };
        let mut writer = JsonLinesWriter::create(output, JsonStyle::Python)?;
        for mut task in found.tasks {
            let done = import_task(&mut task, options, &mut writer, tell)?;
            tell(Note::Done(&done));
            report.datasets.push(done);
        }
        report.rows = writer.finish()?;
        Ok(report)
    })
}

/// Runs `work` where recursion over what a template may build does not overflow.
pub(crate) fn with_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("promptsource".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .expect("a thread can be started");
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn import_task(
    task: &mut Task,
    options: &ImportOptions,
    writer: &mut JsonLinesWriter,
    tell: &mut (dyn FnMut(Note<'_>) + Send),
) -> Result<ImportedDataset, ImportError> {
    task.templates.retain(|compiled| compiled.template().answer_choices.is_some());
    let mut done = ImportedDataset {
        dataset_name: task.name.clone(),
        templates: task.templates.len() as u64,
        skipped: task.skipped.clone(),
        ..ImportedDataset::default()
    };
    for template in &done.skipped {
        tell(Note::Skipped { dataset: &task.name, template });
    }
    let asking = AskOptions { limit: options.limit, seed: options.seed };
    let examples = task.ask(asking, |event| {
        let bad = match event {
            Event::NothingToAsk => {
                done.without_answer += 1;
                return Ok(());
            }
            Event::Asked(asked) => match write_rows(task, asked, writer)? {
                Wrote::Rows(rows) => {
                    done.rows += rows;
                    return Ok(());
                }
                Wrote::NoAnswer => {
                    done.without_answer += 1;
                    return Ok(());
                }
                Wrote::Bad(bad) => bad,
            },
            Event::Bad(bad) => bad,
            Event::GivenUp(template) => {
                tell(Note::Skipped { dataset: &task.name, template: &template });
                done.skipped.push(template);
                done.templates -= 1;
                return Ok(());
            }
        };
        if options.strict {
            return Err(ImportError::Bad(bad));
        }
        done.bad += 1;
        tell(Note::Bad(bad));
        Ok(())
    })?;
    done.examples = examples;
    Ok(done)
}

enum Wrote {
    Rows(u64),
    NoAnswer,
    Bad(BadLine),
}

fn write_rows(task: &Task, asked: Asked<'_>, writer: &mut JsonLinesWriter) -> Result<Wrote, ImportError> {
    let Some(choices) = &asked.choices else { return Ok(Wrote::NoAnswer) };
    if asked.target.is_empty() {
        return Ok(Wrote::NoAnswer);
    }
    if !choices.contains(&asked.target) {
        let reason = format!("the answer `{}` is none of the choices ({})", asked.target, choices.join(", "));
        return Ok(Wrote::Bad(asked.bad(reason)));
    }
    let mut row = PromptRow {
        dataset_name: task.name.clone(),
        template_name: asked.template.to_owned(),
        example_idx: asked.example_idx,
        instruction: asked.instruction,
        ..PromptRow::default()
    };
    for choice in choices {
        row.response.clone_from(choice);
        row.label = (*choice == asked.target).into();
        writer.write(&row)?;
    }
    Ok(Wrote::Rows(choices.len() as u64))
}
