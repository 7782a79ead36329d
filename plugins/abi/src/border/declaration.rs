//! What a plugin says about itself before any of its code runs.
//!
//! A [`Declaration`] is constant data without pointers, under an exported symbol, so the host reads it out of the
//! file: a plugin with another ABI is refused without being opened. This layout is frozen for all ABI versions.

use std::fmt;

/// Symbol of a plugin's [`Declaration`], followed by the crate's name (two plugins may be linked into one program).
pub const DECLARATION_PREFIX: &str = "cappy_plugin_declaration_";
/// Symbol of a plugin's factory, followed by the crate's name.
pub const FACTORY_PREFIX: &str = "cappy_plugin_factory_";
/// Symbol, followed by the crate's name, of a `u64` that a plugin has which needs libtorch: `TORCH_ABI_VERSION` of the
/// headers that it was built with, or 0 when it was built without its engine. The host reads it from the file.
pub const TORCH_ABI_PREFIX: &str = "cappy_plugin_torch_abi_";

const MAGIC: [u8; 16] = *b"cappy-plugin-abi";
const TEXT_BYTES: usize = 64;

/// Size of a [`Declaration`].
pub const DECLARATION_BYTES: usize = size_of::<Declaration>();

/// Who a plugin is and which border it was built against.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Declaration {
    magic: [u8; 16],
    /// See [`super::ABI_VERSION`].
    pub abi_version: u32,
    reserved: u32,
    /// See [`super::FINGERPRINT`].
    pub fingerprint: u64,
    name: [u8; TEXT_BYTES],
    version: [u8; TEXT_BYTES],
}

impl Declaration {
    /// This build's declaration; `package` loses a leading `cappy-plugin-`.
    pub const fn new(package: &str, version: &str) -> Self {
        Self {
            magic: MAGIC,
            abi_version: super::ABI_VERSION,
            reserved: 0,
            fingerprint: super::FINGERPRINT,
            name: padded(package.as_bytes(), prefix_length(package.as_bytes(), b"cappy-plugin-")),
            version: padded(version.as_bytes(), 0),
        }
    }

    /// Reads a declaration of any ABI version, as it lies in a file or in memory.
    ///
    /// `None`: these bytes are no declaration.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<16>()?;
        let (abi_version, rest) = rest.split_first_chunk::<4>()?;
        let (reserved, rest) = rest.split_first_chunk::<4>()?;
        let (fingerprint, rest) = rest.split_first_chunk::<8>()?;
        let (name, rest) = rest.split_first_chunk::<TEXT_BYTES>()?;
        let (version, _) = rest.split_first_chunk::<TEXT_BYTES>()?;
        (*magic == MAGIC).then_some(Self {
            magic: *magic,
            abi_version: u32::from_ne_bytes(*abi_version),
            reserved: u32::from_ne_bytes(*reserved),
            fingerprint: u64::from_ne_bytes(*fingerprint),
            name: *name,
            version: *version,
        })
    }

    /// The plugin's name: `echo`.
    pub fn name(&self) -> String {
        text(&self.name)
    }

    /// The plugin's version.
    pub fn version(&self) -> String {
        text(&self.version)
    }

    /// Whether this build of the host may call it.
    pub fn fits(&self) -> bool {
        self.abi_version == super::ABI_VERSION && self.fingerprint == super::FINGERPRINT
    }
}

impl fmt::Debug for Declaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (ABI {}, {:016x})", self.name(), self.version(), self.abi_version, self.fingerprint)
    }
}

const fn prefix_length(text: &[u8], prefix: &[u8]) -> usize {
    if text.len() <= prefix.len() {
        return 0;
    }
    let mut i = 0;
    while i < prefix.len() {
        if text[i] != prefix[i] {
            return 0;
        }
        i += 1;
    }
    prefix.len()
}

const fn padded(text: &[u8], skip: usize) -> [u8; TEXT_BYTES] {
    let mut bytes = [0; TEXT_BYTES];
    assert!(text.len() - skip < TEXT_BYTES, "a plugin's name and version have fewer than 64 bytes");
    let mut i = skip;
    while i < text.len() {
        bytes[i - skip] = text[i];
        i += 1;
    }
    bytes
}

fn text(bytes: &[u8; TEXT_BYTES]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(TEXT_BYTES);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_is_read_back_from_its_bytes() {
        static DECLARATION: Declaration = Declaration::new("cappy-plugin-echo", "1.2.3");
        // SAFETY: plain bytes without padding, as the size says.
        let bytes = unsafe { &*(&raw const DECLARATION).cast::<[u8; DECLARATION_BYTES]>() };
        assert_eq!(DECLARATION_BYTES, 16 + 4 + 4 + 8 + 64 + 64);
        let read = Declaration::read(bytes).expect("it is one");
        assert_eq!((read.name().as_str(), read.version().as_str()), ("echo", "1.2.3"));
        assert!(read == DECLARATION && read.fits());
        let mut other = *bytes;
        other[24] ^= 1;
        assert!(!Declaration::read(&other).expect("still one").fits());
        assert!(Declaration::read(&bytes[..100]).is_none() && Declaration::read(&bytes[1..]).is_none());
    }
}
