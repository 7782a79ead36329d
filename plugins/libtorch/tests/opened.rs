//! The conformance suite over the plugin as a worker has it: a file, opened by the host, with libtorch opened by path.
//!
//! Nothing of the plugin is linked into this program.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cappy_plugin_abi::Backend;
use cappy_plugin_host::{Registry, Role, State, Want, testing};
use cappy_plugin_suite::{Fixture, Model, fixture_dir};

/// The library that cargo made along with the tests.
fn library() -> PathBuf {
    let program = std::env::current_exe().expect("this program");
    program.with_file_name(format!("libcappy_plugin_libtorch{}", std::env::consts::DLL_SUFFIX))
}

/// libtorch's libraries: where the worker's own variable says, otherwise what the plugin was built against.
fn torch_lib_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("CAPPY_TORCH_LIB_DIR") {
        return dir.into();
    }
    Path::new(&std::env::var_os("LIBTORCH").expect("cargo's configuration sets it")).join("lib")
}

fn registry(plugins: &Path) -> Registry {
    let mut registry = Registry::default();
    registry.set_torch_lib_dir(Some(torch_lib_dir()));
    registry.discover(plugins).expect("readable");
    registry
}

fn opened() -> Arc<dyn Backend> {
    let plugins = tempfile::tempdir().expect("a temporary directory");
    testing::install(&library(), plugins.path());
    let mut registry = registry(plugins.path());
    registry.choose(&Want { name: Some("libtorch"), ..Want::new(Role::Trainer) }).expect("it opens")
}

fn fixture() -> Fixture {
    let encoder = Model::new(fixture_dir("encoders/roberta"));
    let trained = Model { learning_rate: 2e-3, ..encoder.clone() };
    Fixture::new(opened()).scorer(encoder).generator(Model::new(fixture_dir("t5_v1_1"))).trainer(trained)
}

cappy_plugin_suite::backend_suite!(libtorch, fixture());

/// A version that there is not, written into the plugin's file: refused with both before any of its code runs.
#[test]
fn a_plugin_for_another_libtorch_is_refused() {
    let plugins = tempfile::tempdir().expect("a temporary directory");
    let file = testing::install(&library(), plugins.path());
    let mut bytes = std::fs::read(&file).expect("readable");
    let wanted = 0x020b_0000_0000_0000_u64.to_ne_bytes();
    let places: Vec<usize> =
        (0..bytes.len() - 8).step_by(8).filter(|&at| bytes[at..at + 8] == wanted).collect();
    assert!(!places.is_empty(), "the plugin notes its version");
    for at in places {
        bytes[at..at + 8].copy_from_slice(&0x020d_0000_0000_0000_u64.to_ne_bytes());
    }
    std::fs::write(&file, bytes).expect("writable");
    let mut registry = registry(plugins.path());
    registry.open_all();
    let entry = registry.into_entries().next().expect("one plugin");
    let reason = entry.reason().expect("it is refused");
    assert!(matches!(entry.state(), State::Refused(_)));
    let torch = torch_lib_dir();
    let words = format!("libtorch 2.11.0 in `{}`, the plugin was built for 2.13.0", torch.display());
    assert!(reason.contains(&words), "{reason}");
}
