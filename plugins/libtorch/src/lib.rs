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
