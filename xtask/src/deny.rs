//! `cargo xtask deny`: licences, duplicates and sources. Advisories need a git checkout and are left to CI that has one.

use std::process::Command;

use anyhow::Result;

use crate::steps::{self, cargo, root, target};

/// The version that the configuration is written for.
const VERSION: &str = "0.20.2";

/// Its own release profile links everything as one unit at the highest level: 234 s of CPU, against 74 s without, for a
/// check that then takes 3 s instead of 1.
const BUILT_QUICKLY: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
];

/// Installs the tool below the target folder when it is not there, then checks.
pub fn run() -> Result<()> {
    let home = target().join("tools");
    let program = home.join("bin/cargo-deny");
    if !program.exists() {
        let mut install =
            cargo(["install", "cargo-deny", "--locked", "--quiet", "--version", VERSION, "--root"]);
        install.arg(&home).env_remove("CARGO_TARGET_DIR").envs(BUILT_QUICKLY);
        steps::run("install cargo-deny", &mut install)?;
    }
    let mut check = Command::new(program);
    check
        // With everything that may be built in; only the manifests are read, libtorch itself need not be there.
        .args(["--workspace", "--features", "cappy-plugin-libtorch/torch", "--log-level", "error"])
        .args(["check", "licenses", "bans", "sources"])
        .current_dir(root());
    steps::run("licences, duplicates, sources", &mut check)
}
