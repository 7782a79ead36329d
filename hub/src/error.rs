//! Why a model could not be had: the name that was asked for, and one line that says what to do.

use std::io;

use crate::check::CheckError;
use crate::download::DownloadError;
use crate::flax::FlaxError;
use crate::label::LabelError;
use crate::name::NameError;
use crate::pickle::PickleError;
use crate::tokenizer::TokenizerError;

/// A model could not be resolved. Its text is one line, complete without its sources.
#[derive(Debug, thiserror::Error)]
#[error("model `{model}`: {problem}")]
pub struct ResolveError {
    /// As the caller named it.
    pub model: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a model.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Which of its labels ranks.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// Its files are absent, corrupt, or of a kind that is not supported.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// Its tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Its `pytorch_model.bin`.
    #[error("`{file}`: {reason}")]
    Pickle {
        /// Relative to the model's directory.
        file: String,
        /// What the file holds.
        reason: PickleError,
    },
    /// Its `flax_model.msgpack`.
    #[error("`{file}`: {reason}")]
    Flax {
        /// Relative to the model's directory.
        file: String,
        /// What the file holds.
        reason: FlaxError,
    },
    /// The hub.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// This machine's disk.
    #[error("cannot {action}: {reason}")]
    Io {
        /// `read config.json`.
        action: String,
        /// What the system said.
        reason: io::Error,
    },
}

/// What a caller can do about a [`ResolveError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such model, or it lacks a file: it fails everywhere.
    NotFound,
    /// The model is there and cannot be used: it fails everywhere.
    Invalid,
    /// The hub wants a token, or another one.
    Denied,
    /// The hub cannot be reached (or must not be): may succeed later, or elsewhere.
    Unavailable,
    /// This machine failed: disk full, no permission.
    Machine,
}

impl ResolveError {
    /// What can be done about it.
    pub fn kind(&self) -> ErrorKind {
        match &self.problem {
            Problem::Name(NameError::NoDirectory) => ErrorKind::NotFound,
            Problem::Check(CheckError::Missing { .. }) => ErrorKind::NotFound,
            Problem::Name(_) | Problem::Label(_) | Problem::Check(_) | Problem::Tokenizer(_) => {
                ErrorKind::Invalid
            }
            Problem::Pickle { .. } | Problem::Flax { .. } => ErrorKind::Invalid,
            Problem::Download(error) => error.kind(),
            Problem::Io { .. } => ErrorKind::Machine,
        }
    }
}

/// Gives an I/O failure the words that say what was tried.
pub(crate) trait While<T> {
    /// `action` completes "cannot ...".
    fn trying(self, action: impl FnOnce() -> String) -> Result<T, Problem>;
}

impl<T> While<T> for io::Result<T> {
    fn trying(self, action: impl FnOnce() -> String) -> Result<T, Problem> {
        self.map_err(|reason| Problem::Io { action: action(), reason })
    }
}
