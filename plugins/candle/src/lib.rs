//! The default backend: pure Rust on the CPU, candle's tensor operations on CUDA.
//!
//! One request on its way: the host hands a directory to [`CandleBackend::load_scorer`](backend::CandleBackend)
//! (`backend.rs`), which reads `config.json` and maps the safetensors files (both in
//! `cappy_plugin_models`). On
//! the CPU the weights are packed for the matrix product (`kernels/gemm.rs`) into a
//! [`FastEncoder`](encoder::fast::FastEncoder); `score` then cuts the ragged batch into pieces, sends all tokens of a
//! piece through every linear layer at once, attends row by row (`kernels/attention`), and returns raw logits.
//! On CUDA the same model runs in candle's operations ([`encoder::plain`]), which is also what the fast path is tested
//! against: over groups of rows of nearly equal length (`encoder/groups.rs`), in bf16 unless f32 is asked for ([`place`]),
//! with kernels of our own where candle would move numbers about (`kernels/cuda`).
//! Generators are T5 ([`t5`]). Fine-tuning ([`trainer`]) shares the kernels and has its backward pass written out.
//!
//! # CUDA
//!
//! `cargo build --release -p cappy-plugin-candle --features cuda` compiles candle's kernels and ours with `nvcc` (12
//! minutes on two cores; no GPU is needed). It wants the CUDA toolkit (nvcc, cudart, cuBLAS, cuRAND, NVRTC: the packages
//! `nvidia-cuda-nvcc`, `-crt`, `-nvvm`, `-cccl`, `-cuda-runtime`, `-cuda-nvrtc`, `-curand`, `-cublas` of PyPI will do) no
//! newer than the driver that shall run it, and these in the environment: `CUDA_HOME` (the toolkit), `PATH` with its
//! `bin`, `LIBRARY_PATH` with its `lib` and, where there is no driver, a directory with a stub `libcuda.so`;
//! `CUDA_COMPUTE_CAP` names the GPU's compute capability without the dot (`80`: A100, `89`: L40, `90`: H100), as kernels
//! are built for one generation. bf16 needs 80 or more. The library is linked to the driver (`libcuda.so.1`), so that it
//! opens only on a machine that has one; `libcudart`, `libcublas` with its `libcublasLt`, and `libcurand` of the versions
//! that it was built with must be found when it does (`LD_LIBRARY_PATH`).
//!
//! Scorers run on a GPU; generators and trainers of this backend are for the CPU.
//!
//! ```
//! use cappy_plugin_abi::{Backend, LoadRequest, TokenRows, Unattended};
//!
//! let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../suite/fixtures/encoders/roberta");
//! let request = LoadRequest {
//!     model_dir: dir.into(),
//!     config_json: std::fs::read_to_string(format!("{dir}/config.json")).unwrap(),
//!     device: "cpu".into(),
//!     dtype: "auto".into(),
//!     options_json: "{}".into(),
//! };
//! let mut scorer = cappy_plugin_candle::CandleBackend.load_scorer(&request).unwrap();
//! let mut rows = TokenRows::new();
//! rows.push(&[0, 15, 27, 2]);
//! rows.push(&[0, 99, 2]);
//! assert_eq!(scorer.score(rows.view(), &Unattended).unwrap().len(), 2);
//! ```

pub mod backend;
pub mod encoder;
pub mod kernels;
pub mod place;
pub mod t5;
pub mod trainer;

pub use backend::CandleBackend;
pub use cappy_plugin_models::weights;

cappy_plugin_abi::export_backend!(CandleBackend);
