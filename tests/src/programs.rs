//! The binaries and plugins under test, built by cargo.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// Variables that cargo sets for a running test. Build scripts that watch them (ring's does) would see a change and
/// have everything above them built again, here and by the next cargo.
const OF_THE_TEST: [&str; 7] = [
    "CARGO_BIN_",
    "CARGO_CRATE_NAME",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PRIMARY_PACKAGE",
    "CARGO_TARGET_TMPDIR",
    "OUT_DIR",
];

/// What is there when libtorch is.
const LIBTORCH: &str = "libtorch_cpu.so";

/// Where they are.
#[derive(Debug)]
pub struct Programs {
    /// `cappy-client`
    pub client: PathBuf,
    /// `cappy-coordinator`
    pub coordinator: PathBuf,
    /// `cappy-worker`
    pub worker: PathBuf,
    /// libtorch's libraries, where the libtorch plugin is built with its engine.
    pub torch_lib_dir: Option<PathBuf>,
    plugins: BTreeMap<String, PathBuf>,
}

/// Builds them the first time; cargo finds nothing to do where they are fresh.
///
/// # Panics
/// When they do not build.
pub fn programs() -> &'static Programs {
    static BUILT: OnceLock<Programs> = OnceLock::new();
    BUILT.get_or_init(build)
}

impl Programs {
    /// Puts a backend's library (`candle`, `faulty`) into a plugin directory; returns its new place.
    ///
    /// # Panics
    /// When there is no such plugin, or it cannot be copied.
    pub fn install(&self, backend: &str, dir: &Path) -> PathBuf {
        let library =
            self.plugins.get(&format!("cappy-plugin-{backend}")).expect("a plugin of this workspace");
        let place = dir.join(library.file_name().expect("a library has a name"));
        // A copy, not a link: a later build must not change what a running worker has mapped.
        fs::copy(library, &place)
            .unwrap_or_else(|error| panic!("cannot copy {}: {error}", library.display()));
        place
    }
}

fn build() -> Programs {
    // The test lies in <target>/<profile>/deps; its binaries belong beside it.
    let test = env::current_exe().expect("a test knows its own file");
    let outputs = test.ancestors().nth(2).expect("tests lie in `deps`");
    let target = outputs.parent().expect("a profile's folder lies in the target folder");
    let profile = match outputs.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(name) => name,
    };
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--offline", "--message-format=json-render-diagnostics", "--profile", profile]);
    // The whole workspace with its examples: as in the test command, which has built it before, cargo then takes in what
    // tests depend on. With less, some dependencies would have other features, and half of the workspace would be built
    // once more.
    command.args(["--workspace", "--lib", "--bins", "--examples"]);
    // Where libtorch is laid out, the test command builds its backend with it, too.
    let torch_lib_dir = env::var_os("LIBTORCH").map(|tree| PathBuf::from(tree).join("lib"));
    let torch_lib_dir = torch_lib_dir.filter(|lib| lib.join(LIBTORCH).exists());
    if torch_lib_dir.is_some() {
        command.args(["--features", "cappy-plugin-libtorch/torch"]);
    }
    command.arg("--manifest-path").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
    command.arg("--target-dir").arg(target);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| OF_THE_TEST.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "cargo could not build the programs under test");
    let messages = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str(line).ok());
    let (mut executables, mut plugins) = (BTreeMap::new(), BTreeMap::new());
    for message in artifacts.filter(|message: &serde_json::Value| message["reason"] == "compiler-artifact") {
        let target = &message["target"];
        let name = target["name"].as_str().unwrap_or_default().replace('_', "-");
        let is =
            |kind: &str| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|it| it == kind));
        // A program's own tests, and examples, are executables of the same or any name.
        if message["profile"]["test"] != false {
            continue;
        }
        if is("bin") {
            executables.extend(message["executable"].as_str().map(|path| (name, PathBuf::from(path))));
        } else if is("cdylib") && name.starts_with("cappy-plugin-") {
            let mut files =
                message["filenames"].as_array().into_iter().flatten().filter_map(|file| file.as_str());
            let library = files.find(|file| file.ends_with(env::consts::DLL_SUFFIX));
            plugins.extend(library.map(|library| (name, PathBuf::from(library))));
        }
    }
    let mut executable =
        |name: &str| executables.remove(name).unwrap_or_else(|| panic!("cargo built no {name}"));
    Programs {
        client: executable("cappy-client"),
        coordinator: executable("cappy-coordinator"),
        worker: executable("cappy-worker"),
        torch_lib_dir,
        plugins,
    }
}
