//! How a program ends, for scripts.

use std::process::ExitCode;

/// Exit codes of every binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Everything was done.
    Done = 0,
    /// The job or request failed.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The coordinator cannot be reached.
    Unreachable = 3,
    /// Done, but some rows failed.
    Partial = 4,
    /// Stopped by Ctrl-C.
    Interrupted = 130,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}
