//! What a finished job prints: the figures of its result files, and where they lie.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use cappy_proto::v1::{GenerateSpec, Job, ResultFile, job_spec::Kind};
use serde_json::{Map, Value, json};

use super::{bigbench_outcome, job_view};
use crate::{
    arguments::Format,
    failure::{Context as _, Failure, Outcome},
    printer::{Printer, cell, plain_table, trimmed},
};

/// What the seed calls its folder of results.
const BIGBENCH_RESULTS: &str = "bigbench_cappy_results";
/// What the seed calls its folder of generations.
const GENERATIONS: &str = "bigbench_flan_gens";
/// Where other results go, each job's in a folder of its own.
const OTHER_RESULTS: &str = "cappy_results";

/// Where a job's result files go unless told otherwise.
pub fn default_directory(job: &Job) -> PathBuf {
    match job.spec.as_ref().and_then(|spec| spec.kind.as_ref()) {
        Some(Kind::Bigbench(_)) => BIGBENCH_RESULTS.into(),
        Some(Kind::Generate(spec)) if is_benchmark(spec) => GENERATIONS.into(),
        _ => Path::new(OTHER_RESULTS).join(&job.id),
    }
}

fn is_benchmark(spec: &GenerateSpec) -> bool {
    let names = spec.files.iter().map(|file| file.rows.as_ref().map_or("", |rows| &rows.name));
    names.into_iter().all(|name| name.ends_with("_train") || name.ends_with("_validation"))
}

/// Prints what a job found; its files were just written below `directory`.
pub fn print(job: &Job, files: &[ResultFile], directory: &Path, printer: &Printer) -> Outcome<()> {
    match job.spec.as_ref().and_then(|spec| spec.kind.as_ref()) {
        Some(Kind::Bigbench(_)) => bigbench_outcome::print(job, files, directory, printer),
        Some(Kind::Generate(_) | Kind::Score(_) | Kind::Boost(_)) => {
            print_rows(job, files, directory, printer)
        }
        Some(Kind::Promptsource(_)) => print_report(job, directory, printer),
        Some(Kind::Adapt(_) | Kind::Pretrain(_)) => print_training(job, directory, printer),
        None => Err(Failure::failed("the coordinator told nothing of what the job was")),
    }
}

/// What every result has in common.
fn common(job: &Job, directory: &Path) -> Map<String, Value> {
    let mut value = Map::new();
    value.insert("job".into(), job.id.as_str().into());
    value.insert("state".into(), job_view::state_name(job).into());
    value.insert("directory".into(), directory.display().to_string().into());
    value
}

/// Files of rows, and a summary where there is one. Programs that read lines get the rows themselves.
fn print_rows(job: &Job, files: &[ResultFile], directory: &Path, printer: &Printer) -> Outcome<()> {
    let rows: Vec<&ResultFile> = files.iter().filter(|file| file.path.ends_with(".jsonl")).collect();
    if let [only] = rows[..]
        && printer.format() == Format::Ndjson
    {
        let path = directory.join(&only.path);
        let failed = || format!("cannot read `{}`", path.display());
        for line in BufReader::new(File::open(&path).context(failed())?).lines() {
            printer.text(&line.context(failed())?)?;
        }
        printer.note(format!("rows: {}", path.display()));
        return Ok(());
    }
    let mut listed = Vec::with_capacity(rows.len());
    for file in &rows {
        let path = directory.join(&file.path);
        let count = count_lines(&path).context(format!("cannot read `{}`", path.display()))?;
        let bytes: u64 = file.parts.iter().map(|part| part.size_bytes).sum();
        listed.push(json!({ "path": file.path, "rows": count, "bytes": bytes }));
    }
    let summary = read_object(directory, "summary.json")?;
    let mut value = summary.clone().unwrap_or_default();
    value.append(&mut common(job, directory));
    value.insert("files".into(), listed.clone().into());
    printer.value(&value.into(), || {
        let mut table = plain_table();
        table.set_header(["FILE", "ROWS", "BYTES"]);
        for file in &listed {
            table.add_row([cell(&file["path"]), file["rows"].to_string(), file["bytes"].to_string()]);
        }
        let figures = summary.map(|summary| format!("\n{}", figures(&summary))).unwrap_or_default();
        format!("{}{figures}", trimmed(&table))
    })?;
    printer.note(format!("results: {}", directory.display()));
    Ok(())
}

