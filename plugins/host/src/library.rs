//! Maps a library and calls its factory.

use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::Arc;

use cappy_plugin_abi::border::declaration::{DECLARATION_BYTES, DECLARATION_PREFIX, FACTORY_PREFIX};
use cappy_plugin_abi::border::tables::Factory;
use cappy_plugin_abi::border::{Declaration, open};
use cappy_plugin_abi::{Backend, Failure};

use crate::Refusal;
use crate::inspect::{Inspected, fitting};
use crate::torch;

/// A mapped library whose ABI is this host's.
pub struct Mapped {
    factory: Factory,
    /// Never unmapped: its functions, tables and threads are in use until exit.
    _library: ManuallyDrop<libloading::Library>,
}

impl Mapped {
    /// Maps a library that was inspected, and compares what is mapped with what was inspected.
    ///
    /// `torch`: where libtorch is, for one that needs it.
    pub(crate) fn open(path: &Path, inspected: &Inspected, torch: Option<&Path>) -> Result<Self, Refusal> {
        if let Some(version) = inspected.torch {
            torch::provide(version, torch, path)?;
        }
        // SAFETY: runs the library's constructors. The path is the operator's choice, nobody else could write to it
        // (`trust`), and it declares itself to be a plugin of this ABI (`inspect`).
        let library = unsafe { map(path) }.map_err(Refusal::CannotOpen)?;
        let library = ManuallyDrop::new(library);
        let symbol = |prefix: &str| format!("{prefix}{}", inspected.crate_name);
        // SAFETY: a declaration is plain bytes in any ABI version; it has at least this many, as `inspect` read them
        // at the same symbol, and `read` checks the magic number among them first.
        let declaration = unsafe {
            let symbol = library.get::<*const [u8; DECLARATION_BYTES]>(symbol(DECLARATION_PREFIX).as_bytes());
            Declaration::read(&**symbol.map_err(|_| Refusal::Changed)?)
        };
        let declaration = declaration.ok_or(Refusal::Changed)?;
        fitting(declaration)?;
        if declaration != inspected.declaration {
            return Err(Refusal::Changed);
        }
        // SAFETY: the fingerprint, which covers the factory's type, is this host's.
        let factory = unsafe { library.get::<Factory>(symbol(FACTORY_PREFIX).as_bytes()) };
        let factory = *factory.map_err(|_| Refusal::MissingSymbol { prefix: FACTORY_PREFIX })?;
        Ok(Self { factory, _library: library })
    }

    /// Makes the backend.
    pub(crate) fn backend(&self) -> Result<Arc<dyn Backend>, Failure> {
        // SAFETY: the declaration fits, and the library stays mapped.
        unsafe { open(self.factory) }
    }
}

/// # Safety
/// The library's constructors may run in this process.
#[cfg(unix)]
unsafe fn map(path: &Path) -> Result<libloading::Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    // Undefined symbols show now, not in the middle of a job; no other library sees this one's symbols.
    // SAFETY: as the caller promises.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL | libc::RTLD_NODELETE) }.map(Into::into)
}

/// # Safety
/// The library's constructors may run in this process.
#[cfg(not(unix))]
unsafe fn map(path: &Path) -> Result<libloading::Library, libloading::Error> {
    // SAFETY: as the caller promises.
    unsafe { libloading::Library::new(path) }
}
