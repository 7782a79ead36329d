//! Files to and from the artifact store.

use std::{
    io::SeekFrom,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use cappy_proto::{
    UPLOAD_CHUNK_BYTES,
    v1::{Artifact, DownloadRequest, StatArtifactRequest, UploadHeader, UploadRequest, upload_request::Part},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs,
    io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _},
};

use crate::{
    cluster::Cluster,
    failure::{Context as _, Failure, Outcome},
    printer::Printer,
    progress::Bytes as Shown,
};

/// Times that a broken transfer is taken up again.
const ATTEMPTS: u32 = 5;

/// Stores a file unless it is stored already; an upload that broke off goes on where it was. A large one is shown
/// under the name `title`.
pub async fn upload(cluster: &Cluster, path: &Path, title: &str, printer: &Printer) -> Outcome<Artifact> {
    let artifact = hash(path).await.context(format!("cannot read `{}`", path.display()))?;
    let shown = Shown::new("uploading", title, artifact.size_bytes, printer);
    let mut attempt = 0;
    loop {
        match upload_once(cluster, path, &artifact, &shown).await {
            Ok(()) => return Ok(artifact),
            Err(status) if status.code() == tonic::Code::Unavailable && attempt < ATTEMPTS => attempt += 1,
            Err(status) => return Err(status.into()),
        }
    }
}

async fn upload_once(
    cluster: &Cluster,
    path: &Path,
    artifact: &Artifact,
    shown: &Shown,
) -> Result<(), tonic::Status> {
    let mut client = cluster.artifacts();
    let stat =
        client.stat_artifact(StatArtifactRequest { artifact_id: artifact.id.clone() }).await?.into_inner();
    if stat.stored {
        return Ok(());
    }
    let offset = stat.size_bytes;
    let mut file = fs::File::open(path).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    let header = UploadHeader { artifact: Some(artifact.clone()), offset };
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let feed = async move {
        // A closed channel means that the call ended; its own result tells why.
        if sender.send(UploadRequest { part: Some(Part::Header(header)) }).await.is_err() {
            return Ok(());
        }
        let mut sent = offset;
        loop {
            let mut chunk = vec![0; UPLOAD_CHUNK_BYTES];
            let read = file.read(&mut chunk).await?;
            if read == 0 {
                return Ok::<(), std::io::Error>(());
            }
            sent += read as u64;
            shown.set(sent);
            chunk.truncate(read);
            if sender.send(UploadRequest { part: Some(Part::Chunk(Bytes::from(chunk))) }).await.is_err() {
                return Ok(());
            }
        }
    };
    let call = client.upload(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let (fed, answered) = tokio::join!(feed, call);
    answered?;
    fed?;
    Ok(())
}

/// Content hash and size of a file.
async fn hash(path: &Path) -> std::io::Result<Artifact> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::open(path)?;
        let mut hasher = Sha256::new();
        let size_bytes = std::io::copy(&mut file, &mut hasher)?;
        Ok(Artifact { id: hex::encode(hasher.finalize()), size_bytes })
    })
    .await
    .expect("hashing does not panic")
}

/// Writes the parts, one after the other, as one file; a reader sees the whole file or none.
pub async fn download(cluster: &Cluster, parts: &[Artifact], path: &Path) -> Outcome<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).await.context(format!("cannot create `{}`", parent.display()))?;
    }
    let temporary = temporary_beside(path);
    let result = download_to(cluster, parts, &temporary).await;
    match result {
        Ok(()) => fs::rename(&temporary, path).await.context(format!("cannot write `{}`", path.display())),
        Err(failure) => {
            // Best effort: the failure that led here is the one to tell.
            let _ = fs::remove_file(&temporary).await;
            Err(failure)
        }
    }
}

async fn download_to(cluster: &Cluster, parts: &[Artifact], path: &Path) -> Outcome<()> {
    let mut file = fs::File::create(path).await.context(format!("cannot write `{}`", path.display()))?;
    for part in parts {
        let mut hasher = Sha256::new();
        let mut offset = 0;
        let mut attempt = 0;
        while offset < part.size_bytes {
            match download_from(cluster, part, &mut offset, &mut hasher, &mut file).await {
                Ok(()) => {}
                Err(failure) if attempt < ATTEMPTS => {
                    attempt += 1;
                    tracing::info!(artifact = part.id, attempt, "download broke off: {failure}");
                }
                Err(failure) => return Err(failure),
            }
        }
        if hex::encode(hasher.finalize()) != part.id {
            return Err(Failure::failed("a downloaded file does not match its hash; try again"));
        }
    }
    file.flush().await.context(format!("cannot write `{}`", path.display()))?;
    file.sync_all().await.context(format!("cannot write `{}`", path.display()))
}

async fn download_from(
    cluster: &Cluster,
    part: &Artifact,
    offset: &mut u64,
    hasher: &mut Sha256,
    file: &mut fs::File,
) -> Outcome<()> {
    let request = DownloadRequest { artifact_id: part.id.clone(), offset: *offset };
    let mut stream = cluster.artifacts().download(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        hasher.update(&message.chunk);
        file.write_all(&message.chunk).await?;
        *offset += message.chunk.len() as u64;
    }
    if *offset < part.size_bytes {
        return Err(Failure::failed("the download ended early"));
    }
    Ok(())
}

fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.part", std::process::id()))
}
