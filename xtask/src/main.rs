//! Developer commands: `cargo xtask test` is what must pass before anything lands; `cargo xtask bench` measures
//! this project and its peers side by side.

mod bench;
mod deny;
mod libtorch;
mod serve;
mod steps;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Cappy")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format check, lints, every test, documentation, licences: all that must pass before a change lands
    Test(test::Test),
    /// Check licences, duplicates and sources of dependencies (installs cargo-deny below target/ when missing)
    Deny,
    /// Bring the engine of plugins/libtorch (PyTorch 2.11.0 for CPUs, 540 MB) below target/
    Libtorch(libtorch::Libtorch),
    /// Measure this project and a peer side by side, in one sitting
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Test(test) => test.run(),
        Command::Deny => deny::run(),
        Command::Libtorch(libtorch) => libtorch.run(),
        Command::Bench(bench) => bench.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
