//! The stable border behind the safe traits.
//!
//! Both sides see only the traits of `api.rs`. Between them lie `repr(C)` structs (`values.rs`), tables of C
//! functions (`tables.rs`), the adapters that make and take them (`plugin.rs`, `host.rs`, `control.rs`), and a
//! constant that says which border a library was built against (`declaration.rs`, `layout.rs`).
//!
//! # Why hand-written tables
//! The `stabby` crate (72.1.16) was tried first, with `dynptr!` trait objects for a backend and a scorer. They work,
//! and are pleasant to write. What decided against them:
//!
//! - **Its load check is blind to signatures.** The report of a method is `&()`: in the trial a plugin whose `score`
//!   took its arguments in another order, and whose failure struct had one field more, was accepted by
//!   `get_stabbied` and called. A list of the crossing types kept by hand would notice the struct; nothing notices
//!   the arguments. With [`layout::Crossing`] the hash follows every field, pointer and signature from the factory
//!   on, by construction: what is not hashed does not compile.
//! - **It checks after opening**, with a function of the library. Ours is constant data that the host reads from the
//!   file, before a constructor of the library has run.
//! - **It catches no panics**, also not in `drop`: the adapters would have been ours in either case, and beside them
//!   the tables are small.
//! - **Every backend pays for it**: 20 more crates in each build, and tables interned in a leaked global tree.
//!
//! Speed decided nothing. A call that returns a small vector took 50 to 90 ns through stabby, unchecked, and takes
//! 80 ns here with arguments and results checked, against 30 ns for a direct call (`cargo run --release --example
//! crossing`); a model's call takes milliseconds.
//!
//! # Rules
//! - A slice is lent for one call ([`values::Lent`]). A buffer that is given away carries the function that frees it
//!   ([`values::Given`]), so each side's memory goes back to its own allocator.
//! - No panic crosses. In the plugin it becomes an `Internal` failure with the panic's message, and the model refuses
//!   further calls with `FailedPrecondition`: load it again. In the host's [`crate::Control`] it cancels the call and
//!   goes on after it.
//! - Objects are destroyed by the side that made them, and a library is never unmapped.
//! - The host's adapters check arguments and results, so a backend gets only well-formed batches, and NaN or infinity
//!   comes out as `NotFinite`.
//! - A changed meaning that no layout shows (a unit, an order) needs a new [`ABI_VERSION`].

mod control;
pub mod declaration;
mod host;
pub mod layout;
mod plugin;
pub mod tables;
pub mod values;

use std::sync::Arc;

pub use declaration::Declaration;
use layout::Crossing;
#[doc(hidden)]
pub use plugin::make;
use tables::Factory;
use values::Reply;

use crate::random::fold;
use crate::{Backend, Failure};

/// Version of the contract's meaning; raised when a change is not visible in [`FINGERPRINT`].
pub const ABI_VERSION: u32 = 1;

/// Hash of [`ABI_VERSION`], the byte order, and every type and signature that can be reached from a factory.
pub const FINGERPRINT: u64 =
    fold(fold(Factory::LAYOUT, ABI_VERSION as u64), u16::from_ne_bytes([0, 1]) as u64);

/// A backend that is linked in, behind the same adapters as one that is opened.
///
/// # Errors
/// `Internal` when it panics while it describes itself.
pub fn builtin(backend: impl Backend + 'static) -> Result<Arc<dyn Backend>, Failure> {
    // SAFETY: made by this very crate, and a program's own code stays mapped.
    unsafe { host::adopt(Reply::Done(plugin::backend_object(Box::new(backend)))) }
}

/// Makes the backend of an opened library.
///
/// # Errors
/// What the factory or the first `describe` failed with.
///
/// # Safety
/// `factory` is the factory of a library whose [`Declaration::fits`], and the library is never unmapped.
pub unsafe fn open(factory: Factory) -> Result<Arc<dyn Backend>, Failure> {
    // SAFETY: as the caller promises.
    unsafe { host::adopt(factory()) }
}

/// Exports a backend from a `cdylib`: its declaration and its factory. Once a crate, at the top level.
#[macro_export]
macro_rules! export_backend {
    ($backend:expr) => {
        const _: () = {
            #[unsafe(export_name = concat!("cappy_plugin_declaration_", env!("CARGO_CRATE_NAME")))]
            static DECLARATION: $crate::border::Declaration =
                $crate::border::Declaration::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));

            #[unsafe(export_name = concat!("cappy_plugin_factory_", env!("CARGO_CRATE_NAME")))]
            unsafe extern "C" fn factory()
            -> $crate::border::values::Reply<$crate::border::tables::BackendObject> {
                $crate::border::make(|| $backend)
            }
        };
    };
}
