//! `rouge-l`: ROUGE-L F1 (stemmed) of rows, exactly as the `rouge_score` package has it.

use std::{
    io::{self, BufWriter},
    path::PathBuf,
};

use cappy_eval::{
    rouge::rows::score_rows,
    rows::{BadLinePolicy, open_source},
};
use cappy_process::exit::Code;
use clap::Args;

use crate::{
    failure::{Context as _, Failure, Outcome},
    line_input::explain,
    printer::Printer,
};

/// Bytes gathered before they are written.
const OUTPUT_BUFFER_BYTES: usize = 1 << 20;

/// Arguments of `rouge-l`.
///
/// Rows `{"references": [...], "response": "..."}` come back with `rougeL`: the highest F1 over the references, in
/// full f64 precision, as JSON Lines.
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
        let writer = BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, io::stdout().lock());
        let policy = if self.strict { BadLinePolicy::Strict } else { BadLinePolicy::Collect };
        let done = score_rows(&name, reader, writer, policy, |bad| printer.warning(bad))
            .map_err(|error| Failure::failed(explain(&error)))?;
        match done.bad {
            0 => Ok(Code::Done),
            bad => {
                printer.warning(format!("{bad} bad row{} left out", if bad == 1 { "" } else { "s" }));
                Ok(Code::Partial)
            }
        }
    }
}
