//! Whole jobs over the real wire, with workers that a test can direct.

mod access;
mod fake_worker;
mod groups;
mod harness;
mod kinds;
mod lifecycle;
mod router;
mod rows;
mod sharing;
mod storage;
