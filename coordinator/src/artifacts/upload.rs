//! One upload: bytes to a file under `incoming/`, hashed on the way, verified and renamed at the end.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    sync::PoisonError,
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use super::{ArtifactError, ArtifactStore, check_id};

/// Size of the reads that hash what an earlier upload left.
const REHASH_BYTES: usize = 1024 * 1024;

/// An upload in progress. Dropped before [`finish`](Self::finish), it leaves what it has received to be resumed.
#[derive(Debug)]
pub(crate) struct Upload {
    /// Absent only while a write is in flight on another thread.
    sink: Option<Sink>,
}

#[derive(Debug)]
struct Sink {
    store: ArtifactStore,
    id: String,
    announced: u64,
    received: u64,
    file: File,
    path: PathBuf,
    hash: Sha256,
    /// Holds the claim on the id; otherwise the file is private and goes away with the upload.
    resumable: bool,
    published: bool,
}

impl ArtifactStore {
    /// Bytes that a broken-off upload has left.
    pub(crate) async fn received(&self, id: &str) -> Result<u64, ArtifactError> {
        check_id(id)?;
        match tokio::fs::metadata(self.incoming(id)).await {
            Ok(meta) => Ok(meta.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts an upload of `size_bytes`, or goes on with one at `offset`.
    pub(crate) async fn begin(
        &self,
        id: &str,
        size_bytes: u64,
        offset: u64,
    ) -> Result<Upload, ArtifactError> {
        check_id(id)?;
        let resumable = self.claim(id);
        if !resumable && offset > 0 {
            return Err(ArtifactError::Busy { id: id.to_owned() });
        }
        let (store, id) = (self.clone(), id.to_owned());
        blocking(move || {
            let opened = Sink::open(&store, &id, size_bytes, offset, resumable);
            if opened.is_err() && resumable {
                store.release(&id);
            }
            opened
        })
        .await
        .map(|sink| Upload { sink: Some(sink) })
    }

    fn claim(&self, id: &str) -> bool {
        self.inner.uploading.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned())
    }

    fn release(&self, id: &str) {
        self.inner.uploading.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Gives a complete file its place. The rename is the last step: a reader never meets half an artifact.
    pub(super) fn publish(&self, file: &File, path: &Path, id: &str) -> Result<(), ArtifactError> {
        file.sync_all().map_err(ArtifactError::from_io)?;
        let target = self.object_file(id);
        let folder = target.parent().expect("an object lies in a folder");
        fs::create_dir_all(folder).map_err(ArtifactError::from_io)?;
        fs::rename(path, &target).map_err(ArtifactError::from_io)?;
        #[cfg(unix)]
        File::open(folder)?.sync_all()?;
        Ok(())
    }
}

impl Upload {
    /// Appends a piece.
    pub(crate) async fn write(&mut self, chunk: Bytes) -> Result<(), ArtifactError> {
        let mut sink = self.sink.take().expect("a failed upload is not written to");
        let (sink, result) = blocking(move || {
            let result = sink.append(&chunk);
            Ok((sink, result))
        })
        .await?;
        self.sink = Some(sink);
        result
    }

    /// Verifies what was received and publishes it.
    pub(crate) async fn finish(mut self) -> Result<(), ArtifactError> {
        let mut sink = self.sink.take().expect("a failed upload is not finished");
        blocking(move || sink.finish()).await
    }
}

impl Sink {
    fn open(
        store: &ArtifactStore,
        id: &str,
        announced: u64,
        offset: u64,
        resumable: bool,
    ) -> Result<Self, ArtifactError> {
        let name = if resumable { id.to_owned() } else { format!("{id}.{}", Ulid::new()) };
        let path = store.incoming(&name);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(ArtifactError::from_io)?;
        let received = file.metadata()?.len();
        if offset > received {
            return Err(ArtifactError::BadOffset { offset, received });
        }
        if offset < received {
            file.set_len(offset).map_err(ArtifactError::from_io)?;
        }
        let mut hash = Sha256::new();
        let mut left = offset;
        let mut buffer = vec![0; REHASH_BYTES.min(usize::try_from(offset).unwrap_or(REHASH_BYTES))];
        while left > 0 {
            let piece = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.read_exact(&mut buffer[..piece])?;
            hash.update(&buffer[..piece]);
            left -= piece as u64;
        }
        file.seek(io::SeekFrom::Start(offset))?;
        Ok(Self {
            store: store.clone(),
            id: id.to_owned(),
            announced,
            received: offset,
            file,
            path,
            hash,
            resumable,
            published: false,
        })
    }

    fn append(&mut self, chunk: &[u8]) -> Result<(), ArtifactError> {
        if self.received + chunk.len() as u64 > self.announced {
            return Err(ArtifactError::TooLong { announced: self.announced });
        }
        if let Err(error) = self.file.write_all(chunk) {
            // Half a piece must not look like progress to whoever resumes.
            let _ = self.file.set_len(self.received);
            return Err(ArtifactError::from_io(error));
        }
        self.hash.update(chunk);
        self.received += chunk.len() as u64;
        Ok(())
    }

    fn finish(&mut self) -> Result<(), ArtifactError> {
        if self.received != self.announced {
            return Err(ArtifactError::TooShort { received: self.received, announced: self.announced });
        }
        let actual = hex::encode(self.hash.finalize_reset());
        if actual != self.id {
            fs::remove_file(&self.path)?;
            return Err(ArtifactError::WrongHash { actual, announced: self.id.clone() });
        }
        self.store.publish(&self.file, &self.path, &self.id)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if self.resumable {
            self.store.release(&self.id);
        } else if !self.published {
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static,
) -> Result<T, ArtifactError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ArtifactError::Io(io::Error::other(error)))?
}
