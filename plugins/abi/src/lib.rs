//! The contract between Cappy and its model backends.

mod api;
mod failure;
pub mod random;

pub use api::*;
pub use failure::{Code, Failure};
