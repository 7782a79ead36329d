//! Errors as a client may see them: a code, a message without paths or addresses, and details that programs can read.
//! The whole chain is logged here, once.

use std::{error::Error, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{artifacts::ArtifactError, planner::Violation, store::StoreError};

/// After this a client may try again what failed for want of room or peace.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// INVALID_ARGUMENT with one field.
pub(crate) fn bad_field(field: &str, reason: impl Into<String>) -> Status {
    bad_fields(vec![Violation::new(field, reason)])
}

/// INVALID_ARGUMENT with every mistake.
pub(crate) fn bad_fields(violations: Vec<Violation>) -> Status {
    let lines: Vec<String> =
        violations.iter().map(|violation| format!("{}: {}", violation.field, violation.reason)).collect();
    let details: Vec<FieldViolation> = violations
        .into_iter()
        .map(|violation| FieldViolation::new(violation.field, violation.reason))
        .collect();
    Status::with_error_details(
        Code::InvalidArgument,
        lines.join("; "),
        ErrorDetails::with_bad_request(details),
    )
}

/// A code with a hint when to try again.
pub(crate) fn try_again(code: Code, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, ErrorDetails::with_retry_info(Some(RETRY_AFTER)))
}

/// What went wrong inside is for the log; the client learns that something did.
fn internal(error: &(dyn Error + 'static), message: &str) -> Status {
    tracing::error!(error, "request failed");
    Status::internal(message)
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::NotFound { .. } => Self::not_found(text),
            StoreError::Ambiguous { what, .. } => bad_field(&format!("{what}_id"), text),
            StoreError::WrongState(_) | StoreError::Fenced { .. } | StoreError::UnknownArtifact { .. } => {
                Self::failed_precondition(text)
            }
            StoreError::KeyConflict { .. } => bad_field("idempotency_key", text),
            StoreError::Full(_) => {
                tracing::error!(error = &error as &dyn Error, "the store is full");
                try_again(Code::Unavailable, "the coordinator has no space left; free some and try again")
            }
            StoreError::Busy(_) => try_again(Code::Unavailable, "the coordinator's store is busy"),
            _ => internal(&error, "the coordinator's store failed; see its log"),
        }
    }
}

impl From<ArtifactError> for Status {
    fn from(error: ArtifactError) -> Self {
        let text = error.to_string();
        match error {
            ArtifactError::BadId(_) => bad_field("artifact.id", text),
            ArtifactError::NotFound(_) => Self::not_found(text),
            ArtifactError::Busy { .. } => try_again(Code::Unavailable, text),
            ArtifactError::BadOffset { .. } => bad_field("header.offset", text),
            ArtifactError::TooLong { .. } => bad_field("chunk", text),
            ArtifactError::TooShort { .. } => Self::aborted(text),
            ArtifactError::WrongHash { .. } => bad_field("header.artifact.id", text),
            ArtifactError::Full(_) => {
                tracing::error!(error = &error as &dyn Error, "the artifact store is full");
                try_again(Code::Unavailable, "the coordinator has no space left; free some and try again")
            }
            ArtifactError::Io(_) | ArtifactError::Objects(_) | ArtifactError::Unsupported => {
                internal(&error, "the artifact store failed; see the coordinator's log")
            }
        }
    }
}
