//! Reads a plugin's declaration out of its file, running none of its code.

use std::fs::File;
use std::path::Path;

use cappy_plugin_abi::border::declaration::{DECLARATION_BYTES, DECLARATION_PREFIX};
use cappy_plugin_abi::border::{ABI_VERSION, Declaration, FINGERPRINT};
use object::read::{ExportTarget, NameOrOrdinal, Object, ObjectSection, ReadCache};

use crate::Refusal;

/// A plugin that may be opened.
#[derive(Clone, Debug)]
pub(crate) struct Inspected {
    /// Name of the plugin's crate, which its symbols end with.
    pub crate_name: String,
    pub declaration: Declaration,
}

/// The declaration of a library that was built for this host's ABI.
pub(crate) fn inspect(path: &Path) -> Result<Inspected, Refusal> {
    let file = File::open(path).map_err(Refusal::Unreadable)?;
    // Reads the tables it needs, not the file: debug builds are large.
    let cache = ReadCache::new(file);
    let library = object::File::parse(&cache).map_err(Refusal::NotALibrary)?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let mut found = declarations(&library)?;
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
    let declaration = bytes_at(&library, address)?.and_then(Declaration::read).ok_or(missing)?;
    fitting(declaration)?;
    Ok(Inspected { crate_name, declaration })
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

/// Crate name and address of each exported declaration.
fn declarations<'a>(library: &impl Object<'a>) -> Result<Vec<(String, u64)>, Refusal> {
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
        if let Some(crate_name) = name.strip_prefix(DECLARATION_PREFIX.as_bytes()) {
            found.push((String::from_utf8_lossy(crate_name).into_owned(), address));
        }
    }
    Ok(found)
}

fn bytes_at<'a>(library: &impl Object<'a>, address: u64) -> Result<Option<&'a [u8]>, Refusal> {
    for section in library.sections() {
        let bytes = section.data_range(address, DECLARATION_BYTES as u64).map_err(Refusal::NotALibrary)?;
        if bytes.is_some() {
            return Ok(bytes);
        }
    }
    Ok(None)
}
