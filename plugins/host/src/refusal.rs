//! Why a plugin is not used.

use std::io;

use cappy_plugin_abi::Failure;

use crate::TorchVersion;

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
    /// It says so itself.
    #[error(
        "built without its engine: run `cargo xtask libtorch` and build it with --features cappy-plugin-libtorch/torch"
    )]
    NoEngine,
    /// No directory was given, and a search found none.
    #[error(
        "it needs libtorch {wanted}, and there is no libtorch/torch/lib beside the plugin or above it: run \
         `cargo xtask libtorch`, or set torch_lib_dir (--torch-lib-dir) to the torch/lib that `pip install \
         torch=={wanted}` makes"
    )]
    NoTorch {
        /// What the plugin was built for.
        wanted: TorchVersion,
    },
    /// A directory without one of its libraries.
    #[error(
        "it needs libtorch {wanted}, and `{directory}` has no {file}: run `cargo xtask libtorch`, or set \
         torch_lib_dir (--torch-lib-dir) to the torch/lib that `pip install torch=={wanted}` makes"
    )]
    MissingTorch {
        /// The library.
        file: &'static str,
        /// Where it was looked for.
        directory: String,
        /// What the plugin was built for.
        wanted: TorchVersion,
    },
    /// A library of libtorch, or one that it needs itself.
    #[error("libtorch's {file} in `{directory}` cannot be opened")]
    BrokenTorch {
        /// The library.
        file: &'static str,
        /// Where it is.
        directory: String,
        /// The dynamic loader's reason.
        #[source]
        source: libloading::Error,
    },
    /// Something of that name, or a version from before it had the function.
    #[error(
        "the libtorch_cpu.so in `{directory}` does not tell its version, the plugin was built for {wanted}"
    )]
    NoTorchVersion {
        /// Where it is.
        directory: String,
        /// What the plugin was built for.
        wanted: TorchVersion,
    },
    /// With another version it would compute, wrongly.
    #[error(
        "libtorch {version} in `{directory}`, the plugin was built for {wanted}: set torch_lib_dir \
         (--torch-lib-dir) to that version"
    )]
    WrongTorch {
        /// What is there, or is open in this process already.
        version: TorchVersion,
        /// Where it is.
        directory: String,
        /// What the plugin was built for.
        wanted: TorchVersion,
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
