//! `ArtifactService`: uploads and downloads in pieces, memory bounded by one piece a call.

use std::{pin::Pin, time::Duration};

use cappy_proto::{UPLOAD_CHUNK_BYTES, v1};
use futures::{Stream, StreamExt as _, stream};
use tonic::{Code, Request, Response, Status, Streaming};

use super::status::{bad_field, try_again};
use crate::{
    artifacts::{ArtifactError, Room, check_id},
    collection,
    context::Context,
    store::StoreError,
};

/// Time that an upload may send nothing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Jobs that a refusal for want of room names.
const NAMED_JOBS: u32 = 3;

#[derive(Clone)]
pub(super) struct Artifacts {
    pub(super) context: Context,
}

#[tonic::async_trait]
impl v1::artifact_service_server::ArtifactService for Artifacts {
    async fn upload(
        &self,
        request: Request<Streaming<v1::UploadRequest>>,
    ) -> Result<Response<v1::UploadResponse>, Status> {
        let mut requests = request.into_inner();
        let Some(v1::upload_request::Part::Header(header)) = next(&mut requests).await? else {
            return Err(bad_field("header", "an upload begins with a header"));
        };
        let artifact = header.artifact.ok_or_else(|| bad_field("header.artifact", "is missing"))?;
        check_id(&artifact.id)?;
        let known = self.context.store.touch_artifact(&artifact.id).await?.is_some();
        if let Some(size) = self.context.artifacts.size(&artifact.id).await?.filter(|_| known) {
            if size != artifact.size_bytes {
                return Err(bad_field(
                    "header.artifact.size_bytes",
                    format!("the artifact has {size} bytes"),
                ));
            }
            // Whoever still sends gets a reply, not a broken connection.
            while next(&mut requests).await?.is_some() {}
        } else {
            let store = &self.context.artifacts;
            let _room = room(&self.context, artifact.size_bytes).await?;
            let mut upload = store.begin(&artifact.id, artifact.size_bytes, header.offset).await?;
            while let Some(part) = next(&mut requests).await? {
                match part {
                    v1::upload_request::Part::Chunk(chunk) => upload.write(chunk).await?,
                    v1::upload_request::Part::Header(_) => {
                        return Err(bad_field("header", "an upload has one header"));
                    }
                }
            }
            upload.finish().await?;
        }
        self.context.record_artifact(&artifact.id, artifact.size_bytes).await.map_err(
            |error| match error {
                StoreError::UnknownArtifact { .. } => {
                    try_again(Code::Unavailable, "the file was removed meanwhile; send it again")
                }
                error => error.into(),
            },
        )?;
        Ok(Response::new(v1::UploadResponse { artifact: Some(artifact) }))
    }

    type DownloadStream = Pin<Box<dyn Stream<Item = Result<v1::DownloadResponse, Status>> + Send>>;

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let request = request.into_inner();
        let id = request.artifact_id;
        let store = self.context.artifacts.clone();
        let size = store.size(&id).await?.ok_or_else(|| ArtifactError::NotFound(id.clone()))?;
        if request.offset > size {
            return Err(bad_field("offset", format!("the artifact has {size} bytes")));
        }
        let pieces = stream::try_unfold(request.offset, move |place| {
            let (store, id) = (store.clone(), id.clone());
            async move {
                if place == size {
                    return Ok::<_, Status>(None);
                }
                let end = size.min(place + UPLOAD_CHUNK_BYTES as u64);
                let chunk = store.read(&id, place..end).await?;
                Ok(Some((v1::DownloadResponse { chunk }, end)))
            }
        });
        Ok(Response::new(pieces.boxed()))
    }

    async fn stat_artifact(
        &self,
        request: Request<v1::StatArtifactRequest>,
    ) -> Result<Response<v1::StatArtifactResponse>, Status> {
        let id = request.into_inner().artifact_id;
        // A file without its row is an upload whose last step was lost: to be sent again, which costs one message.
        let known = self.context.store.touch_artifact(&id).await?;
        let response = match (known, self.context.artifacts.size(&id).await?) {
            (Some(size_bytes), Some(_)) => v1::StatArtifactResponse { stored: true, size_bytes },
            _ => v1::StatArtifactResponse {
                stored: false,
                size_bytes: self.context.artifacts.received(&id).await?,
            },
        };
        Ok(Response::new(response))
    }
}

/// Room for an upload under the quota, for which what no job holds is removed first.
async fn room(context: &Context, bytes: u64) -> Result<Room, Status> {
    let quota = context.config.disk_quota;
    for last in [false, true] {
        let used = context.store.stored_bytes().await?;
        if let Some(room) = context.artifacts.reserve(bytes, used, quota) {
            return Ok(room);
        }
        if !last {
            collection::collect(context).await?;
            continue;
        }
        let jobs = context.store.heaviest_jobs(NAMED_JOBS).await?;
        let jobs: Vec<String> = jobs.iter().map(|(job, bytes)| format!("{job} ({})", size(*bytes))).collect();
        let remedy = if jobs.is_empty() {
            "no ended job holds anything; raise the quota".to_owned()
        } else {
            format!("remove jobs that are no longer needed: {}", jobs.join(", "))
        };
        return Err(try_again(
            Code::ResourceExhausted,
            format!(
                "the artifacts hold {} of their quota of {}, {} more do not fit; {remedy}",
                size(used),
                size(quota.unwrap_or(u64::MAX)),
                size(bytes)
            ),
        ));
    }
    unreachable!("the last round returns")
}

/// `1.5 GB`
fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

async fn next(
    requests: &mut Streaming<v1::UploadRequest>,
) -> Result<Option<v1::upload_request::Part>, Status> {
    let message = tokio::time::timeout(IDLE_TIMEOUT, requests.message()).await.map_err(|_| {
        try_again(Code::DeadlineExceeded, "the upload sent nothing for a minute; resume it")
    })??;
    match message {
        None => Ok(None),
        Some(v1::UploadRequest { part: Some(part) }) => Ok(Some(part)),
        Some(v1::UploadRequest { part: None }) => Err(bad_field("part", "is missing")),
    }
}
