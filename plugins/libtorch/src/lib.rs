//! The libtorch backend: PyTorch's kernels through `tch`, and groups of ranks through c10d.

mod backend;

pub use backend::LibtorchBackend;

cappy_plugin_abi::export_backend!(LibtorchBackend);
