//! What whole-cluster tests stand on: the real binaries, in processes of their own, with state of their own.
//!
//! One story's way: [`programs`] has cargo build the three binaries and the backend plugins, once; a [`Sandbox`] is a
//! temporary directory with everything that a process may read or write, and an environment without a trace of the
//! caller's; a [`Cluster`] starts a coordinator and workers in it on ports that the system chooses; a [`Client`] runs
//! `cappy-client` and hands back its exit code and what it printed; an [`Observer`] asks the coordinator over gRPC
//! and waits for states. [`Running`] kills the process and its children when it goes, and shows its log when the
//! test fails. [`golden`] compares output with a committed file.

mod client;
mod cluster;
mod files;
mod golden;
mod observer;
mod process;
mod programs;
mod sandbox;

pub use client::{Client, Ended};
pub use cluster::{Cluster, ClusterPlan, Coordinator, Worker};
pub use files::{json_lines, tree};
pub use golden::golden;
pub use observer::Observer;
pub use process::{PATIENCE, Running, Signal, wait_until};
pub use programs::{Programs, programs};
pub use sandbox::Sandbox;
