//! Model names become directories that a backend can open: `config.json`, `tokenizer.json` and safetensors, checked.
//!
//! One request, `hub.resolve("cappy-large", Role::Scorer, &progress)`, passes through these files:
//!
//! 1. [`name`] understands the name: a directory, a hub id with an optional `@revision`, a short name, or `demo`
//!    (which [`mod@demo`] writes from this program to disk), each with an optional `#label`. [`settings`](HubSettings) say where caches are and how
//!    the hub is reached; they are read from the environment once, by whoever starts the process.
//! 2. [`resolve`](Hub) looks into the hub's cache ([`cache`], the layout of its Python library). A whole snapshot is
//!    used without a word to the network; otherwise [`download`] asks the hub and brings the needed files only,
//!    resumed where an attempt broke off, verified, and visible when they are whole.
//! 3. [`config`] says which architecture it is and whether that fits the role; [`weights`] finds the preferred
//!    weights; [`tokenizer`] finds a `tokenizer.json` or what one can be built from.
//! 4. If a backend could not open the files as they are, [`derived`] makes a directory that it can, named by the
//!    content that it was made from: [`pickle`] and [`flax`] find tensors in `pytorch_model.bin` (executing nothing)
//!    and `flax_model.msgpack`, [`writer`] writes them as safetensors, one tensor in memory at a time.
//!    A classifier of several labels gets another such directory for the [`label`] that it ranks by.
//! 5. [`check`] validates what is about to be handed out, headers first ([`header`]), and [`fingerprint`] names it
//!    by its content, remembering the hashes of files that have not changed.
//!
//! Everything is blocking and safe to call from many threads and processes at once. A [`ResolveError`] is one line
//! that names the model and the file and says what to do.
//!
//! ```no_run
//! use cappy_hub::{Hub, HubSettings, Role, Silent};
//!
//! let hub = Hub::new(HubSettings::from_env()?);
//! let model = hub.resolve("cappy-large", Role::Scorer, &Silent)?;
//! let tokenizer = cappy_hub::load_tokenizer(&model.dir)?;
//! println!("{} {} {}", model.architecture, model.fingerprint, tokenizer.get_vocab_size(true));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![allow(rustdoc::private_intra_doc_links)] // the walk above also names what is private

mod cache;
mod cached;
pub mod check;
pub mod config;
mod demo;
mod derived;
pub mod download;
mod error;
mod fingerprint;
pub mod flax;
pub mod header;
pub mod label;
pub mod name;
pub mod pickle;
mod progress;
mod resolve;
mod settings;
pub mod tokenizer;
pub mod weights;
mod writer;

pub use cached::{CachedModel, VerifiedFile};
pub use config::Architecture;
pub use error::{ErrorKind, Problem, ResolveError};
pub use fingerprint::Fingerprints;
pub use label::RankingLabel;
pub use name::Role;
pub use progress::{Progress, Silent};
pub use resolve::{Hub, Origin, ResolvedModel};
pub use settings::{HubSettings, SettingsError, Token};
pub use tokenizer::load_tokenizer;
