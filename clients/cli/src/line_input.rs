//! Rows in, rows out: what `score`, `generate`, `log-likelihood` and `boost` have in common.
//!
//! Rows come from `--input` (streamed) or from the command line; each is checked and sent in pieces, a few at a
//! time; answers come out in order as the row with the new fields behind. A bad row is named by its line and
//! counted, and the run goes on unless `--strict`.

use std::{future::Future, path::PathBuf};

use cappy_eval::rows::{JsonLines, ReadError};
use cappy_process::exit::Code;
use clap::Args;
use futures::{StreamExt as _, stream};
use serde_json::{Map, Value};

use crate::{
    arguments::Format,
    failure::{Failure, Outcome},
    printer::Printer,
};

/// Pieces that are under way at once.
const PIECES_IN_FLIGHT: usize = 3;

/// A row as it came.
pub type Fields = Map<String, Value>;

/// Where rows come from.
#[derive(Debug, Args)]
pub struct Input {
    /// Rows as JSON Lines (.jsonl, .jsonl.gz, .jsonl.zst; - for standard input)
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Stop at the first bad row
    #[arg(long)]
    pub strict: bool,
}

/// A row that can be sent: its fields, and what the call takes.
pub struct Checked<P> {
    fields: Fields,
    payload: P,
    line: u64,
}

/// How a verb treats its rows.
pub struct Plan<P> {
    /// Rows in one call.
    pub rows_per_call: usize,
    /// What a row must have; the reason is told with its line.
    pub check: fn(&Fields) -> Result<P, String>,
    /// Columns for people: header and field.
    pub columns: &'static [(&'static str, &'static str)],
}

impl Input {
    /// Runs all rows: `inline` when there is no `--input`.
    ///
    /// `call` takes the payloads of consecutive rows and the index of the first, and returns the new fields of
    /// each, in order.
    ///
    /// # Errors
    /// No rows at all, an unreadable input, a failed call; with `--strict` the first bad row.
    pub async fn run<P, C, F>(self, inline: Vec<Fields>, plan: Plan<P>, call: C, printer: &Printer) -> Outcome
    where
        P: Clone,
        C: Fn(Vec<P>, u64) -> F,
        F: Future<Output = Outcome<Vec<Fields>>>,
    {
        let mut rows: Box<dyn Iterator<Item = Result<(u64, Fields), ReadError>>> = match &self.input {
            Some(_) if !inline.is_empty() => {
                return Err(Failure::usage("give either --input or the row's own flags, not both"));
            }
            Some(path) => {
                let lines =
                    JsonLines::<Fields>::open(path).map_err(|error| Failure::failed(explain(&error)))?;
                Box::new(lines.map(|row| row.map(|row| (row.line, row.value))))
            }
            None if inline.is_empty() => {
                return Err(Failure::usage(
                    "nothing to do: give --input FILE (or - for standard input), or a row by flags",
                ));
            }
            None => Box::new((1..).zip(inline).map(Ok)),
        };
        let mut bad = 0_u64;
        let mut failure = None;
        let pieces = std::iter::from_fn(|| {
            if failure.is_some() {
                return None;
            }
            let mut piece = Vec::new();
            while piece.len() < plan.rows_per_call {
                let (line, reason) = match rows.next() {
                    None => break,
                    Some(Ok((line, fields))) => match (plan.check)(&fields) {
                        Ok(payload) => {
                            piece.push(Checked { fields, payload, line });
                            continue;
                        }
                        Err(reason) => (line.to_string(), reason),
                    },
                    Some(Err(ReadError::Bad(error))) => (error.line.to_string(), error.reason),
                    Some(Err(error)) => {
                        failure = Some(Failure::failed(explain(&error)));
                        break;
                    }
                };
                bad += 1;
                let told = format!("line {line}: {reason}");
                if self.strict {
                    failure = Some(Failure::failed(told));
                    break;
                }
                printer.warning(told);
            }
            (!piece.is_empty()).then_some(piece)
        });
        let mut first = 0;
        let calls = stream::iter(pieces).map(|piece| {
            let start = first;
            first += piece.len() as u64;
            answer(piece, start, &call)
        });
        let mut answers = Box::pin(calls.buffered(PIECES_IN_FLIGHT));
        let mut collected = Vec::new();
        let mut refused = 0_u64;
        while let Some(rows) = answers.next().await {
            for row in rows? {
                match row {
                    Ok(fields) if printer.format() == Format::Ndjson => {
                        printer.text(&Value::from(fields).to_string())?
                    }
                    Ok(fields) => collected.push(Value::from(fields)),
                    Err(told) if self.strict => return Err(Failure::failed(told)),
                    Err(told) => {
                        refused += 1;
                        printer.warning(told);
                    }
                }
            }
        }
        drop(answers);
        if printer.format() != Format::Ndjson {
            printer.list(&collected, plan.columns)?;
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        match bad + refused {
            0 => Ok(Code::Done),
            count => {
                printer.warning(format!("{count} bad row{} left out", if count == 1 { "" } else { "s" }));
                Ok(Code::Partial)
            }
        }
    }
}

/// Calls for a piece; when the service refuses an argument, row by row, so that only the bad rows are lost.
async fn answer<P, C, F>(piece: Vec<Checked<P>>, start: u64, call: &C) -> Outcome<Vec<Result<Fields, String>>>
where
    P: Clone,
    C: Fn(Vec<P>, u64) -> F,
    F: Future<Output = Outcome<Vec<Fields>>>,
{
    let payloads = piece.iter().map(|row| row.payload.clone()).collect();
    match call(payloads, start).await {
        Ok(answers) => {
            if answers.len() != piece.len() {
                return Err(Failure::failed("the service answered another number of rows than it was asked"));
            }
            Ok(piece.into_iter().zip(answers).map(|(row, new)| Ok(joined(row.fields, new))).collect())
        }
        Err(failure) if failure.code == Code::Usage && piece.len() > 1 => {
            let mut rows = Vec::with_capacity(piece.len());
            for (index, row) in (start..).zip(piece) {
                rows.push(match call(vec![row.payload], index).await {
                    Ok(mut answers) if answers.len() == 1 => Ok(joined(row.fields, answers.remove(0))),
                    Ok(_) => {
                        return Err(Failure::failed(
                            "the service answered another number of rows than it was asked",
                        ));
                    }
                    Err(failure) if failure.code == Code::Usage => {
                        Err(format!("line {}: {failure}", row.line))
                    }
                    Err(failure) => return Err(failure),
                });
            }
            Ok(rows)
        }
        Err(failure) => Err(failure),
    }
}

fn joined(mut fields: Fields, new: Fields) -> Fields {
    fields.extend(new);
    fields
}

/// The error with its cause.
pub fn explain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// A text field.
pub fn text(fields: &Fields, name: &str) -> Result<String, String> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("`{name}` is not a text")),
        None => Err(format!("there is no `{name}`")),
    }
}

/// A list of texts.
pub fn texts(fields: &Fields, name: &str) -> Result<Vec<String>, String> {
    let Some(value) = fields.get(name) else { return Err(format!("there is no `{name}`")) };
    let list = value.as_array().ok_or_else(|| format!("`{name}` is not a list"))?;
    list.iter()
        .map(|item| {
            item.as_str()
                .map(str::to_owned)
                .ok_or_else(|| format!("`{name}` has an element that is not a text"))
        })
        .collect()
}
