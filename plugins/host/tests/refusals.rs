//! What the host refuses, and the reasons it gives.

use std::fs;
use std::path::{Path, PathBuf};

use cappy_plugin_abi::border::{ABI_VERSION, FINGERPRINT};
use cappy_plugin_host::testing::{build_in, build_plugin, install, plugin_dir, set_mode};
use cappy_plugin_host::{Entry, Refusal, Registry, Role, State, Want};

fn discovered(dir: &Path) -> Registry {
    let mut registry = Registry::default();
    registry.discover(dir).expect("readable");
    registry
}

#[track_caller]
fn only(registry: &Registry) -> &Entry {
    let [entry] = registry.entries() else { panic!("one entry: {registry:?}") };
    entry
}

#[track_caller]
fn refused(dir: &Path, reason: &str) -> Refusal {
    let mut registry = discovered(dir);
    registry.open_all();
    let text = only(&registry).reason().expect("it is refused");
    assert!(text.contains(reason), "`{text}` does not say `{reason}`");
    let error = registry.choose(&Want::new(Role::Scorer)).map(|_| ()).expect_err("nothing to choose");
    assert!(error.to_string().contains(reason), "{error}");
    let mut registry = discovered(dir);
    registry.open_all();
    match take(registry) {
        State::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

fn take(registry: Registry) -> State {
    registry.into_entries().next().expect("one entry").into_state()
}

fn echo_dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let library = install(&build_plugin("cappy-plugin-echo"), dir.path());
    (dir, library)
}

#[test]
fn a_good_plugin_goes_from_declared_to_ready() {
    let (dir, library) = echo_dir();
    fs::write(dir.path().join("libother.so"), b"not looked at").expect("writable");
    let mut registry = discovered(dir.path());
    let entry = only(&registry);
    assert!(matches!(entry.state(), State::Declared), "{entry:?}");
    assert_eq!((entry.name().as_str(), entry.version().as_deref()), ("echo", Some("0.1.0")));
    registry.open_all();
    assert!(matches!(only(&registry).state(), State::Ready { .. }), "{:?}", only(&registry));
    // What is mapped stays mapped: the file may go, and the backend still works.
    let backend = registry.ready().next().expect("ready").clone();
    drop(registry);
    fs::remove_file(library).expect("removable");
    assert_eq!(backend.describe().name, "echo");
}

#[test]
fn a_plugin_that_links_another_in_is_known_by_its_file() {
    let dir = plugin_dir(&["cappy-plugin-echo", "cappy-plugin-faulty"]);
    let mut registry = discovered(dir.path());
    registry.open_all();
    let names: Vec<String> = registry.ready().map(|backend| backend.describe().name).collect();
    assert_eq!(names, ["echo", "faulty"]);
    let want = Want { name: Some("faulty"), ..Want::new(Role::Trainer) };
    assert_eq!(registry.choose(&want).expect("there").describe().name, "faulty");
    let want = Want { architecture: Some("t5"), ..Want::new(Role::Generator) };
    let error = registry.choose(&want).map(|_| ()).expect_err("none loads t5");
    assert!(error.to_string().contains("no backend for generator, architecture `t5`: `echo` has"), "{error}");
}

#[test]
fn what_is_no_plugin_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join(format!("libcappy_plugin_x{}", std::env::consts::DLL_SUFFIX));
    fs::write(&file, b"plain text").expect("writable");
    assert!(matches!(refused(dir.path(), "not a shared library"), Refusal::NotALibrary(_)));
    fs::remove_file(&file).expect("removable");
    fs::create_dir(&file).expect("writable");
    assert!(matches!(refused(dir.path(), "not a regular file"), Refusal::NotAFile));
    fs::remove_dir(&file).expect("removable");
    // This test program: an ELF or Mach-O file, but no plugin.
    fs::copy(std::env::current_exe().expect("this program"), &file).expect("copyable");
    assert!(matches!(refused(dir.path(), "exports no symbol"), Refusal::MissingSymbol { .. }));
    assert!(Registry::default().discover(&dir.path().join("nowhere")).is_err());
}

#[test]
fn a_library_cut_short_is_refused_without_being_opened() {
    let (dir, library) = echo_dir();
    let bytes = fs::read(&library).expect("readable");
    for length in [bytes.len() / 2, 4096, 64, 4, 0] {
        fs::write(&library, &bytes[..length]).expect("writable");
        let registry = discovered(dir.path());
        assert!(matches!(only(&registry).state(), State::Refused(_)), "{length} bytes: {registry:?}");
    }
}

/// Where the declaration lies in a library's file.
fn declaration_offset(bytes: &[u8]) -> usize {
    let magic = b"cappy-plugin-abi";
    let found = bytes.windows(magic.len()).enumerate().filter(|(_, window)| window == magic);
    // The magic number is also a constant of the code; behind the declaration's comes this ABI's version.
    let versioned = found.filter(|(at, _)| bytes[at + 16..].starts_with(&ABI_VERSION.to_ne_bytes()));
    let offsets: Vec<usize> = versioned.map(|(at, _)| at).collect();
    assert_eq!(offsets.len(), 1);
    offsets[0]
}

