//! An archive from strangers, read as a stream: nothing of it is ever unpacked to disk, and whatever a benchmark's
//! archive has no need for is refused.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use super::ImportError;
use super::source::{Member, Visitor};

/// An archive may unpack to this many bytes, or to [`MAX_RATIO`] times its size if that is more.
const MAX_UNPACKED_BYTES: u64 = 8 << 30;
/// BIG-bench's own archive unpacks to 5 times its size.
const MAX_RATIO: u64 = 64;
/// BIG-bench's own archive has 3,216 members.
const MAX_MEMBERS: usize = 1_000_000;
/// Names and other facts about a member, where they do not fit its header.
const MAX_EXTENSION_BYTES: u64 = 64 << 10;

/// See [`super::source::Source::visit`].
pub(super) fn visit(path: &Path, visitor: &mut dyn Visitor) -> Result<(), ImportError> {
    let shown = path.display().to_string();
    let read_error = |source: io::Error| match source.get_ref().is_some_and(|inner| inner.is::<Overflow>()) {
        true => ImportError::Hostile { path: shown.clone(), reason: Overflow.to_string() },
        false => ImportError::Read { path: shown.clone(), source },
    };
    let refuse = |reason: String| ImportError::Hostile { path: shown.clone(), reason };

    let mut archive = tar::Archive::new(open(path).map_err(read_error)?);
    let mut extended_name: Option<Vec<u8>> = None;
    // Raw: the crate would read extension headers of any size into memory.
    for (count, entry) in archive.entries().map_err(read_error)?.raw(true).enumerate() {
        let mut entry = entry.map_err(read_error)?;
        if count >= MAX_MEMBERS {
            return Err(refuse(format!("it has more than {MAX_MEMBERS} members")));
        }
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::GNULongName | EntryType::XHeader) {
            let size = entry.size();
            if size > MAX_EXTENSION_BYTES {
                return Err(refuse(format!("a member's name takes {size} bytes")));
            }
            let mut extension = Vec::new();
            entry.read_to_end(&mut extension).map_err(read_error)?;
            extended_name = match kind {
                EntryType::XHeader => pax_path(&extension).or(extended_name),
                _ => Some(extension.strip_suffix(b"\0").unwrap_or(&extension).to_vec()),
            };
            continue;
        }
        if kind == EntryType::XGlobalHeader {
            continue;
        }
        let name = extended_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
        let name = String::from_utf8(name).map_err(|_| refuse("a member's name is not UTF-8".into()))?;
        check(&name, kind).map_err(refuse)?;
        if let Some(member) = Member::of_bigbench(Path::new(&name)).filter(|_| kind.is_file())
            && visitor.wants(&member)
        {
            visitor.read(member, &name, &mut entry).map_err(|error| match error {
                ImportError::Read { source, .. } => read_error(source),
                error => error,
            })?;
        }
    }
    Ok(())
}

/// The archive's bytes, unpacked where they are packed, and not without end.
fn open(path: &Path) -> io::Result<Bounded<Box<dyn Read>>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut file = BufReader::with_capacity(1 << 20, file);
    let is_gzip = file.fill_buf()?.starts_with(b"\x1f\x8b");
    let bytes: Box<dyn Read> =
        if is_gzip { Box::new(flate2::bufread::MultiGzDecoder::new(file)) } else { Box::new(file) };
    let bytes: Box<dyn Read> = Box::new(BufReader::with_capacity(256 * 1024, bytes));
    Ok(Bounded { inner: bytes, left: MAX_UNPACKED_BYTES.max(size.saturating_mul(MAX_RATIO)) })
}

/// A member must lie inside and be a file or a folder.
fn check(name: &str, kind: EntryType) -> Result<(), String> {
    let path = PathBuf::from(name);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside || name.contains('\\') {
        return Err(format!("member `{name}` points outside of it"));
    }
    if kind.is_symlink() || kind.is_hard_link() {
        return Err(format!("member `{name}` is a link"));
    }
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::Directory => Ok(()),
        _ => Err(format!("member `{name}` is neither a file nor a folder")),
    }
}

/// The `path` record of a POSIX extended header: `LENGTH path=NAME\n`.
fn pax_path(records: &[u8]) -> Option<Vec<u8>> {
    tar::PaxExtensions::new(records)
        .filter_map(Result::ok)
        .find(|record| record.key_bytes() == b"path")
        .map(|record| record.value_bytes().to_vec())
}

struct Bounded<R> {
    inner: R,
    left: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("it unpacks to more than {} GiB and {MAX_RATIO} times its size", MAX_UNPACKED_BYTES >> 30)]
struct Overflow;

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other(Overflow))?;
        Ok(n)
    }
}
