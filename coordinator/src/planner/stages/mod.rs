//! The kinds of stages that several kinds of jobs have.

mod generate;
mod model;
mod ranks;
mod register;
mod resolve;
mod score;
mod shards;
mod train;

pub(super) use generate::Generate;
pub(super) use model::Model;
pub(super) use register::{Register, TRAINING_RECORD};
pub(super) use resolve::{Wanted, resolve};
pub(super) use score::{Score, max_tokens};
pub(super) use shards::{Run, local, local_fingerprint, refs};
pub(super) use train::{Train, updates};
