//! A command that did not do what was asked: a line for people, an exit code for scripts.

use std::fmt;

use cappy_process::exit::Code;
use tonic::Status;

/// See the module.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: Code,
    /// What is wrong and what to do, lowercase, without a full stop.
    pub message: String,
}

/// What a command returns.
pub type Outcome<T = Code> = Result<T, Failure>;

impl Failure {
    /// The work failed.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self { code: Code::Failed, message: message.to_string() }
    }

    /// The command line asks for something that cannot be.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { code: Code::Usage, message: message.to_string() }
    }

    /// Nobody answers.
    pub fn unreachable(message: impl fmt::Display) -> Self {
        Self { code: Code::Unreachable, message: message.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            // A status that carries a source was made here, by a connection that broke.
            tonic::Code::Unavailable
            | tonic::Code::Unknown
            | tonic::Code::Internal
            | tonic::Code::Cancelled
                if std::error::Error::source(&status).is_some() =>
            {
                Code::Unreachable
            }
            tonic::Code::InvalidArgument => Code::Usage,
            _ => Code::Failed,
        };
        let message = match status.message() {
            "" => format!("the coordinator answered {:?}", status.code()),
            text => text.to_owned(),
        };
        Self { code, message }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error)
    }
}

/// Adds what was being done to an error that tells only why it failed.
pub trait Context<T> {
    /// `doing: why`.
    fn context(self, doing: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Outcome<T> {
        self.map_err(|error| Failure::failed(format!("{doing}: {error}")))
    }
}
