//! Plugins as files, for tests: builds them with cargo and lays them out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Builds the library of a plugin crate of this workspace, once a process.
///
/// It has a target directory of its own: cargo names a `cdylib`'s files without a hash, so in the tests' own it would
/// take the place of the crate that the tests link.
///
/// # Panics
/// When it does not build.
pub fn build_plugin(package: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().expect("no build failed before");
    let build = || {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
        let program = std::env::current_exe().expect("this test program");
        let outputs = program.ancestors().nth(2).expect("tests lie in `deps`");
        build_in(&manifest, package, &outputs.join("plugins"))
    };
    built.entry(package.to_owned()).or_insert_with(build).clone()
}

/// Builds the library of a plugin crate of any workspace.
///
/// # Panics
/// When it does not build.
pub fn build_in(manifest: &Path, package: &str, target_dir: &Path) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--lib",
        "--offline",
        "--message-format=json-render-diagnostics",
        "--package",
        package,
    ]);
    command.arg("--manifest-path").arg(manifest);
    command.arg("--target-dir").arg(target_dir);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "cargo could not build {package}");
    let library = |line: &str| -> Option<PathBuf> {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let target = message["target"]["name"].as_str()?;
        if message["reason"] != "compiler-artifact" || target.replace('-', "_") != package.replace('-', "_") {
            return None;
        }
        let mut files = message["filenames"].as_array()?.iter().filter_map(|file| file.as_str());
        files.find(|file| file.ends_with(std::env::consts::DLL_SUFFIX)).map(PathBuf::from)
    };
    let messages = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    messages.lines().find_map(library).unwrap_or_else(|| panic!("{package} has no cdylib"))
}

/// A directory with the libraries of plugin crates, readable by all, writable by its owner.
///
/// # Panics
/// When one does not build or cannot be copied.
pub fn plugin_dir(packages: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for package in packages {
        install(&build_plugin(package), dir.path());
    }
    dir
}

/// Copies a library into a directory under its own name.
///
/// # Panics
/// When it cannot be copied.
pub fn install(library: &Path, dir: &Path) -> PathBuf {
    let place = dir.join(library.file_name().expect("a file"));
    // A new file, whatever is mapped from the old one.
    fs::copy(library, &place).expect("copyable");
    set_mode(&place, 0o644);
    place
}

/// Sets permission bits; nothing where there are none.
///
/// # Panics
/// When they cannot be set.
pub fn set_mode(path: &Path, mode: u32) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("own file");
    }
    #[cfg(not(unix))]
    let _ = (path, mode);
}
