//! The numbers' inner loops, shared by the models of this backend: matrix products ([`gemm()`]), elementwise
//! functions ([`activation`]), reductions over rows ([`rowwise`]), attention over ragged rows ([`attention`]), rotary
//! positions ([`rotary`]),
//! dropout ([`dropout`]) and reusable memory ([`Buffer`]).
//!
//! Everything but `cuda` (how a GPU is opened, whose kernels are candle's) is f32 over slices, picks AVX-512, AVX2 or portable code at run time ([`simd`]), and gives results
//! that depend neither on the number of threads nor on the other rows of a batch. Each kernel has a plain form
//! beside it in the tests.

pub mod activation;
pub mod attention;
mod buffer;
#[cfg(feature = "cuda")]
pub mod cuda;
mod gemm;
mod microkernel;
mod operands;
mod packing;
#[cfg(test)]
pub(crate) mod reference;
pub mod rotary;
pub mod rowwise;

pub use buffer::Buffer;
pub use cappy_plugin_models::{dropout, simd};
pub use gemm::{Epilogue, gemm, gemm_here};
pub use operands::{Matrix, Packed};
