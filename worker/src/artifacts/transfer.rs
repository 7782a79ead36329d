//! Artifacts over the wire: both ways resumable, both ways verified.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use cappy_proto::{
    MAX_MESSAGE_BYTES, UPLOAD_CHUNK_BYTES,
    v1::{self, artifact_service_client::ArtifactServiceClient},
};
use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncWriteExt as _, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::cache::{ArtifactCache, CachedFile, is_id};
use crate::coordinator::Channel;

/// Why an artifact did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The coordinator's answer.
    #[error("artifact {id}: {}", status.message())]
    Status {
        /// Which, shortened.
        id: String,
        /// What it said.
        status: Box<Status>,
    },
    /// The content is not what its name says.
    #[error("artifact {id} arrived damaged")]
    Damaged {
        /// Which, shortened.
        id: String,
    },
    /// Not a content hash.
    #[error("`{0}` is not an artifact id")]
    BadId(String),
    /// The worker's disk.
    #[error("the worker's disk failed: {0}")]
    Disk(#[from] io::Error),
}

impl TransferError {
    /// Trying again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => crate::session::is_transient(status.code()),
            Self::Damaged { .. } => true,
            Self::BadId(_) | Self::Disk(_) => false,
        }
    }

    /// The coordinator does not have it.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Status { status, .. } if status.code() == Code::NotFound)
    }
}

fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

fn client(channel: Channel) -> ArtifactServiceClient<Channel> {
    ArtifactServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// The artifact on local disk, downloaded if it is not there. What a broken-off download left is gone on with.
///
/// # Errors
/// The coordinator's status, damage, or the local disk.
pub async fn fetch(
    channel: Channel,
    cache: &ArtifactCache,
    artifact: &v1::Artifact,
) -> Result<CachedFile, TransferError> {
    let id = artifact.id.as_str();
    if !is_id(id) {
        return Err(TransferError::BadId(id.chars().take(80).collect()));
    }
    if let Some(file) = cache.get(id) {
        return Ok(file);
    }
    let lock = cache.download_lock(id);
    let _alone = lock.lock().await;
    if let Some(file) = cache.get(id) {
        return Ok(file);
    }
    let partial = cache.partial(id);
    let (mut hash, offset) = {
        let partial = partial.clone();
        blocking(move || hash_of_existing(&partial)).await?
    };
    let mut file = tokio::fs::OpenOptions::new().create(true).append(true).open(&partial).await?;
    let status = |status| TransferError::Status { id: short(id), status: Box::new(status) };
    let request = v1::DownloadRequest { artifact_id: id.to_owned(), offset };
    let mut stream = match client(channel).download(request).await {
        Ok(response) => response.into_inner(),
        Err(error) => {
            // An offset past the end is of no use to the next try either.
            if matches!(error.code(), Code::OutOfRange | Code::InvalidArgument) {
                tokio::fs::remove_file(&partial).await?;
            }
            return Err(status(error));
        }
    };
    while let Some(message) = stream.message().await.map_err(status)? {
        file.write_all(&message.chunk).await?;
        hash.update(&message.chunk);
    }
    file.flush().await?;
    file.sync_data().await?;
    drop(file);
    if hex::encode(hash.finalize()) != id {
        tokio::fs::remove_file(&partial).await?;
        return Err(TransferError::Damaged { id: short(id) });
    }
    Ok(cache.adopt(id, &partial)?)
}

/// Stores a file at the coordinator, unless it is there already, and keeps it in the cache: the next stage may well
/// run here.
///
/// # Errors
/// The coordinator's status, or the local disk.
pub async fn upload(
    channel: Channel,
    cache: &ArtifactCache,
    path: &Path,
) -> Result<v1::Artifact, TransferError> {
    let (hash, size_bytes) = {
        let path = path.to_owned();
        blocking(move || hash_of_existing(&path)).await?
    };
    let artifact = v1::Artifact { id: hex::encode(hash.finalize()), size_bytes };
    let status = |status| TransferError::Status { id: short(&artifact.id), status: Box::new(status) };
    let mut client = client(channel);
    let stat = v1::StatArtifactRequest { artifact_id: artifact.id.clone() };
    let known = match client.stat_artifact(stat).await {
        Ok(response) => response.into_inner(),
        Err(error) if error.code() == Code::NotFound => v1::StatArtifactResponse::default(),
        Err(error) => return Err(status(error)),
    };
    if !known.stored {
        let offset = known.size_bytes.min(size_bytes);
        let (send, receive) = mpsc::channel(4);
        let header = v1::UploadHeader { artifact: Some(artifact.clone()), offset };
        let path = path.to_owned();
        // Ends with its channel: when the call is over, the receiver is gone.
        let reader = tokio::task::spawn_blocking(move || read_chunks(path, header, &send));
        client.upload(ReceiverStream::new(receive)).await.map_err(status)?;
        reader.await.map_err(io::Error::other)??;
    }
    cache.adopt(&artifact.id, path)?;
    Ok(artifact)
}

fn read_chunks(
    path: PathBuf,
    header: v1::UploadHeader,
    send: &mpsc::Sender<v1::UploadRequest>,
) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(header.offset))?;
    let request = |part| v1::UploadRequest { part: Some(part) };
    if send.blocking_send(request(v1::upload_request::Part::Header(header))).is_err() {
        return Ok(());
    }
    loop {
        let mut chunk = Vec::with_capacity(UPLOAD_CHUNK_BYTES);
        file.by_ref().take(UPLOAD_CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
        if chunk.is_empty()
            || send.blocking_send(request(v1::upload_request::Part::Chunk(chunk.into()))).is_err()
        {
            return Ok(());
        }
    }
}

/// Hash state and size of a file; of nothing when it is not there.
fn hash_of_existing(path: &Path) -> io::Result<(Sha256, u64)> {
    let mut hash = Sha256::new();
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((hash, 0)),
        file => file?,
    };
    let mut buffer = vec![0; UPLOAD_CHUNK_BYTES];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((hash, size));
        }
        hash.update(&buffer[..read]);
        size += read as u64;
    }
}

async fn blocking<R: Send + 'static>(work: impl FnOnce() -> io::Result<R> + Send + 'static) -> io::Result<R> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
