//! `cargo xtask test`.

use anyhow::Result;
use clap::Args;

use crate::{
    deny,
    libtorch::Libtorch,
    steps::{cargo, run},
};

/// Arguments of `test`.
#[derive(Args)]
pub struct Test {
    /// Leave out the licence check, which builds cargo-deny the first time
    #[arg(long)]
    no_deny: bool,
    /// Leave out the libtorch backend, which downloads 540 MB the first time
    #[arg(long)]
    no_libtorch: bool,
    #[command(flatten)]
    libtorch: Libtorch,
}

/// The backend with its engine.
const ENGINE: [&str; 2] = ["--features", "cappy-plugin-libtorch/torch"];

impl Test {
    /// Every step, the quick ones first.
    pub fn run(self) -> Result<()> {
        run("format", &mut cargo(["fmt", "--all", "--check"]))?;
        if self.no_libtorch {
            eprintln!("==> libtorch: left out; its backend is built without an engine and not tested");
        } else {
            eprintln!("==> libtorch");
            self.libtorch.run()?;
        }
        let step = |what: &str, command: &str, arguments: &[&str]| {
            let mut cargo = cargo([command, "--workspace", "--locked"]);
            if !self.no_libtorch {
                cargo.args(ENGINE);
            }
            cargo.args(arguments);
            if command == "doc" {
                cargo.env("RUSTDOCFLAGS", "-D warnings");
            }
            run(what, &mut cargo)
        };
        step("lints", "clippy", &["--all-targets", "--quiet", "--", "-D", "warnings"])?;
        // Whole-cluster tests start the binaries and open the plugins that this leaves in the target folder. With the
        // tests' targets, so that dependencies get the features that they have there and are built once.
        step("build", "build", &["--all-targets", "--quiet"])?;
        step("tests", "test", &["--no-fail-fast", "--lib", "--bins", "--tests"])?;
        step("examples of the documentation", "test", &["--quiet", "--doc"])?;
        step("documentation", "doc", &["--no-deps", "--quiet"])?;
        if !self.no_deny {
            deny::run()?;
        }
        eprintln!("==> all passed");
        Ok(())
    }
}
