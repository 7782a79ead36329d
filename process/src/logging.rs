//! Logs on stderr: for people on a terminal, JSON otherwise.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// How much is logged when `CAPPY_LOG` says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors.
    Quiet,
    /// Warnings.
    Normal,
    /// What happens.
    Verbose,
    /// Everything.
    Debug,
}

impl Verbosity {
    /// From the counts of `-q` and `-v`.
    pub fn from_flags(quiet: bool, verbose: u8) -> Self {
        match (quiet, verbose) {
            (true, _) => Self::Quiet,
            (false, 0) => Self::Normal,
            (false, 1) => Self::Verbose,
            (false, _) => Self::Debug,
        }
    }

    fn directives(self) -> &'static str {
        match self {
            Self::Quiet => "error",
            Self::Normal => "warn",
            Self::Verbose => "warn,cappy=info",
            Self::Debug => "info,cappy=debug",
        }
    }
}

/// Starts logging once; a second call changes nothing. `CAPPY_LOG` (tracing's directives) overrides `verbosity`.
pub fn start(verbosity: Verbosity) {
    // Crates are named `cappy_worker` and so on; tracing matches targets by prefix.
    let filter =
        EnvFilter::try_from_env("CAPPY_LOG").unwrap_or_else(|_| EnvFilter::new(verbosity.directives()));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // A failure means that a subscriber is there already, which is what the caller wants.
    let _ = if io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
}
