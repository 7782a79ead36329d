//! The coordinator: turns a submitted job into stages, stages into shards, and leases shards to workers.
//!
//! One job, followed through the files:
//!
//! 1. `rpc::jobs` receives `SubmitJob`; `planner::check` refuses it with every mistake at once, or its kind
//!    (`planner::kinds`) lays out its stages and the job store (`store`, one trait, SQLite behind it) writes all of it in
//!    one transaction. From here on the job is not lost.
//! 2. The scheduler's loop (`scheduler::actor`) asks `planner::next_steps` what opens. A stage whose fingerprint was
//!    committed before takes over the earlier artifacts; another is cut into shards (`planner::stages`).
//! 3. Workers hold a session (`rpc::workers`, `membership`). `scheduler::placement` pairs pending shards with free
//!    slots, the store grants a lease with a fencing token, the session carries it to the worker. Pure stages are leased
//!    to the coordinator itself and computed by `local`.
//! 4. The worker reads and writes artifacts (`rpc::artifacts`, `artifacts`) and completes the shard: the store commits it
//!    where lease and fencing token still match, once. A heartbeat that stays away lets the lease expire; what becomes
//!    of the shard then is decided by `scheduler::lease`.
//! 5. Meanwhile `rpc::watch` streams snapshots with `planner::progress`, until the job ends; `rpc::jobs` then lists the
//!    files that `planner::results` finds.
//!
//! A job that is removed takes its artifacts along, unless others hold them (`collection`).
//!
//! Nothing that matters is in memory only: a coordinator that is killed and started again goes on from the store.
//!
//! ```no_run
//! use cappy_coordinator::{Config, start};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn run() -> Result<(), cappy_coordinator::StartError> {
//! let shutdown = CancellationToken::new();
//! let listen = "127.0.0.1:0".parse().expect("an address");
//! let handle = start(Config::new(listen, "sqlite://state/jobs.sqlite", "state/artifacts"), shutdown.clone()).await?;
//! println!("listening on {}", handle.local_addr());
//! shutdown.cancel();
//! handle.stopped().await;
//! # Ok(())
//! # }
//! ```

mod artifacts;
mod changes;
mod collection;
pub mod config;
mod context;
mod http;
mod local;
mod membership;
mod metrics;
mod planner;
mod rendezvous;
mod rpc;
mod scheduler;
mod service;
mod store;

pub use config::Config;
pub use service::{Handle, StartError, start};
