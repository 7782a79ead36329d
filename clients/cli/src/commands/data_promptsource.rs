//! `data promptsource`: test rows from templates and datasets.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use cappy_eval::promptsource::{self, ImportError, ImportOptions, ImportReport, Note, Variant};
use cappy_process::exit::Code;
use clap::Args;
use serde_json::{Value, json};

use crate::{
    failure::{Failure, Outcome},
    line_input::explain,
    printer::Printer,
};

/// Arguments of `data promptsource`.
///
/// Every example is rendered under every template with answer choices, as Jinja2 renders it; each choice is a row
/// `{"dataset_name", "template_name", "example_idx", "instruction", "response", "label"}`. Datasets of the results
/// table get its names; for anli the files r1*, r2* and r3* are its three datasets. Random choices within templates
/// depend on the seed, the dataset, the template and the example alone.
#[derive(Debug, Args)]
pub struct Import {
    /// Folder with <dataset>/templates.yaml, for example promptsource/templates of the promptsource repository
    #[arg(long, value_name = "DIR")]
    templates: PathBuf,
    /// Folder with <dataset>/*.{jsonl,jsonl.gz,jsonl.zst,csv,csv.gz,parquet}, the hub's column names
    #[arg(long, value_name = "DIR")]
    datasets: PathBuf,
    /// Rows to write (.jsonl, .jsonl.gz, .jsonl.zst; - for standard output)
    #[arg(long, value_name = "FILE")]
    output: String,
    /// Only this dataset, by name (ANLI R1) or folder (super_glue/cb); may be given several times
    #[arg(long = "dataset", visible_alias = "subset", value_name = "NAME")]
    wanted: Vec<String>,
    /// Only this many examples of each dataset
    #[arg(long, value_name = "EXAMPLES")]
    limit: Option<u64>,
    /// Print texts whole [default: cut to 2048 characters, as the promptsource package does]
    #[arg(long)]
    full: bool,
    /// Only templates that ask for what the dataset was made for, where a dataset has any
    #[arg(long)]
    original_task: bool,
    /// Seed of random choices within templates
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Stop at the first bad row
    #[arg(long)]
    strict: bool,
}

impl Import {
    /// Imports.
    pub fn run(self, printer: &Printer) -> Outcome {
        let start = Instant::now();
        let options = ImportOptions {
            datasets: self.wanted,
            limit: self.limit,
            variant: if self.full { Variant::Full } else { Variant::Truncating },
            original_tasks_only: self.original_task,
            seed: self.seed,
            strict: self.strict,
        };
        let mut tell = |note: Note<'_>| match note {
            Note::Bad(bad) => printer.warning(bad),
            Note::Skipped { dataset, template } => {
                printer.warning(format!(
                    "{dataset}: left out template `{}`: {}",
                    template.template, template.reason
                ));
            }
            Note::Done(done) => printer.note(format!(
                "  {}: {} rows of {} examples under {} templates",
                done.dataset_name, done.rows, done.examples, done.templates
            )),
        };
        let report = promptsource::import(
            &self.templates,
            &self.datasets,
            Path::new(&self.output),
            &options,
            &mut tell,
        )
        .map_err(|error: ImportError| Failure::failed(explain(&error)))?;
        for skip in &report.skipped {
            printer.warning(format!("left out {}: {}", skip.name, skip.reason));
        }
        if self.output != "-" {
            printer.list(&rows(&report), &COLUMNS)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        printer.note(format!("{} rows in {} in {seconds:.1} s", report.rows, self.output));
        match report.bad() {
            0 => Ok(Code::Done),
            bad => {
                printer
                    .warning(format!("{bad} bad row{} or dataset left out", if bad == 1 { "" } else { "s" }));
                Ok(Code::Partial)
            }
        }
    }
}

const COLUMNS: [(&str, &str); 6] = [
    ("DATASET", "dataset_name"),
    ("EXAMPLES", "examples"),
    ("TEMPLATES", "templates"),
    ("ROWS", "rows"),
    ("WITHOUT ANSWER", "without_answer"),
    ("BAD", "bad"),
];

fn rows(report: &ImportReport) -> Vec<Value> {
    let row = |done: &promptsource::ImportedDataset| {
        json!({
            "dataset_name": done.dataset_name,
            "examples": done.examples,
            "templates": done.templates,
            "rows": done.rows,
            "without_answer": done.without_answer,
            "bad": done.bad,
            "skipped_templates":
                done.skipped.iter().map(|s| json!({"template": s.template, "reason": s.reason})).collect::<Value>(),
        })
    };
    report.datasets.iter().map(row).collect()
}
