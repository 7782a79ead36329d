//! What becomes of a shard whose lease ended without a commit: a pure function, the same for every store.

use std::time::Duration;

use crate::store::FailureClass;

/// Attempts that a shard gets before it is set aside as poison.
pub(crate) const MAX_ATTEMPTS: u32 = 3;
/// Infrastructure failures do not count as attempts; yet a shard that loses this many workers is taken for the
/// cause, so that every job ends.
pub(crate) const MAX_INTERRUPTIONS: u32 = 50;
/// Workers that half of a shard which was taken for the cause may lose before it is cut again.
const INTERRUPTIONS_OF_A_HALF: u32 = 2;
/// Pause after the first failed attempt; doubles with each.
pub(crate) const RETRY_BACKOFF: Duration = Duration::from_secs(1);
/// Longest pause between attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// How often a shard is tried.
#[derive(Clone, Debug)]
pub(crate) struct RetryPolicy {
    pub(crate) max_attempts: u32,
    pub(crate) max_interruptions: u32,
    pub(crate) backoff: Duration,
}

/// Failures of a shard so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failures {
    /// Counted attempts that failed.
    pub(crate) attempts: u32,
    /// Infrastructure failures and expired leases.
    pub(crate) interruptions: u32,
}

/// What becomes of the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Pending again after the pause.
    Retry { after: Duration },
    /// Failed for good.
    SetAside,
}

/// Counts one more failure and decides.
pub(crate) fn after_failure(
    before: Failures,
    class: FailureClass,
    policy: &RetryPolicy,
) -> (Failures, Verdict) {
    let mut failures = before;
    let (count, limit) = match class {
        FailureClass::Permanent => {
            failures.attempts += 1;
            return (failures, Verdict::SetAside);
        }
        FailureClass::Attempt => {
            failures.attempts += 1;
            (failures.attempts, policy.max_attempts)
        }
        FailureClass::Infrastructure => {
            failures.interruptions += 1;
            (failures.interruptions, policy.max_interruptions)
        }
    };
    if count >= limit {
        return (failures, Verdict::SetAside);
    }
    let doublings = (count - 1).min(16);
    (failures, Verdict::Retry { after: (policy.backoff * 2u32.pow(doublings)).min(MAX_BACKOFF) })
}

/// Whether a failure may be about single rows. A model that is not there, or a service out of reach, fails every row.
pub(crate) fn is_about_rows(code: &str) -> bool {
    const ABOUT_ALL: [&str; 9] = [
        "not_found",
        "bad_model",
        "model_differs",
        "unsupported",
        "permission_denied",
        "unauthenticated",
        "unavailable",
        "disk",
        "transfer",
    ];
    !ABOUT_ALL.contains(&code)
}

/// With what a half of a shard that failed for good begins. The search for the row that fails shall end soon, so a half
/// fails at once and is cut again; a row that stands alone gets all attempts before it is set aside.
pub(crate) fn after_split(rows: u64, policy: &RetryPolicy) -> Failures {
    if rows <= 1 {
        return Failures::default();
    }
    Failures {
        attempts: policy.max_attempts.saturating_sub(1),
        interruptions: policy.max_interruptions.saturating_sub(INTERRUPTIONS_OF_A_HALF),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_and_infrastructure_is_not() {
        let policy = RetryPolicy { max_attempts: 3, max_interruptions: 5, backoff: Duration::from_secs(1) };
        let mut failures = Failures::default();
        let mut verdicts = Vec::new();
        for class in [
            FailureClass::Attempt,
            FailureClass::Infrastructure,
            FailureClass::Infrastructure,
            FailureClass::Attempt,
            FailureClass::Attempt,
        ] {
            let verdict;
            (failures, verdict) = after_failure(failures, class, &policy);
            verdicts.push(verdict);
        }
        let retry = |seconds| Verdict::Retry { after: Duration::from_secs(seconds) };
        assert_eq!(verdicts, [retry(1), retry(1), retry(2), retry(2), Verdict::SetAside]);
        assert_eq!(failures, Failures { attempts: 3, interruptions: 2 });

        let (_, verdict) = after_failure(Failures::default(), FailureClass::Permanent, &policy);
        assert_eq!(verdict, Verdict::SetAside);
        let worn = Failures { attempts: 0, interruptions: 4 };
        assert_eq!(after_failure(worn, FailureClass::Infrastructure, &policy).1, Verdict::SetAside);
        let long = RetryPolicy { max_interruptions: 100, ..policy };
        let (_, verdict) =
            after_failure(Failures { attempts: 0, interruptions: 40 }, FailureClass::Infrastructure, &long);
        assert_eq!(verdict, Verdict::Retry { after: MAX_BACKOFF });
    }

    #[test]
    fn halves_fail_at_once_and_single_rows_get_every_chance() {
        let policy = RetryPolicy { max_attempts: 3, max_interruptions: 50, backoff: Duration::from_secs(1) };
        let half = after_split(64, &policy);
        assert_eq!(after_failure(half, FailureClass::Attempt, &policy).1, Verdict::SetAside);
        let (once, verdict) = after_failure(half, FailureClass::Infrastructure, &policy);
        assert!(matches!(verdict, Verdict::Retry { .. }));
        assert_eq!(after_failure(once, FailureClass::Infrastructure, &policy).1, Verdict::SetAside);
        assert_eq!(after_split(1, &policy), Failures::default());
        assert!(
            is_about_rows("invalid_argument")
                && is_about_rows("lease_expired")
                && !is_about_rows("bad_model")
        );
    }
}
