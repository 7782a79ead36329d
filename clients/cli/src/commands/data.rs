//! `data bigbench`, `data promptsource`, `data demo`: importers; no cluster needed.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use cappy_eval::bigbench::{self, ImportOptions, ImportReport};
use cappy_process::exit::Code;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{data_promptsource, demo_data};
use crate::{
    failure::{Failure, Outcome},
    line_input::explain,
    printer::Printer,
};

/// Kinds of data.
#[derive(Debug, Subcommand)]
pub enum Data {
    /// BIG-bench's generative tasks as rows, from its PyPI source archive, an unpacked folder or a checkout
    Bigbench(Import),
    /// PromptSource test rows, rendered from templates and datasets
    Promptsource(data_promptsource::Import),
    /// The demo benchmark as rows
    Demo(Demo),
}

/// Arguments of `data bigbench`.
///
/// `pip download --no-deps --no-binary :all: bigbench==1.0.0` fetches the archive (358 MB). The rows and splits are
/// those of the published copy, byte for byte.
#[derive(Debug, Args)]
pub struct Import {
    /// bigbench-1.0.0.tar.gz, an unpacked folder, a BIG-bench checkout, or a folder of <task>/task.json
    #[arg(long, value_name = "PATH")]
    source: PathBuf,
    /// Data folder to write
    #[arg(long, value_name = "DIR")]
    output: String,
    /// Only this subset; may be given several times [default: the 45 generative ones]
    #[arg(long = "subset", value_name = "NAME")]
    subsets: Vec<String>,
    /// Cut each split to this many rows (the published copy says it is cut to 50000)
    #[arg(long, value_name = "ROWS")]
    row_cap: Option<usize>,
}

/// Arguments of `data demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Data folder to write
    #[arg(long, value_name = "DIR")]
    output: String,
}

impl Data {
    /// Imports.
    pub fn run(self, printer: &Printer) -> Outcome {
        match self {
            Self::Bigbench(import) => import.run(printer),
            Self::Promptsource(import) => import.run(printer),
            Self::Demo(demo) => {
                demo_data::write_data(Path::new(&demo.output))?;
                printer.note(format!("wrote the demo benchmark to {}", demo.output));
                Ok(Code::Done)
            }
        }
    }
}

impl Import {
    fn run(self, printer: &Printer) -> Outcome {
        let start = Instant::now();
        let options = ImportOptions { subsets: self.subsets, row_cap: self.row_cap };
        let mut written = |subset: &str| printer.note(format!("  {subset}"));
        let report = bigbench::import(&self.source, Path::new(&self.output), &options, &mut written)
            .map_err(|error| Failure::failed(explain(&error)))?;
        for task in &report.skipped {
            printer.note(format!("left out {}: {}", task.task, task.reason));
        }
        for subset in &report.absent {
            printer.note(format!("absent from this source: {subset}"));
        }
        printer.list(&rows(&report), &COLUMNS)?;
        let (count, seconds) = (report.subsets.len(), start.elapsed().as_secs_f64());
        printer.note(format!("{count} subsets in {} in {seconds:.1} s", self.output));
        Ok(Code::Done)
    }
}

const COLUMNS: [(&str, &str); 4] =
    [("SUBSET", "subset"), ("TRAIN", "train_rows"), ("VALIDATION", "validation_rows"), ("STATE", "state")];

fn rows(report: &ImportReport) -> Vec<Value> {
    let imported = report.subsets.iter().map(|subset| {
        json!({
            "subset": subset.subset,
            "state": "imported",
            "train_rows": subset.train.rows,
            "validation_rows": subset.validation.rows,
            "train_sha256": subset.train.sha256,
            "validation_sha256": subset.validation.sha256,
        })
    });
    let absent = report.absent.iter().map(|subset| json!({ "subset": subset, "state": "absent" }));
    imported.chain(absent).collect()
}
