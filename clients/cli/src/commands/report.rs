//! `report bigbench`, `report baselines`, `report promptsource`: tables from files; no cluster needed.

use std::path::PathBuf;

use cappy_eval::{
    promptsource::{Accuracy, PromptRow},
    report::{self, LoadedResults, Table, plot, render},
    rows::{JsonLines, ReadError},
};
use cappy_process::exit::Code;
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::Value;

use super::report_plot::Picture;
use crate::{
    arguments::Format,
    failure::{Failure, Outcome},
    line_input::explain,
    printer::Printer,
};

/// Kinds of report.
#[derive(Debug, Subcommand)]
pub enum Report {
    /// Cappy per subset, and every method's mean, from result files
    Bigbench(Bigbench),
    /// The baselines from generation files
    Baselines(Baselines),
    /// Zero-shot accuracies from scored PromptSource rows
    Promptsource(Promptsource),
}

/// Arguments of `report bigbench`.
#[derive(Debug, Args)]
pub struct Bigbench {
    /// Folder with <model>/<subset>.json
    #[arg(long, value_name = "DIR")]
    results: PathBuf,
    /// Folder with <model>/<subset>_validation.jsonl, for baselines that the result files lack
    #[arg(long, value_name = "DIR")]
    generations: Option<PathBuf>,
    /// Benchmark data, for generations without references
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Also draw the gains over beam search per subset (.svg, .png)
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    look: Look,
}

/// Arguments of `report baselines`.
#[derive(Debug, Args)]
pub struct Baselines {
    /// Folder with <model>/<subset>_validation.jsonl
    #[arg(long, value_name = "DIR")]
    generations: PathBuf,
    /// Benchmark data, for generations without references
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    look: Look,
}

/// Arguments of `report promptsource`.
#[derive(Debug, Args)]
pub struct Promptsource {
    /// PromptSource rows with `score`, as `submit score` writes them (.jsonl, .jsonl.gz, .jsonl.zst; - for standard
    /// input)
    #[arg(long, short, value_name = "FILE")]
    input: PathBuf,
    /// Stop at the first bad row
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    look: Look,
}

/// How tables look where --output says nothing.
#[derive(Debug, Args)]
struct Look {
    /// Form of the tables [default: table]
    #[arg(long = "format", visible_alias = "markup", value_enum, value_name = "FORM")]
    form: Option<Form>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    #[value(alias = "text")]
    Table,
    Markdown,
    Csv,
    Json,
}

impl Report {
    /// Prints the tables.
    pub fn run(self, printer: &Printer) -> Outcome {
        match self {
            Self::Bigbench(verb) => {
                let picture = verb.plot.as_deref().map(Picture::of).transpose()?;
                let mut loaded =
                    report::load_results(&verb.results).map_err(|error| Failure::failed(explain(&error)))?;
                if let Some(generations) = &verb.generations {
                    let baselines = report::baselines_from_generations(generations, verb.data.as_deref())
                        .map_err(|error| Failure::failed(explain(&error)))?;
                    add_baselines(&mut loaded, baselines);
                }
                tell_skipped(&loaded, printer);
                let mut tables =
                    vec![report::scores_table(&loaded.models), report::methods_table(&loaded.models)];
                tables.extend(loaded.models.iter().filter_map(report::details_table));
                print(&tables, verb.look.form(printer), printer)?;
                if let (Some(picture), Some(file)) = (picture, &verb.plot) {
                    let plot = plot::gains(&loaded.models)
                        .ok_or_else(|| Failure::failed("the results hold nothing to plot"))?;
                    picture.write(&plot, file)?;
                    printer.note(format!("drew {}: {}", file.display(), plot.title));
                }
            }
            Self::Baselines(verb) => {
                let loaded = report::baselines_from_generations(&verb.generations, verb.data.as_deref())
                    .map_err(|error| Failure::failed(explain(&error)))?;
                tell_skipped(&loaded, printer);
                let mut tables = vec![report::methods_table(&loaded.models)];
                tables.extend(loaded.models.iter().filter_map(report::details_table));
                print(&tables, verb.look.form(printer), printer)?;
            }
            Self::Promptsource(verb) => return verb.run(printer),
        }
        Ok(Code::Done)
    }
}

#[derive(Deserialize)]
struct ScoredRow {
    #[serde(flatten)]
    row: PromptRow,
    score: f32,
}

impl Promptsource {
    fn run(&self, printer: &Printer) -> Outcome {
        let (accuracy, bad) = self.measure(printer)?;
        let accuracy = accuracy.finish();
        match self.look.form(printer) {
            Form::Json => {
                let value = serde_json::to_value(&accuracy).expect("a report serialises");
                printer.list(&[value], &[])?;
            }
            form => print(&[accuracy.table()], form, printer)?,
        }
        match bad {
            0 => Ok(Code::Done),
            bad => {
                printer.warning(format!("{bad} bad row{} left out", if bad == 1 { "" } else { "s" }));
                Ok(Code::Partial)
            }
        }
    }

    fn measure(&self, printer: &Printer) -> Outcome<(Accuracy, u64)> {
        let failed = |error: &(dyn std::error::Error + 'static)| Failure::failed(explain(error));
        let name = self.input.display();
        let mut accuracy = Accuracy::new();
        let mut bad = 0;
        for row in JsonLines::<ScoredRow>::open(&self.input).map_err(|error| failed(&error))? {
            let complaint = match row {
                Ok(scored) => match accuracy.add(&scored.value.row, scored.value.score) {
                    Ok(()) => continue,
                    Err(error) => format!("{name}:{}: {error}", scored.line),
                },
                Err(ReadError::Bad(line)) => line.to_string(),
                Err(error) => return Err(failed(&error)),
            };
            if self.strict {
                return Err(Failure::failed(complaint));
            }
            bad += 1;
            printer.warning(complaint);
        }
        Ok((accuracy, bad))
    }
}

impl Look {
    fn form(&self, printer: &Printer) -> Form {
        self.form.unwrap_or(match printer.format() {
            Format::Table => Form::Table,
            Format::Json | Format::Ndjson => Form::Json,
        })
    }
}

/// Results keep their own figures; what they lack comes from the generations.
fn add_baselines(loaded: &mut LoadedResults, baselines: LoadedResults) {
    for found in baselines.models {
        let Some(model) = loaded.models.iter_mut().find(|model| model.model == found.model) else { continue };
        for (subset, from) in found.subsets {
            if let Some(result) = model.subsets.get_mut(&subset) {
                for (name, value) in from.baselines {
                    result.baselines.entry(name).or_insert(value);
                }
                result.oracle = result.oracle.or(from.oracle);
            }
        }
    }
    loaded.skipped.extend(baselines.skipped);
}

fn tell_skipped(loaded: &LoadedResults, printer: &Printer) {
    for file in &loaded.skipped {
        printer.warning(format!("left out {}: {}", file.path.display(), file.reason));
    }
}

fn print(tables: &[Table], form: Form, printer: &Printer) -> Outcome<()> {
    let render = match form {
        Form::Table => render::text,
        Form::Markdown => render::markdown,
        Form::Csv => render::csv,
        Form::Json => {
            let values: Vec<Value> = tables.iter().map(json).collect();
            return printer.list(&values, &[]);
        }
    };
    let texts: Vec<String> = tables.iter().map(render).collect();
    printer.text(&texts.join("\n"))
}

/// A table as JSON, figures in full precision.
pub fn json(table: &Table) -> Value {
    serde_json::from_str(&render::json(table)).expect("the renderer writes JSON")
}
