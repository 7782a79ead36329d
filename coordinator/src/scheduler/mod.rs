//! Gives shards to workers.
//!
//! [`place`] decides, as a pure function of a snapshot, which pending shard goes to which worker; [`after_failure`]
//! decides what becomes of a shard whose lease ended without a commit; [`speculate`] which of the last shards of a stage
//! an idle worker tries as well; [`Scheduler`] is the loop around them: it
//! expires leases, lets the planner go on with jobs that changed, and grants what `place` decided. It holds nothing
//! that the store does not: a restarted scheduler goes on where the last one was.

mod actor;
mod gang;
mod lease;
mod placement;

pub(crate) use actor::{LOST_RANK, Scheduler, SchedulerHandle};
pub(crate) use lease::{
    Failures, MAX_ATTEMPTS, MAX_INTERRUPTIONS, RETRY_BACKOFF, RetryPolicy, Verdict, after_failure,
    after_split, is_about_rows,
};
pub(crate) use placement::{Offer, SPECULATE_AFTER, place, speculate};
