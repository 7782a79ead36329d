//! Artifacts as `Read` and `Write`, for the pure stages, which run on threads where blocking is allowed.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    path::PathBuf,
};

use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use ulid::Ulid;

use super::{ArtifactError, ArtifactStore};

/// Bytes fetched at once.
const PIECE_BYTES: u64 = 1024 * 1024;

/// Several artifacts read as one file. Only for threads of `spawn_blocking`.
pub(crate) struct ArtifactReader {
    store: ArtifactStore,
    runtime: Handle,
    /// Id, size, place.
    parts: VecDeque<(String, u64, u64)>,
    piece: Bytes,
}

impl ArtifactStore {
    /// Reads artifacts, given as id and size, one behind the other.
    pub(crate) fn reader(&self, parts: impl IntoIterator<Item = (String, u64)>) -> ArtifactReader {
        ArtifactReader {
            store: self.clone(),
            runtime: Handle::current(),
            parts: parts.into_iter().map(|(id, size)| (id, size, 0)).collect(),
            piece: Bytes::new(),
        }
    }

    /// Starts an artifact whose hash is known only at its end.
    pub(crate) fn writer(&self) -> io::Result<ArtifactWriter> {
        let path = self.incoming(&format!("local.{}", Ulid::new()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(ArtifactWriter {
            store: self.clone(),
            file: BufWriter::with_capacity(256 * 1024, file),
            path,
            hash: Sha256::new(),
            size: 0,
            published: false,
        })
    }
}

impl Read for ArtifactReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let Some((id, size, place)) = self.parts.front_mut() else { return Ok(0) };
            if *place == *size {
                self.parts.pop_front();
                continue;
            }
            let range = *place..(*size).min(*place + PIECE_BYTES);
            let end = range.end;
            self.piece = self.runtime.block_on(self.store.read(id, range)).map_err(io::Error::other)?;
            if self.piece.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            *place = end;
        }
        let count = out.len().min(self.piece.len());
        out[..count].copy_from_slice(&self.piece[..count]);
        self.piece.advance(count);
        Ok(count)
    }
}

/// A file that becomes an artifact when it is finished, and nothing when it is dropped.
pub(crate) struct ArtifactWriter {
    store: ArtifactStore,
    file: BufWriter<File>,
    path: PathBuf,
    hash: Sha256,
    size: u64,
    published: bool,
}

impl ArtifactWriter {
    /// Publishes the file. Returns its id and size.
    pub(crate) fn finish(mut self) -> Result<(String, u64), ArtifactError> {
        self.file.flush().map_err(ArtifactError::from_io)?;
        let id = hex::encode(self.hash.finalize_reset());
        self.store.publish(self.file.get_ref(), &self.path, &id)?;
        self.published = true;
        Ok((id, self.size))
    }
}

impl Write for ArtifactWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for ArtifactWriter {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
