//! `ClusterService`.

use std::collections::BTreeMap;

use cappy_proto::{WorkerId, v1};
use tonic::{Request, Response, Status};

use super::{status::bad_field, view};
use crate::context::Context;

#[derive(Clone)]
pub(super) struct Clusters {
    pub(super) context: Context,
}

#[tonic::async_trait]
impl v1::cluster_service_server::ClusterService for Clusters {
    async fn list_workers(
        &self,
        _: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        Ok(Response::new(v1::ListWorkersResponse { workers: self.context.cluster.list() }))
    }

    async fn drain_worker(
        &self,
        request: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::DrainWorkerResponse>, Status> {
        let text = request.into_inner().worker_id;
        let connected = self.context.cluster.list();
        let lost = i32::from(v1::WorkerState::Lost);
        let mut found: Vec<&str> = connected
            .iter()
            .filter(|worker| worker.state != lost && !text.is_empty())
            .filter(|worker| {
                worker.id.starts_with(&text) || worker.id[WorkerId::PREFIX.len()..].starts_with(&text)
            })
            .map(|worker| worker.id.as_str())
            .collect();
        let shown: String = text.chars().take(64).collect();
        let id = match found.len() {
            0 => return Err(Status::not_found(format!("no connected worker `{shown}`"))),
            1 => found.remove(0),
            _ => {
                let candidates = found[..found.len().min(5)].join(", ");
                return Err(bad_field("worker_id", format!("`{shown}` names several workers: {candidates}")));
            }
        };
        let worker = id.parse().ok().and_then(|id| self.context.cluster.drain(&id));
        let worker = worker.ok_or_else(|| Status::not_found(format!("no connected worker `{shown}`")))?;
        Ok(Response::new(v1::DrainWorkerResponse { worker: Some(worker) }))
    }

    async fn list_models(
        &self,
        _: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let mut models: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let lost = i32::from(v1::WorkerState::Lost);
        for worker in self.context.cluster.list().into_iter().filter(|worker| worker.state != lost) {
            for model in worker.resident_models {
                models.entry(model).or_default().push(worker.id.clone());
            }
        }
        let models = models
            .into_iter()
            .map(|(fingerprint, worker_ids)| v1::ResidentModel { fingerprint, worker_ids })
            .collect();
        let registered = self.context.store.list_models().await?.iter().map(view::model).collect();
        Ok(Response::new(v1::ListModelsResponse { models, registered }))
    }

    async fn get_model(
        &self,
        request: Request<v1::GetModelRequest>,
    ) -> Result<Response<v1::GetModelResponse>, Status> {
        let text = request.into_inner().model_id;
        if text.is_empty() {
            return Err(bad_field("model_id", "give a model's id or a unique prefix of one"));
        }
        let model = self.context.store.find_model(&text).await?;
        let files = model
            .files
            .iter()
            .map(|file| v1::NamedArtifact {
                name: file.name.clone(),
                artifact: Some(v1::Artifact { id: file.id.clone(), size_bytes: file.size_bytes }),
            })
            .collect();
        Ok(Response::new(v1::GetModelResponse {
            model: Some(view::model(&model)),
            files: Some(v1::ModelFiles { files }),
        }))
    }
}
