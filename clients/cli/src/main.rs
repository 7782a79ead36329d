//! `cappy-client`: submits jobs, watches them, scores and generates, imports data, prints reports.
//!
//! One command's way: [`arguments`] parses the line; [`commands`] has a file a verb; a verb that needs a cluster
//! gets one from [`cluster`] (a coordinator by URL, or one started in this process); files travel through
//! [`transfer`]; what the verb found goes through the [`printer`] to stdout, everything else to stderr; an
//! [`failure::Failure`] carries the line for people and the exit code for scripts.

// The comments of arguments are help texts, where `<subset>` is a place to fill in.
#![allow(rustdoc::invalid_html_tags, rustdoc::bare_urls)]

mod arguments;
mod cluster;
mod commands;
mod defaults;
mod endpoint;
mod failure;
mod groups;
mod interrupt;
mod line_input;
mod printer;
mod progress;
mod transfer;

use std::process::ExitCode;

use cappy_process::{exit::Code, logging, settings};

use crate::{arguments::Arguments, printer::Printer};

fn main() -> ExitCode {
    let arguments: Arguments = settings::parse();
    logging::start(logging::Verbosity::from_flags(arguments.global.quiet, arguments.global.verbose));
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start threads: {error}");
            return Code::Failed.into();
        }
    };
    let printer = Printer::new(&arguments.global);
    let code = match runtime.block_on(commands::run(arguments, &printer)) {
        Ok(code) => code,
        Err(failure) => {
            printer.failure(&failure);
            failure.code
        }
    };
    // Blocking work of an embedded cluster that was asked to end is not waited for.
    runtime.shutdown_background();
    code.into()
}
