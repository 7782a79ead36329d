//! The default backend: pure Rust on the CPU, candle's tensor operations on CUDA.
//!
//! One request on its way: the host hands a directory to [`CandleBackend::load_scorer`](backend::CandleBackend)
//! (`backend.rs`), which reads `config.json` and maps the safetensors files (both in
//! `cappy_plugin_models`). On
//! the CPU the weights are packed for the matrix product (`kernels/gemm.rs`) into a
//! [`FastEncoder`](encoder::fast::FastEncoder); `score` then cuts the ragged batch into pieces, sends all tokens of a
//! piece through every linear layer at once, attends row by row (`kernels/attention.rs`), and returns raw logits.
//! On CUDA the same model runs in candle's operations ([`encoder::plain`]), which is also what the fast path is
//! tested against. Generators are T5 ([`t5`]). Fine-tuning ([`trainer`]) shares the kernels and has its backward pass written out.
//!
//! ```
//! use cappy_plugin_abi::{Backend, LoadRequest, TokenRows, Unattended};
//!
//! let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/encoders/roberta");
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
pub mod t5;
pub mod trainer;

pub use backend::CandleBackend;
pub use cappy_plugin_models::weights;

cappy_plugin_abi::export_backend!(CandleBackend);