#[test]
fn another_abi_version_is_refused_with_both() {
    let (dir, library) = echo_dir();
    let mut bytes = fs::read(&library).expect("readable");
    let at = declaration_offset(&bytes);
    bytes[at + 16..][..4].copy_from_slice(&7u32.to_ne_bytes());
    fs::write(&library, bytes).expect("writable");
    refused(
        dir.path(),
        &format!("built for plugin ABI 7 (fingerprint {FINGERPRINT:016x}), this host has ABI 1"),
    );
}

/// A field added to a struct that crosses only behind the tables of models.
#[test]
fn a_plugin_built_against_a_changed_border_is_refused() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("changed-border");
    for part in ["plugins/abi", "plugins/echo", "plugins/suite"] {
        mirror(&root.join(part), &copy.join(part));
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("readable");
    let (packages, _profiles) = manifest.split_once("[profile.").expect("profiles come last");
    let (_, packages) = packages.split_once("[workspace.package]").expect("behind the members");
    let members = "[workspace]\nresolver = \"3\"\nmembers = [\"plugins/*\"]\n";
    write_changed(&copy.join("Cargo.toml"), format!("{members}\n[workspace.package]{packages}").as_bytes());
    write_changed(&copy.join("Cargo.lock"), &fs::read(root.join("Cargo.lock")).expect("readable"));
    let values = "plugins/abi/src/border/values.rs";
    let text = fs::read_to_string(root.join(values)).expect("readable");
    let changed = text
        .replace(
            "pub message: Given<u8>,",
            "pub message: Given<u8>,\n        /// Added.\n        pub hint: u64,",
        )
        .replace("message: message.into() }", "message: message.into(), hint: 0 }");
    assert_eq!(changed.matches("hint").count(), 2, "both places are found");
    write_changed(&copy.join(values), changed.as_bytes());

    let target = copy.join("target");
    let dir = tempfile::tempdir().expect("a temporary directory");
    install(&build_in(&copy.join("Cargo.toml"), "cappy-plugin-echo", &target), dir.path());
    let refusal = refused(dir.path(), "build both from the same version");
    let Refusal::WrongAbi { theirs, their_fingerprint, ours, our_fingerprint } = refusal else {
        panic!("{refusal:?}")
    };
    assert_eq!((theirs, ours, our_fingerprint), (ABI_VERSION, ABI_VERSION, FINGERPRINT));
    assert_ne!(their_fingerprint, FINGERPRINT);
}

/// Copies a crate's sources, leaving what has not changed alone so that cargo need not build it again.
fn mirror(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("writable");
    for entry in fs::read_dir(from).expect("readable") {
        let path = entry.expect("an entry").path();
        let place = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            mirror(&path, &place);
        } else if !place.ends_with("border/values.rs") {
            write_changed(&place, &fs::read(&path).expect("readable"));
        }
    }
}

fn write_changed(path: &Path, bytes: &[u8]) {
    if fs::read(path).ok().as_deref() != Some(bytes) {
        fs::write(path, bytes).expect("writable");
    }
}

#[cfg(unix)]
#[test]
fn what_others_can_write_is_refused() {
    let (dir, library) = echo_dir();
    set_mode(&library, 0o646);
    let refusal = refused(dir.path(), "the file is world-writable (mode 0646)");
    assert!(matches!(refusal, Refusal::WorldWritableFile { mode: 0o646 }));
    set_mode(&library, 0o644);
    // Not even with the sticky bit: others could add files.
    for mode in [0o777, 0o1777] {
        set_mode(dir.path(), mode);
        let refusal = refused(dir.path(), "is world-writable");
        assert!(matches!(refusal, Refusal::WorldWritableDirectory { .. }), "{refusal:?}");
    }
    set_mode(dir.path(), 0o755);
    let inner = dir.path().join("plugins");
    fs::create_dir(&inner).expect("writable");
    fs::rename(&library, inner.join(library.file_name().expect("a file"))).expect("movable");
    set_mode(dir.path(), 0o777);
    refused(&inner, "is world-writable");
    set_mode(dir.path(), 0o755);
    let mut registry = discovered(&inner);
    registry.open_all();
    assert_eq!(registry.ready().count(), 1);
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_directory_is_refused() {
    use std::os::unix::fs::symlink;

    let (elsewhere, library) = echo_dir();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let link = dir.path().join(library.file_name().expect("a file"));
    symlink(&library, &link).expect("a link");
    assert!(matches!(refused(dir.path(), "outside the plugin directory"), Refusal::OutsideDirectory));
    fs::remove_file(&link).expect("removable");
    symlink("nowhere", &link).expect("a link");
    assert!(matches!(refused(dir.path(), "cannot be read"), Refusal::Unreadable(_)));
    fs::remove_file(&link).expect("removable");

    // A link inside the directory, and a directory reached by a link, are fine.
    let versioned = install(&library, dir.path()).with_extension("v1");
    fs::rename(&link, &versioned).expect("movable");
    symlink(versioned.file_name().expect("a file"), &link).expect("a link");
    let linked_dir = elsewhere.path().join("linked");
    symlink(dir.path(), &linked_dir).expect("a link");
    for path in [dir.path(), &linked_dir] {
        let mut registry = discovered(path);
        registry.open_all();
        assert_eq!(registry.ready().count(), 1, "{registry:?}");
    }
}