/// `report.json` for programs, `report.txt` for people.
fn print_report(job: &Job, directory: &Path, printer: &Printer) -> Outcome<()> {
    let mut value = read_object(directory, "report.json")?.unwrap_or_default();
    value.append(&mut common(job, directory));
    let path = directory.join("report.txt");
    let text = fs::read_to_string(&path).context(format!("cannot read `{}`", path.display()))?;
    printer.value(&value.into(), || text)?;
    printer.note(format!("results: {}", directory.display()));
    Ok(())
}

/// The new model, and how its training went.
fn print_training(job: &Job, directory: &Path, printer: &Printer) -> Outcome<()> {
    let training = read_object(directory, "training.json")?.unwrap_or_default();
    let mut value = common(job, directory);
    value.insert("model".into(), job.model_id.as_str().into());
    let best = training.get("evaluations").and_then(Value::as_array).and_then(|evaluations| {
        evaluations.iter().find(|evaluation| evaluation.get("update") == training.get("best_update"))
    });
    if let Some(best) = best {
        value.insert("validation".into(), best.clone());
    }
    let text = training_text(job, &training, best);
    for (name, field) in training {
        value.entry(name).or_insert(field);
    }
    if let Some(report) = read_object(directory, "report.json")? {
        value.insert("report".into(), report.into());
    }
    printer.value(&value.into(), || text)?;
    if !job.model_id.is_empty() {
        printer.note(format!(
            "use it as --scorer {0}; `cappy-client models pull {0} --to DIR` writes it as a directory",
            job.model_id
        ));
    }
    printer.note(format!("results: {}", directory.display()));
    Ok(())
}

fn training_text(job: &Job, training: &Map<String, Value>, best: Option<&Value>) -> String {
    let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |number| format!("{number:.4}"));
    let mut table = plain_table();
    table.add_row(["model".to_owned(), job.model_id.clone()]);
    for name in ["examples", "updates", "schedule"] {
        table.add_row([name.to_owned(), training.get(name).map(cell).unwrap_or_default()]);
    }
    if let Some([first, .., last]) = training.get("losses").and_then(Value::as_array).map(Vec::as_slice) {
        table.add_row([
            "loss".to_owned(),
            format!("{} in the first update, {} in the last", number(first), number(last)),
        ]);
    }
    if let Some(best) = best {
        let early = training.get("stopped_early") == Some(&true.into());
        table.add_row([
            "validation".to_owned(),
            format!(
                "loss {}, Spearman {}, after update {}{}",
                number(&best["loss"]),
                number(&best["spearman"]),
                best["update"],
                if early { " (stopped early)" } else { "" }
            ),
        ]);
    }
    trimmed(&table)
}

/// A summary's plain figures, a line each.
fn figures(summary: &Map<String, Value>) -> String {
    let mut table = plain_table();
    for (name, value) in summary {
        let shown = match value {
            Value::Number(number) if number.is_f64() => format!("{:.4}", number.as_f64().unwrap_or_default()),
            Value::Array(list) if list.iter().all(Value::is_number) && list.len() == 2 => {
                let ends = list.iter().filter_map(Value::as_f64).map(|end| format!("{end:.4}"));
                ends.collect::<Vec<_>>().join(" to ")
            }
            Value::Array(_) | Value::Object(_) => continue,
            other => cell(other),
        };
        table.add_row([name.clone(), shown]);
    }
    trimmed(&table)
}

fn read_object(directory: &Path, name: &str) -> Outcome<Option<Map<String, Value>>> {
    let path = directory.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let failed = format!("cannot read `{}`", path.display());
    let bytes = fs::read(&path).context(&failed)?;
    serde_json::from_slice(&bytes).map(Some).context(&failed)
}

fn count_lines(path: &Path) -> std::io::Result<u64> {
    let mut reader = BufReader::with_capacity(1 << 18, File::open(path)?);
    let mut lines = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(lines);
        }
        lines += buffer.iter().filter(|&&byte| byte == b'\n').count() as u64;
        let read = buffer.len();
        reader.consume(read);
    }
}
