//! `rouge-l`: ROUGE-L F1 (stemmed) of rows, exactly as the `rouge_score` package has it.

use std::{
    io::{self, BufWriter},
    path::PathBuf,
};

use cappy_eval::{
    rouge::rows::{ScoreRowsError, score_rows},
    rows::{BadLine, BadLinePolicy, open_source},
};
use cappy_process::exit::Code;
use clap::Args;
use serde_json::Value;

use crate::{
    arguments::Format,
    failure::{Context as _, Failure, Outcome},
    line_input::explain,
    printer::Printer,
};

/// Bytes gathered before they are written.
const OUTPUT_BUFFER_BYTES: usize = 1 << 20;

/// Columns for people: header and field.
const COLUMNS: [(&str, &str); 3] =
    [("ROUGE-L", "rougeL"), ("RESPONSE", "response"), ("REFERENCES", "references")];

/// Arguments of `rouge-l`.
///
/// Rows `{"references": [...], "response": "..."}` come back with `rougeL`: the highest F1 over the references, in
/// full f64 precision. As JSON Lines (--output ndjson) they stream through.
#[derive(Debug, Args)]
pub struct RougeL {
    /// Rows as JSON Lines (.jsonl, .jsonl.gz, .jsonl.zst; - for standard input)
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// Stop at the first bad row
    #[arg(long)]
    strict: bool,
}

impl RougeL {
    /// Scores and prints.
    pub fn run(self, printer: &Printer) -> Outcome {
        let name = self.input.display().to_string();
        let reader = open_source(&self.input).context(format!("cannot read `{name}`"))?;
        let policy = if self.strict { BadLinePolicy::Strict } else { BadLinePolicy::Collect };
        let on_bad = |bad: BadLine| printer.warning(bad);
        let failed = |error: ScoreRowsError| Failure::failed(explain(&error));
        let done = match printer.format() {
            Format::Ndjson => {
                let writer = BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, io::stdout().lock());
                score_rows(&name, reader, writer, policy, on_bad).map_err(failed)?
            }
            Format::Table | Format::Json => {
                let mut lines = Vec::new();
                let done = score_rows(&name, reader, &mut lines, policy, on_bad).map_err(failed)?;
                let rows: Result<Vec<Value>, _> =
                    serde_json::Deserializer::from_slice(&lines).into_iter().collect();
                printer.list(&rows.expect("scored rows are JSON"), &COLUMNS)?;
                done
            }
        };
        match done.bad {
            0 => Ok(Code::Done),
            bad => {
                printer.warning(format!("{bad} bad row{} left out", if bad == 1 { "" } else { "s" }));
                Ok(Code::Partial)
            }
        }
    }
}
