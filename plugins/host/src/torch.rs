//! Opens libtorch for the plugins that need it.
//!
//! A plugin that was built for one version and runs with another computes wrong numbers and says nothing. So a plugin
//! notes its version as data ([`TORCH_ABI_PREFIX`]), which `inspect.rs` reads from its file; libtorch's libraries are
//! opened here by path, before the plugin, and asked for theirs. There can be one libtorch in a process.

use std::ffi::CStr;
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::Refusal;
use crate::trust;

#[cfg(doc)]
use cappy_plugin_abi::border::declaration::TORCH_ABI_PREFIX;

/// Opened in this order: the second needs the first.
const LIBRARIES: [&str; 2] = ["libc10.so", "libtorch_cpu.so"];
/// Opened where it is there.
const CUDA: &str = "libtorch_cuda.so";
/// Where a search looks, in the plugin's folder and those above it: what `cargo xtask libtorch` makes in `target`.
const BESIDE: &str = "libtorch/torch/lib";
/// `uint64_t aoti_torch_abi_version()` of `libtorch_cpu.so`.
const VERSION_SYMBOL: &CStr = c"aoti_torch_abi_version";

/// A version as `TORCH_ABI_VERSION` of libtorch's headers has it: major, minor and patch in the three highest bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TorchVersion(pub u64);

impl TorchVersion {
    /// Of a plugin that was built without its engine.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for TorchVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch, ..] = self.0.to_be_bytes();
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// The libtorch of this process.
static OPENED: Mutex<Option<Opened>> = Mutex::new(None);

struct Opened {
    directory: PathBuf,
    version: TorchVersion,
}

/// Makes libtorch of the version `wanted` available to a plugin that is opened next.
///
/// `directory` is the operator's choice of a `torch/lib`; without one, the folders above the `plugin` are searched.
pub(crate) fn provide(wanted: TorchVersion, directory: Option<&Path>, plugin: &Path) -> Result<(), Refusal> {
    if wanted == TorchVersion::NONE {
        return Err(Refusal::NoEngine);
    }
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if opened.is_none() {
        *opened = Some(open(wanted, directory, plugin)?);
    }
    let Opened { directory, version } = opened.as_ref().expect("it was just opened");
    fitting(wanted, *version, directory)
}

fn fitting(wanted: TorchVersion, version: TorchVersion, directory: &Path) -> Result<(), Refusal> {
    if wanted == version {
        return Ok(());
    }
    Err(Refusal::WrongTorch { version, directory: directory.display().to_string(), wanted })
}

fn open(wanted: TorchVersion, directory: Option<&Path>, plugin: &Path) -> Result<Opened, Refusal> {
    let directory = match directory {
        Some(directory) => directory.to_owned(),
        None => search(plugin).ok_or(Refusal::NoTorch { wanted })?,
    };
    let shown = directory.display().to_string();
    let mut mapped = Vec::new();
    for name in LIBRARIES {
        let path = directory.join(name);
        if !path.exists() {
            return Err(Refusal::MissingTorch { file: name, directory: shown, wanted });
        }
        let real = trust::checked(&directory, &path)?;
        let library = map(&real, false);
        let broken = |source| Refusal::BrokenTorch { file: name, directory: shown.clone(), source };
        mapped.push((library.map_err(broken)?, real));
    }
    let version = version_of(&mapped[1].0).ok_or(Refusal::NoTorchVersion { directory: shown, wanted })?;
    fitting(wanted, version, &directory)?;
    // Known to be right: now for everyone to see, as a library of kernels expects that is opened later.
    for (_, real) in &mapped {
        share(real);
    }
    if let Ok(real) = trust::checked(&directory, &directory.join(CUDA)) {
        share(&real);
    }
    tracing::info!(version = %version, directory = %directory.display(), "libtorch opened");
    Ok(Opened { directory, version })
}

/// `libtorch/torch/lib` of the nearest folder at or above the plugin's, if it belongs to who owns the plugin.
fn search(plugin: &Path) -> Option<PathBuf> {
    let found = plugin.ancestors().skip(1).map(|above| above.join(BESIDE));
    found
        .into_iter()
        .find(|lib| lib.join(LIBRARIES[1]).is_file() && trust::same_owner(&lib.join(LIBRARIES[1]), plugin))
}

/// Never unmapped: destructors of libtorch's statics do not expect it.
type Mapped = ManuallyDrop<libloading::Library>;

/// `shared`: its symbols serve every library that is opened later.
#[cfg(unix)]
fn map(path: &Path, shared: bool) -> Result<Mapped, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY, RTLD_LOCAL};

    let flags = RTLD_LAZY | libc::RTLD_NODELETE | if shared { RTLD_GLOBAL } else { RTLD_LOCAL };
    // SAFETY: runs the library's constructors. The path is the operator's choice or lies with the plugins, and nobody
    // else could write to it (`trust`).
    unsafe { Library::open(Some(path), flags) }.map(|library| ManuallyDrop::new(library.into()))
}

#[cfg(not(unix))]
fn map(path: &Path, _shared: bool) -> Result<Mapped, libloading::Error> {
    // SAFETY: as above.
    unsafe { libloading::Library::new(path) }.map(ManuallyDrop::new)
}

/// Makes a library's symbols visible to all.
fn share(path: &Path) {
    if let Err(error) = map(path, true) {
        // Without it there is the CPU.
        tracing::warn!(library = %path.display(), %error, "a library of libtorch cannot be opened");
    }
}

fn version_of(library: &Mapped) -> Option<TorchVersion> {
    // SAFETY: a function of that name has had this type since it exists (torch/csrc/inductor/aoti_torch/c/shim.h).
    let version = unsafe { library.get::<unsafe extern "C" fn() -> u64>(VERSION_SYMBOL.to_bytes_with_nul()) };
    // SAFETY: as above; it returns a constant.
    version.ok().map(|version| TorchVersion(unsafe { version() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_people_know_them() {
        assert_eq!(TorchVersion(0x020b_0000_0000_0000).to_string(), "2.11.0");
        assert_eq!(TorchVersion(0x020d_0100_0000_0000).to_string(), "2.13.1");
    }
}
