//! Online calls to a cluster that has too much to do just now.

use std::time::Duration;

use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

/// Tries of one call.
const TRIES: u32 = 12;

/// Longest pause between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// Calls; where the cluster says when to try again, tries again then, with pauses that grow.
///
/// # Errors
/// The last try's, and any that another try would not change.
pub async fn patiently<T>(call: impl AsyncFn() -> Result<Response<T>, Status>) -> Result<T, Status> {
    let mut tried = 1;
    loop {
        match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) if tried < TRIES => match pause(&status, tried) {
                Some(pause) => {
                    // Whoever waits in vain shall know for what.
                    tracing::warn!("{}; trying again in {} s", status.message(), pause.as_secs().max(1));
                    tokio::time::sleep(pause).await;
                }
                None => return Err(status),
            },
            Err(status) => return Err(status),
        }
        tried += 1;
    }
}

fn pause(status: &Status, tried: u32) -> Option<Duration> {
    if !matches!(status.code(), Code::ResourceExhausted | Code::Unavailable) {
        return None;
    }
    let asked = status.get_details_retry_info()?.retry_delay?;
    Some(asked.saturating_mul(1 << (tried - 1).min(4)).min(MAX_PAUSE))
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let hint = |code, seconds| {
            let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(seconds)));
            Status::with_error_details(code, "busy", details)
        };
        assert_eq!(pause(&hint(Code::ResourceExhausted, 1), 1), Some(Duration::from_secs(1)));
        assert_eq!(pause(&hint(Code::ResourceExhausted, 1), 3), Some(Duration::from_secs(4)));
        assert_eq!(pause(&hint(Code::Unavailable, 9), 9), Some(MAX_PAUSE));
        assert_eq!(pause(&hint(Code::InvalidArgument, 1), 1), None);
        assert_eq!(pause(&Status::resource_exhausted("too large"), 1), None, "no hint");
    }
}
