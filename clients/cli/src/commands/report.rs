//! `report bigbench`, `report baselines`: the seed's tables from files; no cluster needed.

use std::path::PathBuf;

use cappy_eval::report::{self, LoadedResults, Table, render};
use cappy_process::exit::Code;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

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

/// How tables look where --output says nothing.
#[derive(Debug, Args)]
struct Look {
    /// Markup of the tables [default: text]
    #[arg(long, value_enum, value_name = "MARKUP")]
    markup: Option<Markup>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Markup {
    Text,
    Markdown,
    Csv,
    Json,
}

impl Report {
    /// Prints the tables.
    pub fn run(self, printer: &Printer) -> Outcome {
        match self {
            Self::Bigbench(verb) => {
                let mut loaded =
                    report::load_results(&verb.results).map_err(|error| Failure::failed(explain(&error)))?;
                if let Some(generations) = &verb.generations {
                    let baselines = report::baselines_from_generations(generations, verb.data.as_deref())
                        .map_err(|error| Failure::failed(explain(&error)))?;
                    add_baselines(&mut loaded, baselines);
                }
                tell_skipped(&loaded, printer);
                let tables = [report::scores_table(&loaded.models), report::methods_table(&loaded.models)];
                print(&tables, verb.look.markup, printer)?;
            }
            Self::Baselines(verb) => {
                let loaded = report::baselines_from_generations(&verb.generations, verb.data.as_deref())
                    .map_err(|error| Failure::failed(explain(&error)))?;
                tell_skipped(&loaded, printer);
                print(&[report::methods_table(&loaded.models)], verb.look.markup, printer)?;
            }
        }
        Ok(Code::Done)
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

fn print(tables: &[Table], markup: Option<Markup>, printer: &Printer) -> Outcome<()> {
    let markup = markup.unwrap_or(match printer.format() {
        Format::Table => Markup::Text,
        Format::Json | Format::Ndjson => Markup::Json,
    });
    let render = match markup {
        Markup::Text => render::text,
        Markup::Markdown => render::markdown,
        Markup::Csv => render::csv,
        Markup::Json => {
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
