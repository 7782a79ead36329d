//! A worker: takes shards from the coordinator, answers online calls, computes both with the same backends.
//!
//! [`start`] (`service.rs`) opens the backends, takes a directory of its own below the cache directory, and runs two
//! things side by side. The [`session`] with the coordinator receives leases; for each, [`artifacts`] fetches the
//! inputs, [`execution`] runs the task on a blocking thread, [`artifacts`] uploads the outputs, and the session
//! completes the shard. The [`inference`] service puts online calls in line for each model.
//!
//! Both end in [`compute`], where texts become numbers: [`tokenization`] encodes rows as transformers does,
//! [`batching`] packs them by token budget, and the backend is called through [`residency`], which keeps loaded models
//! within a memory budget. A generator that is no model here but a service elsewhere is asked through [`endpoint`].
//! A shard for several workers is computed by all of them at once, each a rank of a [`group`].
//! [`models`] finds a model's files ([`registered`] those of a scorer that a job has trained),
//! [`engine`] says which backend runs them.
//!
//! The program `cappy-worker` runs one such worker in a child process for each device, under the [`supervisor`].

pub mod artifacts;
pub mod batching;
pub mod checkpoint;
pub mod compute;
mod config;
pub mod coordinator;
pub mod endpoint;
pub mod engine;
pub mod execution;
pub mod group;
pub mod inference;
pub mod memory;
pub mod models;
pub mod pace;
pub mod registered;
pub mod residency;
mod service;
pub mod session;
pub mod settings;
pub mod supervisor;
pub mod tokenization;
pub mod weights;

pub use config::{
    Backends, Config, DEFAULT_CACHE_BYTES, DEFAULT_CHECKPOINT_INTERVAL, DEFAULT_INTERACTIVE_WAIT,
    DEFAULT_QUEUE, DEFAULT_SLOTS, host_name,
};
pub use memory::MemoryBudget;
pub use service::{Handle, StartError, start};
