//! The gRPC services: requests in, statuses out. tonic stays in here.

mod artifacts;
mod authentication;
mod cluster;
mod inference;
mod jobs;
mod server;
mod status;
mod view;
mod watch;
mod workers;

pub(crate) use server::{serve, transport};
