//! Model names become directories that a backend can open.
#![forbid(unsafe_code)]

mod cache;
mod cached;
pub mod check;
pub mod config;
mod demo;
mod derived;
pub mod download;
mod error;
mod fingerprint;
pub mod flax;
pub mod header;
pub mod name;
pub mod pickle;
mod progress;
mod resolve;
mod settings;
pub mod tokenizer;
pub mod weights;
mod writer;

pub use cached::{CachedModel, VerifiedFile};
pub use config::Architecture;
pub use error::{ErrorKind, Problem, ResolveError};
pub use fingerprint::Fingerprints;
pub use name::Role;
pub use progress::{Progress, Silent};
pub use resolve::{Hub, Origin, ResolvedModel};
pub use settings::{HubSettings, SettingsError, Token};
pub use tokenizer::load_tokenizer;
