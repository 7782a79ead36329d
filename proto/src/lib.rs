//! The wire: package `cappy.v1`, compiled from the `.proto` files of this folder, with the ids that travel on it.
//!
//! A request's way: a client fills a [`v1::SubmitJobRequest`]; the coordinator answers with a [`v1::Job`] whose
//! id is a [`JobId`]; a worker's [`v1::SessionRequest`] hello carries [`PROTOCOL_VERSION`].

mod ids;
mod limits;
mod timeout;

pub use ids::{IdError, JobId, LeaseId, ModelId, ShardId, WorkerId};
pub use limits::{MAX_MESSAGE_BYTES, UPLOAD_CHUNK_BYTES};
pub use timeout::timeout;

/// Version of the worker protocol. A coordinator refuses a worker with another one, naming both.
pub const PROTOCOL_VERSION: u32 = 1;

/// Encoded `FileDescriptorSet` of every file, for `grpc.reflection.v1`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Generated messages, clients and servers.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod v1 {
    tonic::include_proto!("cappy.v1");
}
