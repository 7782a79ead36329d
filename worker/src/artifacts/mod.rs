//! Artifacts on this machine: a bounded cache by content (`cache.rs`), and the way to and from the coordinator
//! (`transfer.rs`).

mod cache;
mod transfer;

pub use cache::{ArtifactCache, CachedFile};
pub use transfer::{TransferError, fetch, upload};
