//! A place of its own for everything that a test's processes read and write.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Variables that processes get from the caller: to find shared libraries and temporary space.
const INHERITED: [&str; 4] = ["PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];

/// A temporary directory and an environment; removed when it goes.
#[derive(Debug)]
pub struct Sandbox {
    dir: tempfile::TempDir,
    named: AtomicUsize,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// An empty one.
    ///
    /// # Panics
    /// When there is no room for temporary files.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("cappy-story-").tempdir().expect("a temporary directory");
        Self { dir, named: AtomicUsize::new(0) }
    }

    /// A path below it; nothing is made.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// An empty folder below it.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn folder(&self, relative: impl AsRef<Path>) -> PathBuf {
        let path = self.path(relative);
        fs::create_dir_all(&path).expect("a sandbox is writable");
        path
    }

    /// A file below it with this content.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn file(&self, relative: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("a sandbox is writable");
        fs::write(&path, content).expect("a sandbox is writable");
        path
    }

    /// A program in this place: no setting of the caller's reaches it, its home and state lie here, and it never asks
    /// the model hub.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().current_dir(self.dir.path());
        for name in INHERITED {
            command.envs(env::var_os(name).map(|value| (name, value)));
        }
        command.env("HOME", self.folder("home"));
        command.env("HF_HUB_OFFLINE", "1");
        // Help is wrapped to this.
        command.env("COLUMNS", "100");
        command
    }

    /// Where a program of this place keeps its state unless told otherwise.
    pub fn data_dir(&self) -> PathBuf {
        self.path("home/.local/share/cappy")
    }

    /// A number that no other process of this sandbox has, for the names of its files.
    pub(crate) fn next(&self) -> usize {
        self.named.fetch_add(1, Ordering::Relaxed)
    }
}
