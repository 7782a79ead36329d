//! What a job consists of and what happens to it next. Pure: everything here is a function of the job's spec and of a
//! snapshot of its stages, so it is the same after a restart and on another coordinator.
//!
//! [`validate`] refuses a bad spec with every mistake at once; [`bigbench`] lays out the stages; [`next_steps`] decides,
//! whenever a stage has ended, which stages open, which are skipped, and when the job is over; [`tasks`] cuts an
//! opening stage into shards; [`fingerprint`] names what a stage computes; [`progress`] estimates; [`results`] lists files.

mod bigbench;
mod fingerprint;
mod next;
mod progress;
mod results;
mod tasks;
mod validate;

pub(crate) use bigbench::{bigbench_spec, plan, title};
pub(crate) use next::next_steps;
pub(crate) use progress::{ClusterFacts, RunningLease, progress};
pub(crate) use results::result_files;
pub(crate) use validate::{Violation, required_artifacts, validate};
