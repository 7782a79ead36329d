//! The libtorch backend: PyTorch's kernels through `tch`, and groups of ranks through c10d.
//!
//! One request on its way: the host opens this library and hands a directory to [`LibtorchBackend`] (`backend.rs`).
//! `config.json` and checkpoints are read by `cappy_plugin_models`; `weights.rs` makes tensors of what is asked for. A
//! classifier is one of `encoder`'s networks, a generator is `t5`; both send packed tokens through linear layers and
//! groups of rows of nearly equal lengths (`ragged.rs`) through attention. `trainer` fine-tunes the same networks with
//! autograd. Several processes compute together through `group`: ranks of a trainer share the rows of every
//! micro-batch, ranks of a generator its weights. Without the feature `torch` none of this is there, and the backend
//! says so.

mod backend;
#[cfg(feature = "torch")]
mod cuda;
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
mod ragged;
#[cfg(feature = "torch")]
mod shim;
#[cfg(feature = "torch")]
pub mod t5;
#[cfg(feature = "torch")]
pub mod trainer;
#[cfg(feature = "torch")]
mod weights;

pub use backend::LibtorchBackend;

cappy_plugin_abi::export_backend!(LibtorchBackend);

/// The libtorch that this was built for, which the host compares with what it opens
/// ([`TORCH_ABI_PREFIX`](cappy_plugin_abi::border::declaration::TORCH_ABI_PREFIX)); 0: built without an engine.
#[used]
#[unsafe(export_name = concat!("cappy_plugin_torch_abi_", env!("CARGO_CRATE_NAME")))]
pub static TORCH_ABI: u64 = match u64::from_str_radix(env!("CAPPY_TORCH_ABI"), 10) {
    Ok(version) => version,
    Err(_) => panic!("build.rs writes a number"),
};
