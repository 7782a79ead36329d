//! `completions SHELL`.

use cappy_process::exit::Code;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::{arguments::Arguments, failure::Outcome, printer::Printer};

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    pub fn run(self, printer: &Printer) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "cappy-client", &mut script);
        printer.text(&String::from_utf8_lossy(&script))?;
        Ok(Code::Done)
    }
}
