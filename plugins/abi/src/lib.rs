//! The contract between Cappy and its model backends.
//!
//! A backend is an ordinary implementation of the safe traits in [`Backend`] and its neighbours (`api.rs`), failing
//! with a [`Failure`] (`failure.rs`) and drawing random numbers by key ([`random`]). It ends with one line,
//! [`export_backend!`], and is compiled to a shared library.
//!
//! One request on its way: the host calls [`Scorer::score`] on the object it got from [`Backend::load_scorer`]. That
//! object is an adapter (`border/host.rs`): it checks the batch (`checks.rs`), turns borrowed slices into C structs
//! (`border/values.rs`) and calls through a table of C functions (`border/tables.rs`). On the other side
//! `border/plugin.rs` turns them back, calls the backend's own `score` inside `catch_unwind`, and hands the scores
//! back in a buffer that knows how to free itself. The adapter checks that there is one finite score a label and row.
//! A backend that is linked in ([`builtin`]) takes the same way, so nothing behaves differently when it is opened.
//!
//! `plugins/suite` holds the conformance suite that every backend passes, linked or opened.
//!
//! ```
//! use cappy_plugin_abi::{Backend, Descriptor, Failure, Generator, LoadRequest, Scorer, Trainer};
//!
//! struct Empty;
//!
//! impl Backend for Empty {
//!     fn describe(&self) -> Descriptor {
//!         Descriptor { name: "empty".into(), ..Descriptor::default() }
//!     }
//!     fn load_scorer(&self, _: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
//!         Err(Failure::unsupported("`empty` loads no scorers"))
//!     }
//!     fn load_generator(&self, _: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
//!         Err(Failure::unsupported("`empty` loads no generators"))
//!     }
//!     fn load_trainer(&self, _: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
//!         Err(Failure::unsupported("`empty` loads no trainers"))
//!     }
//! }
//!
//! cappy_plugin_abi::export_backend!(Empty);
//!
//! # fn main() {
//! let backend = cappy_plugin_abi::builtin(Empty).expect("describes itself");
//! assert_eq!(backend.describe().name, "empty");
//! # }
//! ```

mod api;
pub mod border;
mod checks;
mod failure;
pub mod random;

pub use api::*;
pub use border::{ABI_VERSION, builtin};
pub use failure::{Code, Failure};
