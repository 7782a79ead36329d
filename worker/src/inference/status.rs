//! Failures as gRPC statuses with details for programs.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::execution::ExecutionError;

/// When another try is worth while, at least and at most.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// A request that is wrong, by field.
pub fn invalid(field: &str, reason: impl Into<String>) -> Status {
    let reason = reason.into();
    let details = ErrorDetails::with_bad_request_violation(field, reason.clone());
    Status::with_error_details(Code::InvalidArgument, format!("`{field}`: {reason}"), details)
}

/// Too many wait already; there may be room after `time`.
pub fn busy(what: &str, time: Duration) -> Status {
    let time = time.clamp(RETRY_AFTER.0, RETRY_AFTER.1);
    let details = ErrorDetails::with_retry_info(Some(time));
    let message = format!("{what}: try again in {:.1} s", time.as_secs_f64());
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// The call was dropped before it was answered: the process ends, or the call met a defect that the log tells.
pub fn abandoned() -> Status {
    Status::unavailable("the worker gave the call up: try again, or another worker")
}

impl From<ExecutionError> for Status {
    fn from(error: ExecutionError) -> Self {
        let code = match error.code {
            "invalid_argument" => return invalid("rows", error.message),
            "out_of_memory" => return busy(&error.message, RETRY_AFTER.1),
            "not_found" => Code::NotFound,
            "bad_model" | "unsupported" | "permission_denied" | "model_differs" | "does_not_fit" => {
                Code::FailedPrecondition
            }
            "unavailable" => Code::Unavailable,
            "cancelled" => Code::Cancelled,
            _ => Code::Internal,
        };
        let details = ErrorDetails::with_error_info(error.code, "cappy", [] as [(String, String); 0]);
        Status::with_error_details(code, error.message, details)
    }
}
