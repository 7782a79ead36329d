//! Finds backends, checks them, opens them: the only place that calls `dlopen`.
//!
//! A worker makes a [`Registry`], links in what it carries ([`Registry::add_builtin`]) and looks through its plugin
//! directories ([`Registry::discover`]). Each `libcappy_plugin_*.so` there becomes an [`Entry`]:
//!
//! 1. `trust.rs`: a file that others could write, or that lies elsewhere, is refused.
//! 2. `inspect.rs`: its declaration is read from the file, without running any of its code; another ABI is refused
//!    with both versions. The entry is [`State::Declared`].
//! 3. `library.rs`: when a model wants it, it is mapped, for good, and checked once more: [`State::Loaded`]. Where it
//!    needs libtorch, `torch.rs` opens that first, and refuses another version than the plugin was built for.
//! 4. Its factory runs and it describes itself: [`State::Ready`].
//!
//! A refusal ([`Refusal`]) stays in the list with its reason, for `cappy-worker plugins`. [`Registry::choose`] picks
//! the backend for a model by name, architecture, dtype and device (`choice.rs`).
//!
//! ```
//! use cappy_plugin_host::{Registry, Role, Want};
//!
//! let mut registry = Registry::default();
//! registry.add_builtin(cappy_plugin_echo::Echo)?;
//! let want = Want { architecture: Some("echo"), ..Want::new(Role::Scorer) };
//! assert_eq!(registry.choose(&want)?.describe().name, "echo");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod choice;
mod inspect;
mod library;
mod refusal;
mod registry;
#[cfg(feature = "testing")]
pub mod testing;
mod torch;
mod trust;

pub use cappy_plugin_abi::builtin;
pub use choice::{ChooseError, Role, Want};
pub use library::Mapped;
pub use refusal::{DiscoverError, Refusal};
pub use registry::{Entry, Origin, Registry, State};
pub use torch::TorchVersion;
