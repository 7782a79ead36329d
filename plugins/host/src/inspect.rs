//! Reads a plugin's declaration out of its file, running none of its code.

use std::fs::File;
use std::path::Path;

use cappy_plugin_abi::border::declaration::{DECLARATION_BYTES, DECLARATION_PREFIX, TORCH_ABI_PREFIX};
use cappy_plugin_abi::border::{ABI_VERSION, Declaration, FINGERPRINT};
use object::read::{ExportTarget, NameOrOrdinal, Object, ObjectSection, ReadCache};

use crate::Refusal;
use crate::torch::TorchVersion;

/// A plugin that may be opened.
#[derive(Clone, Debug)]
pub(crate) struct Inspected {
    /// Name of the plugin's crate, which its symbols end with.
    pub crate_name: String,
    pub declaration: Declaration,
    /// The libtorch that it needs, if it needs any.
    pub torch: Option<TorchVersion>,
}

/// The declaration of a library that was built for this host's ABI.
pub(crate) fn inspect(path: &Path) -> Result<Inspected, Refusal> {
    let file = File::open(path).map_err(Refusal::Unreadable)?;
    // Reads the tables it needs, not the file: debug builds are large.
    let cache = ReadCache::new(file);
    let library = object::File::parse(&cache).map_err(Refusal::NotALibrary)?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let mut found = exported(&library, DECLARATION_PREFIX)?;
    // A plugin may link others in, whose symbols it then exports too.
    if found.len() > 1 {
        let named = found.iter().position(|(crate_name, _)| stem.strip_prefix("lib") == Some(crate_name));
        let Some(named) = named else {
            let crates =
                found.iter().map(|(crate_name, _)| crate_name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Refusal::Ambiguous { crates });
        };
        found.swap(0, named);
    }
    let missing = Refusal::MissingSymbol { prefix: DECLARATION_PREFIX };
    let Some((crate_name, address)) = found.into_iter().next() else { return Err(missing) };
    let declaration =
        bytes_at(&library, address, DECLARATION_BYTES)?.and_then(Declaration::read).ok_or(missing)?;
    fitting(declaration)?;
    let torch = torch(&library, &crate_name)?;
    Ok(Inspected { crate_name, declaration, torch })
}

/// The libtorch that a plugin was built for.
fn torch<'a>(library: &impl Object<'a>, crate_name: &str) -> Result<Option<TorchVersion>, Refusal> {
    let found = exported(library, TORCH_ABI_PREFIX)?;
    let Some((_, address)) = found.into_iter().find(|(name, _)| name == crate_name) else { return Ok(None) };
    let bytes = bytes_at(library, address, size_of::<u64>())?.and_then(<[u8]>::first_chunk);
    // Zeros need take no room in a file.
    Ok(Some(TorchVersion(bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes)))))
}

/// Refuses a declaration of another ABI.
pub(crate) fn fitting(declaration: Declaration) -> Result<(), Refusal> {
    if declaration.fits() {
        return Ok(());
    }
    Err(Refusal::WrongAbi {
        theirs: declaration.abi_version,
        their_fingerprint: declaration.fingerprint,
        ours: ABI_VERSION,
        our_fingerprint: FINGERPRINT,
    })
}

/// What follows `prefix` in the names of exported symbols, and their addresses.
fn exported<'a>(library: &impl Object<'a>, prefix: &str) -> Result<Vec<(String, u64)>, Refusal> {
    let mut found = Vec::new();
    for export in library.exports().map_err(Refusal::NotALibrary)? {
        // A damaged entry is not ours: the dynamic loader will tell if it matters.
        let Ok(export) = export else { continue };
        let (NameOrOrdinal::Name(name), ExportTarget::Address { address }) = (export.name(), export.target())
        else {
            continue;
        };
        // Mach-O puts an underscore before every C name.
        let name = name.strip_prefix(b"_").unwrap_or(name);
        if let Some(crate_name) = name.strip_prefix(prefix.as_bytes()) {
            found.push((String::from_utf8_lossy(crate_name).into_owned(), address));
        }
    }
    Ok(found)
}

fn bytes_at<'a>(library: &impl Object<'a>, address: u64, count: usize) -> Result<Option<&'a [u8]>, Refusal> {
    for section in library.sections() {
        let bytes = section.data_range(address, count as u64).map_err(Refusal::NotALibrary)?;
        if bytes.is_some() {
            return Ok(bytes);
        }
    }
    Ok(None)
}
