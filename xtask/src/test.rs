//! `cargo xtask test`.

use anyhow::Result;
use clap::Args;

use crate::{
    deny,
    steps::{cargo, run},
};

/// Arguments of `test`.
#[derive(Args)]
pub struct Test {
    /// Leave out the licence check, which builds cargo-deny the first time
    #[arg(long)]
    no_deny: bool,
}

impl Test {
    /// Every step, the quick ones first.
    pub fn run(self) -> Result<()> {
        run("format", &mut cargo(["fmt", "--all", "--check"]))?;
        run(
            "lints",
            &mut cargo([
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ]),
        )?;
        // Whole-cluster tests start the binaries and open the plugins that this leaves in the target folder. With the
        // tests' targets, so that dependencies get the features that they have there and are built once.
        run("build", &mut cargo(["build", "--workspace", "--all-targets", "--locked", "--quiet"]))?;
        let kinds = ["test", "--workspace", "--locked", "--no-fail-fast", "--lib", "--bins", "--tests"];
        run("tests", &mut cargo(kinds))?;
        run(
            "examples of the documentation",
            &mut cargo(["test", "--workspace", "--locked", "--quiet", "--doc"]),
        )?;
        run(
            "documentation",
            cargo(["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        )?;
        if !self.no_deny {
            deny::run()?;
        }
        eprintln!("==> all passed");
        Ok(())
    }
}
