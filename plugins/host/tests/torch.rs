//! Libtorch is opened, and its version compared, before a plugin that needs it.
//!
//! One test, since a process has one libtorch: what is refused leaves none open, the last case does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cappy_plugin_abi::border::Declaration;
use cappy_plugin_abi::border::declaration::DECLARATION_BYTES;
use cappy_plugin_host::testing::set_mode;
use cappy_plugin_host::{Refusal, Registry, State};

const BUILT_FOR: u64 = 0x020b_0000_0000_0000;

/// A library made of C.
fn compile(path: &Path, source: &str) {
    let file = path.with_extension("c");
    fs::write(&file, source).expect("writable");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(path).arg(&file).status();
    assert!(status.expect("there is a C compiler").success());
    fs::remove_file(file).expect("removable");
    set_mode(path, 0o644);
}

/// A plugin of this host's ABI that needs libtorch, and has no factory: how far it got shows in its refusal.
fn plugin(dir: &Path, torch: u64) -> PathBuf {
    let declaration = Declaration::new("cappy-plugin-tensors", "1.0.0");
    // SAFETY: plain bytes without padding, as the size says.
    let bytes = unsafe { &*(&raw const declaration).cast::<[u8; DECLARATION_BYTES]>() };
    let source = format!(
        "const unsigned char cappy_plugin_declaration_cappy_plugin_tensors[] = {{{}}};\n\
         const unsigned long long cappy_plugin_torch_abi_cappy_plugin_tensors = {torch}ull;\n",
        bytes.map(|byte| byte.to_string()).join(",")
    );
    let path = dir.join(format!("libcappy_plugin_tensors{}", std::env::consts::DLL_SUFFIX));
    compile(&path, &source);
    path
}

/// Stands for libtorch: all that the host asks of it.
fn libtorch(dir: &Path, version: Option<u64>) {
    fs::create_dir_all(dir).expect("writable");
    compile(&dir.join("libc10.so"), "int c10_stands_here;");
    let source = version.map_or("int older_than_its_version;".to_owned(), |version| {
        format!("unsigned long long aoti_torch_abi_version(void) {{ return {version}ull; }}")
    });
    compile(&dir.join("libtorch_cpu.so"), &source);
}

/// Why the plugin of `dir` is refused, with libtorch in `torch`.
#[track_caller]
fn refused(dir: &Path, torch: Option<&Path>, words: &[&str]) -> Refusal {
    let mut registry = Registry::default();
    registry.set_torch_lib_dir(torch.map(Path::to_owned));
    registry.discover(dir).expect("readable");
    registry.open_all();
    let entry = registry.into_entries().next().expect("one plugin");
    let reason = entry.reason().expect("it is refused");
    for word in words {
        assert!(reason.contains(word), "`{reason}` does not say `{word}`");
    }
    match entry.into_state() {
        State::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn libtorch_is_checked_before_a_plugin_that_needs_it_is_opened() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path();
    let at = |name: &str| root.join(name);
    let plugins = at("plugins");
    fs::create_dir(&plugins).expect("writable");
    let file = plugin(&plugins, 0);

    let refusal = refused(&plugins, None, &["without its engine", "cargo xtask libtorch"]);
    assert!(matches!(refusal, Refusal::NoEngine));
    fs::remove_file(&file).expect("removable");
    let file = plugin(&plugins, BUILT_FOR);

    let refusal =
        refused(&plugins, None, &["needs libtorch 2.11.0", "cargo xtask libtorch", "--torch-lib-dir"]);
    assert!(matches!(refusal, Refusal::NoTorch { .. }));

    let empty = at("empty");
    fs::create_dir(&empty).expect("writable");
    let place = empty.display().to_string();
    let refusal = refused(&plugins, Some(&empty), &[&place, "libc10.so", "pip install torch==2.11.0"]);
    assert!(matches!(refusal, Refusal::MissingTorch { .. }));
    compile(&empty.join("libc10.so"), "int c10_stands_here;");
    refused(&plugins, Some(&empty), &[&place, "has no libtorch_cpu.so"]);
    fs::write(empty.join("libtorch_cpu.so"), b"plain text").expect("writable");
    let refusal = refused(&plugins, Some(&empty), &[&place, "libtorch_cpu.so", "cannot be opened"]);
    assert!(matches!(refusal, Refusal::BrokenTorch { .. }));

    let old = at("old");
    libtorch(&old, None);
    let refusal = refused(&plugins, Some(&old), &["does not tell its version", "2.11.0"]);
    assert!(matches!(refusal, Refusal::NoTorchVersion { .. }));

    let newer = at("newer");
    libtorch(&newer, Some(0x020d_0000_0000_0000));
    let words = format!("libtorch 2.13.0 in `{}`, the plugin was built for 2.11.0", newer.display());
    let refusal = refused(&plugins, Some(&newer), &[&words]);
    assert!(matches!(refusal, Refusal::WrongTorch { .. }));

    // Anybody could have put it there.
    let open = at("open");
    libtorch(&open, Some(BUILT_FOR));
    set_mode(&open, 0o777);
    refused(&plugins, Some(&open), &["world-writable"]);

    // As `cargo xtask libtorch` lays it out, above the plugins. The plugin itself is opened then, and lacks a factory.
    libtorch(&at("libtorch/torch/lib"), Some(BUILT_FOR));
    let refusal = refused(&plugins, None, &["cappy_plugin_factory_"]);
    assert!(matches!(refusal, Refusal::MissingSymbol { .. }));

    // From now on the process has this one.
    fs::remove_file(file).expect("removable");
    plugin(&plugins, 0x020d_0000_0000_0000);
    refused(&plugins, Some(&newer), &["libtorch 2.11.0 in", "the plugin was built for 2.13.0"]);
}
