//! Why a plugin is not used.

use std::io;

use cappy_plugin_abi::Failure;

/// Why one file is not used as a plugin.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It, or its directory, cannot be looked at.
    #[error("cannot be read")]
    Unreadable(#[source] io::Error),
    /// A directory, a socket.
    #[error("not a regular file")]
    NotAFile,
    /// A symbolic link out of the plugin directory.
    #[error("lies outside the plugin directory (a symbolic link): copy it into the directory")]
    OutsideDirectory,
    /// Anybody could replace its content.
    #[error("the file is world-writable (mode {mode:04o}): run chmod o-w on it")]
    WorldWritableFile {
        /// Permission bits.
        mode: u32,
    },
    /// Anybody could replace the file.
    #[error("the directory `{directory}` is world-writable (mode {mode:04o}): run chmod o-w on it")]
    WorldWritableDirectory {
        /// The plugin directory or one above it.
        directory: String,
        /// Permission bits.
        mode: u32,
    },
    /// Neither ELF nor Mach-O, or damaged.
    #[error("not a shared library: {0}")]
    NotALibrary(object::Error),
    /// A library, but not a plugin.
    #[error("not a cappy plugin: it exports no symbol `{prefix}*`")]
    MissingSymbol {
        /// What the symbol starts with.
        prefix: &'static str,
    },
    /// Several plugins in one library, and its name fits none of them.
    #[error("it holds several plugins ({crates}): name the file after the one to use, lib<crate>")]
    Ambiguous {
        /// Their crates.
        crates: String,
    },
    /// Built against another border.
    #[error(
        "built for plugin ABI {theirs} (fingerprint {their_fingerprint:016x}), this host has ABI {ours} \
         (fingerprint {our_fingerprint:016x}): build both from the same version"
    )]
    WrongAbi {
        /// The plugin's ABI version.
        theirs: u32,
        /// The plugin's layout hash.
        their_fingerprint: u64,
        /// The host's ABI version.
        ours: u32,
        /// The host's layout hash.
        our_fingerprint: u64,
    },
    /// The dynamic loader's reason.
    #[error("cannot be opened")]
    CannotOpen(#[source] libloading::Error),
    /// The mapped library differs from the checked file.
    #[error("the file changed while it was opened")]
    Changed,
    /// The factory or the first `describe` failed.
    #[error("it did not start: {0}")]
    Failed(Failure),
}

/// Why a directory cannot be searched for plugins.
#[derive(Debug, thiserror::Error)]
#[error("cannot search the plugin directory `{directory}`")]
pub struct DiscoverError {
    /// As given.
    pub directory: String,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}
