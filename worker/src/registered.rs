//! Scorers that jobs have trained, as online calls name them: the coordinator knows their files, the artifact cache
//! keeps them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use cappy_proto::v1::{self, cluster_service_client::ClusterServiceClient};
use tokio::runtime::Handle;
use tonic::{Code, Status};

use crate::{
    artifacts::{self, ArtifactCache, CachedFile, TransferError},
    coordinator::{Access, Channel},
    execution::ExecutionError,
    models::{LocalModel, assemble},
};

/// What the ids of registered models begin with.
pub const PREFIX: &str = "mdl_";

/// To connect to the coordinator.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the coordinator to say which files a model has.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The models that a coordinator has registered.
pub struct Registered {
    channel: Channel,
    cache: Arc<ArtifactCache>,
    scratch: PathBuf,
    runtime: Handle,
}

impl Registered {
    /// Of a coordinator, connected to when first asked. Files come into `cache` and are put together in
    /// `scratch`. To be made inside a runtime.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn of(
        coordinator: &Access,
        cache: Arc<ArtifactCache>,
        scratch: PathBuf,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = coordinator.endpoint()?.connect_timeout(CONNECT_TIMEOUT);
        let channel = coordinator.with_token(endpoint.connect_lazy());
        Ok(Self { channel, cache, scratch, runtime: Handle::current() })
    }

    /// The model of an id or a unique prefix of one, as a directory on this machine. Blocks: not for async code.
    ///
    /// # Errors
    /// The coordinator's answer, when it does not know the model or cannot be asked; a file that does not arrive.
    pub fn locate(&self, id: &str) -> Result<LocalModel, ExecutionError> {
        let (model, files, cached) = self.runtime.block_on(self.fetch(id))?;
        let place = |artifact: &v1::Artifact| {
            let at = files.files.iter().position(|file| file.artifact.as_ref() == Some(artifact));
            at.map(|at| cached[at].path().to_owned())
                .ok_or_else(|| ExecutionError::internal("a model's file was not fetched"))
        };
        assemble(&files, &model.fingerprint, &place, &self.scratch)
    }

    async fn fetch(
        &self,
        id: &str,
    ) -> Result<(v1::RegisteredModel, v1::ModelFiles, Vec<CachedFile>), ExecutionError> {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        let request = v1::GetModelRequest { model_id: id.to_owned() };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, client.get_model(request))
            .await
            .unwrap_or_else(|_| Err(Status::unavailable("no answer in time")))
            .map_err(|status| not_told(id, &status))?
            .into_inner();
        let (Some(model), Some(files)) = (answer.model, answer.files) else {
            return Err(ExecutionError::internal(format!("the coordinator told nothing of `{id}`")));
        };
        let mut cached = Vec::with_capacity(files.files.len());
        for file in &files.files {
            let artifact = file.artifact.clone().unwrap_or_default();
            let fetched = artifacts::fetch(self.channel.clone(), &self.cache, &artifact).await;
            cached.push(fetched.map_err(|error| not_fetched(id, &error))?);
        }
        Ok((model, files, cached))
    }
}

fn not_told(id: &str, status: &Status) -> ExecutionError {
    match status.code() {
        Code::NotFound => ExecutionError::permanent("not_found", status.message()),
        Code::InvalidArgument => ExecutionError::permanent("invalid_argument", status.message()),
        _ => ExecutionError::attempt(
            "unavailable",
            format!("cannot ask the coordinator for `{id}`: {}", status.message()),
        ),
    }
}

fn not_fetched(id: &str, error: &TransferError) -> ExecutionError {
    let code = if error.is_missing() { "not_found" } else { "unavailable" };
    ExecutionError::attempt(code, format!("the files of `{id}` cannot be fetched: {error}"))
}
