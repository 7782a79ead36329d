//! Everything that is printed: results on stdout in the chosen format, words for people on stderr.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use crate::{
    arguments::{Format, Global},
    failure::{Failure, Outcome},
};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    format: Format,
    quiet: bool,
    terminal: bool,
}

impl Printer {
    /// As the flags say.
    pub fn new(global: &Global) -> Self {
        let default = if io::stdout().is_terminal() { Format::Table } else { Format::Ndjson };
        Self {
            format: global.format().unwrap_or(default),
            quiet: global.quiet,
            terminal: io::stderr().is_terminal(),
        }
    }

    /// The chosen format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether progress may be drawn (a terminal, not quiet).
    pub fn draws(&self) -> bool {
        self.terminal && !self.quiet
    }

    /// A line for people on stderr, unless quiet.
    pub fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// A warning on stderr, even when quiet.
    pub fn warning(&self, text: impl std::fmt::Display) {
        eprintln!("warning: {text}");
    }

    /// Why the command ends, on stderr.
    pub fn failure(&self, failure: &Failure) {
        eprintln!("error: {failure}");
    }

    /// Text as it is, on stdout.
    pub fn text(&self, text: &str) -> Outcome<()> {
        let mut out = io::stdout().lock();
        written(
            out.write_all(text.as_bytes())
                .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") }),
        )
    }

    /// One result: `table` for people, `value` for programs.
    pub fn value(&self, value: &Value, table: impl FnOnce() -> String) -> Outcome<()> {
        match self.format {
            Format::Table => self.text(&table()),
            Format::Json => self.text(&serde_json::to_string_pretty(value).expect("JSON values print")),
            Format::Ndjson => self.text(&value.to_string()),
        }
    }

    /// A list: columns for people (header and how to fill it), objects for programs.
    pub fn list(&self, items: &[Value], columns: &[(&str, &str)]) -> Outcome<()> {
        match self.format {
            Format::Table => {
                let mut table = plain_table();
                table.set_header(columns.iter().map(|(header, _)| *header));
                for item in items {
                    table.add_row(columns.iter().map(|(_, key)| cell(&item[*key])));
                }
                self.text(&trimmed(&table))
            }
            Format::Json => self.text(&serde_json::to_string_pretty(items).expect("JSON values print")),
            Format::Ndjson => items.iter().try_for_each(|item| self.text(&item.to_string())),
        }
    }
}

/// A table without frames, as wide as the terminal.
pub fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// Without the blanks that a frameless table leaves at line ends.
pub fn trimmed(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// `table` prints text bare and everything else as JSON.
pub fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A reader that went away (`| head`) is not an error.
fn written(result: io::Result<()>) -> Outcome<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::failed(format!("cannot write to stdout: {error}"))),
        Ok(()) => Ok(()),
    }
}
