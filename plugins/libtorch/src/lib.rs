//! The libtorch backend: PyTorch's kernels through `tch`, and groups of ranks through c10d.

mod backend;
#[cfg(feature = "torch")]
mod device;
#[cfg(feature = "torch")]
pub mod encoder;
#[cfg(feature = "torch")]
mod engine;
#[cfg(feature = "torch")]
pub mod group;
#[cfg(feature = "torch")]
pub mod inference;
#[cfg(feature = "torch")]
pub mod t5;
#[cfg(feature = "torch")]
mod weights;

pub use backend::LibtorchBackend;

cappy_plugin_abi::export_backend!(LibtorchBackend);
