//! How far a long download or conversion is, for whoever shows it.

/// Told about long work, from the thread that does it.
pub trait Progress {
    /// A file is about to be downloaded; `total` bytes, of which `have` were there already.
    fn started(&self, file: &str, have: u64, total: u64);
    /// `done` bytes of it are on disk.
    fn advanced(&self, file: &str, done: u64, total: u64);
    /// Something else worth a line: a retry, the start of a conversion.
    fn note(&self, text: &str);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn started(&self, _file: &str, _have: u64, _total: u64) {}
    fn advanced(&self, _file: &str, _done: u64, _total: u64) {}
    fn note(&self, _text: &str) {}
}
