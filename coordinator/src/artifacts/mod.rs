//! Immutable files named by the SHA-256 of their content.
//!
//! An upload grows under `incoming/`, survives a broken connection and a restart there, and is moved under `objects/`
//! in one rename once its size and hash are those announced; only then does the job store learn of it. Reads go
//! through `object_store`, piece by piece, so memory does not grow with a file.

mod blocking;
mod quota;
mod upload;

use std::{
    collections::HashSet,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::{ObjectStore as _, ObjectStoreExt as _, local::LocalFileSystem, path::Path as ObjectPath};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) use blocking::ArtifactWriter;
use quota::Reserved;
pub(crate) use quota::Room;

/// A broken-off upload that nobody has touched for so long is forgotten at the next start.
const ABANDONED_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Why an artifact could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArtifactError {
    #[error("`{0}` is not an artifact id: expected 64 hexadecimal digits in lower case")]
    BadId(String),
    #[error("no artifact `{0}`")]
    NotFound(String),
    #[error("artifact `{id}` is being uploaded by somebody else")]
    Busy { id: String },
    #[error("offset {offset} is beyond the {received} bytes received; ask StatArtifact")]
    BadOffset { offset: u64, received: u64 },
    #[error("more bytes were sent than the {announced} announced")]
    TooLong { announced: u64 },
    #[error("{received} of {announced} bytes were sent")]
    TooShort { received: u64, announced: u64 },
    #[error("the content's SHA-256 is `{actual}`, announced was `{announced}`")]
    WrongHash { actual: String, announced: String },
    #[error("the artifact store is full")]
    Full(#[source] io::Error),
    #[error("the artifact store failed")]
    Io(#[from] io::Error),
    #[error("the artifact store failed")]
    Objects(#[source] object_store::Error),
    #[error("this kind of location is not supported: give a folder or a file:// URL")]
    Unsupported,
}

impl ArtifactError {
    fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(error),
            _ => Self::Io(error),
        }
    }
}

/// Artifacts in a folder.
#[derive(Clone, Debug)]
pub(crate) struct ArtifactStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    objects: LocalFileSystem,
    root: PathBuf,
    /// Ids whose resumable upload is in progress.
    uploading: Mutex<HashSet<String>>,
    reserved: Reserved,
    /// Held for reading by whoever makes a file known, for writing by whoever removes files.
    gate: RwLock<()>,
}

impl ArtifactStore {
    /// Opens the store at a folder or `file://` URL, making the folder if it is missing.
    pub(crate) fn open(location: &str) -> Result<Self, ArtifactError> {
        let path = match location.split_once("://") {
            None => Path::new(location),
            Some(("file", path)) if path.starts_with('/') => Path::new(path),
            Some(_) => return Err(ArtifactError::Unsupported),
        };
        for folder in ["objects", "incoming"] {
            std::fs::create_dir_all(path.join(folder))?;
        }
        let root = path.canonicalize()?;
        forget_abandoned(&root.join("incoming"));
        let objects =
            LocalFileSystem::new_with_prefix(root.join("objects")).map_err(ArtifactError::Objects)?;
        let inner = Inner {
            objects,
            root,
            uploading: Mutex::default(),
            reserved: Reserved::default(),
            gate: RwLock::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Size of a stored artifact.
    pub(crate) async fn size(&self, id: &str) -> Result<Option<u64>, ArtifactError> {
        match self.inner.objects.head(&object_path(id)?).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(ArtifactError::Objects(error)),
        }
    }

    /// Bytes `range` of a stored artifact.
    pub(crate) async fn read(&self, id: &str, range: Range<u64>) -> Result<Bytes, ArtifactError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.inner.objects.get_range(&object_path(id)?, range).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => ArtifactError::NotFound(id.to_owned()),
            other => ArtifactError::Objects(other),
        })
    }

    /// While this is held no file is removed.
    pub(crate) async fn keeping(&self) -> RwLockReadGuard<'_, ()> {
        self.inner.gate.read().await
    }

    /// While this is held nobody may rely on a file that is there.
    pub(crate) async fn removing(&self) -> RwLockWriteGuard<'_, ()> {
        self.inner.gate.write().await
    }

    /// Room for an upload of `bytes` beside the `used` ones. None: it would go beyond `quota`.
    pub(crate) fn reserve(&self, bytes: u64, used: u64, quota: Option<u64>) -> Option<Room> {
        self.inner.reserved.reserve(bytes, used, quota)
    }

    /// Removes a file; one that is not there is removed.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), ArtifactError> {
        match self.inner.objects.delete(&object_path(id)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(ArtifactError::Objects(error)),
        }
    }

    /// Ids of the files that were put there longer than `age` ago.
    pub(crate) async fn older_than(&self, age: Duration) -> Result<Vec<String>, ArtifactError> {
        let limit = std::time::SystemTime::now().checked_sub(age);
        let mut files = self.inner.objects.list(None);
        let mut ids = Vec::new();
        while let Some(file) = files.next().await {
            let file = file.map_err(ArtifactError::Objects)?;
            let old = limit.is_some_and(|limit| std::time::SystemTime::from(file.last_modified) <= limit);
            ids.extend(file.location.filename().filter(|id| old && check_id(id).is_ok()).map(str::to_owned));
        }
        Ok(ids)
    }

    fn incoming(&self, name: &str) -> PathBuf {
        self.inner.root.join("incoming").join(name)
    }

    /// Where an artifact lies once it is published.
    fn object_file(&self, id: &str) -> PathBuf {
        self.inner.root.join("objects").join(&id[..2]).join(id)
    }
}

