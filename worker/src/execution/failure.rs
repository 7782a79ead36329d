//! What can go wrong with a shard, sorted by what the coordinator should do about it.

use cappy_plugin_abi::{Code, Failure};
use cappy_proto::v1;

pub use cappy_proto::v1::FailureClass;

/// A shard that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExecutionError {
    /// What the coordinator should do.
    pub class: FailureClass,
    /// For programs: `invalid_argument`, `out_of_memory`, ...
    pub code: &'static str,
    /// One line for people.
    pub message: String,
}

impl ExecutionError {
    /// Fails everywhere: bad input, missing model.
    pub fn permanent(code: &'static str, message: impl Into<String>) -> Self {
        Self { class: FailureClass::Permanent, code, message: message.into() }
    }

    /// May pass on another attempt.
    pub fn attempt(code: &'static str, message: impl Into<String>) -> Self {
        Self { class: FailureClass::Attempt, code, message: message.into() }
    }

    /// The machine, not the work.
    pub fn infrastructure(code: &'static str, message: impl Into<String>) -> Self {
        Self { class: FailureClass::Infrastructure, code, message: message.into() }
    }

    /// A defect.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::attempt("internal", message)
    }

    /// The worker's own disk failed.
    pub fn disk(action: &str, error: &std::io::Error) -> Self {
        Self::infrastructure("disk", format!("cannot {action}: {error}"))
    }

    /// It ended because it was asked to.
    pub fn cancelled(&self) -> bool {
        self.code == "cancelled"
    }

    /// As `CompleteShard`'s sibling reports it.
    pub fn request(&self, lease: &v1::Lease) -> v1::FailShardRequest {
        v1::FailShardRequest {
            lease_id: lease.lease_id.clone(),
            fencing_token: lease.fencing_token,
            shard_id: lease.shard_id.clone(),
            failure_class: self.class.into(),
            code: self.code.to_owned(),
            message: self.message.clone(),
        }
    }
}

/// Wrong input and unusable models fail everywhere. Running out of memory with a single row is an attempt, so that a
/// row too large for every worker ends the shard; the halving before it costs none.
impl From<Failure> for ExecutionError {
    fn from(failure: Failure) -> Self {
        let (class, code) = match failure.code {
            Code::InvalidArgument => (FailureClass::Permanent, "invalid_argument"),
            Code::BadModel => (FailureClass::Permanent, "bad_model"),
            Code::Unsupported => (FailureClass::Permanent, "unsupported"),
            Code::OutOfMemory => (FailureClass::Attempt, "out_of_memory"),
            Code::NotFinite => (FailureClass::Attempt, "not_finite"),
            Code::FailedPrecondition | Code::Internal => (FailureClass::Attempt, "internal"),
            Code::Cancelled => (FailureClass::Infrastructure, "cancelled"),
            Code::PeerLost => (FailureClass::Infrastructure, "peer_lost"),
        };
        Self { class, code, message: failure.message }
    }
}