/// Removes what uploads that nobody resumed, and processes that were killed, have left.
fn forget_abandoned(incoming: &Path) {
    let Ok(entries) = std::fs::read_dir(incoming) else { return };
    for entry in entries.flatten() {
        let age =
            entry.metadata().and_then(|meta| meta.modified()).map(|at| at.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age > ABANDONED_AFTER) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Refuses what is not a SHA-256 in lower-case hexadecimal, before it becomes part of a path.
pub(crate) fn check_id(id: &str) -> Result<(), ArtifactError> {
    let valid = id.len() == 64 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if valid { Ok(()) } else { Err(ArtifactError::BadId(id.chars().take(80).collect())) }
}

fn object_path(id: &str) -> Result<ObjectPath, ArtifactError> {
    check_id(id)?;
    Ok(ObjectPath::from_iter([&id[..2], id]))
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn id_of(content: &[u8]) -> String {
        hex::encode(Sha256::digest(content))
    }

    #[tokio::test]
    async fn an_upload_that_broke_off_goes_on_and_is_verified() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let (id, size) = (id_of(&content), content.len() as u64);
        let bytes = |range: Range<usize>| Bytes::copy_from_slice(&content[range]);
        {
            let store = ArtifactStore::open(folder.path().to_str().unwrap()).unwrap();
            let mut upload = store.begin(&id, size, 0).await.unwrap();
            upload.write(bytes(0..1000)).await.unwrap();
            upload.write(bytes(1000..5000)).await.unwrap();
            let busy = store.begin(&id, size, 4000).await.err().unwrap();
            assert!(matches!(busy, ArtifactError::Busy { .. }), "{busy}");
        }
        let store = ArtifactStore::open(&format!("file://{}", folder.path().display())).unwrap();
        assert_eq!(store.size(&id).await.unwrap(), None);
        assert_eq!(store.received(&id).await.unwrap(), 5000);
        let beyond = store.begin(&id, size, 6000).await.err().unwrap();
        assert!(matches!(beyond, ArtifactError::BadOffset { received: 5000, .. }), "{beyond}");
        let mut upload = store.begin(&id, size, 5000).await.unwrap();
        upload.write(bytes(5000..content.len())).await.unwrap();
        upload.finish().await.unwrap();
        assert_eq!(store.size(&id).await.unwrap(), Some(size));
        assert_eq!(store.received(&id).await.unwrap(), 0);
        assert_eq!(store.read(&id, 7..1007).await.unwrap(), bytes(7..1007));
    }

    #[tokio::test]
    async fn content_that_is_not_what_was_announced_is_refused_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(folder.path().to_str().unwrap()).unwrap();
        let id = id_of(b"right");
        let mut upload = store.begin(&id, 5, 0).await.unwrap();
        upload.write(Bytes::from_static(b"wrong")).await.unwrap();
        let error = upload.finish().await.unwrap_err();
        assert!(matches!(error, ArtifactError::WrongHash { .. }), "{error}");
        assert_eq!((store.size(&id).await.unwrap(), store.received(&id).await.unwrap()), (None, 0));

        let mut upload = store.begin(&id, 5, 0).await.unwrap();
        let error = upload.write(Bytes::from_static(b"too long")).await.unwrap_err();
        assert!(matches!(error, ArtifactError::TooLong { announced: 5 }), "{error}");
        drop(upload);
        let mut upload = store.begin(&id, 5, 0).await.unwrap();
        upload.write(Bytes::from_static(b"rig")).await.unwrap();
        let error = upload.finish().await.unwrap_err();
        assert!(matches!(error, ArtifactError::TooShort { received: 3, .. }), "{error}");

        for bad in ["", "../../../etc/passwd", &id.to_uppercase()[..], &id[1..]] {
            assert!(matches!(store.begin(bad, 1, 0).await, Err(ArtifactError::BadId(_))), "{bad}");
        }
        for bad in ["s3://bucket", "file://relative"] {
            assert!(matches!(ArtifactStore::open(bad), Err(ArtifactError::Unsupported)), "{bad}");
        }
    }

    #[tokio::test]
    async fn two_may_upload_the_same_content_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(folder.path().to_str().unwrap()).unwrap();
        let id = id_of(b"same");
        let mut first = store.begin(&id, 4, 0).await.unwrap();
        let mut second = store.begin(&id, 4, 0).await.unwrap();
        first.write(Bytes::from_static(b"sa")).await.unwrap();
        second.write(Bytes::from_static(b"same")).await.unwrap();
        second.finish().await.unwrap();
        first.write(Bytes::from_static(b"me")).await.unwrap();
        first.finish().await.unwrap();
        assert_eq!(store.read(&id, 0..4).await.unwrap(), Bytes::from_static(b"same"));
        assert_eq!(std::fs::read_dir(folder.path().join("incoming")).unwrap().count(), 0);
    }
}
