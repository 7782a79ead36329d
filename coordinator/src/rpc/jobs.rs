//! `JobService`.

use std::pin::Pin;

use cappy_proto::{JobId, ModelId, v1};
use futures::{Stream, StreamExt as _, stream};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{
    status::{bad_field, bad_fields},
    view, watch,
};
use crate::{
    collection,
    context::Context,
    metrics::add,
    planner::{self, Registry, Violation, required_artifacts, result_files},
    store::{EventFilter, JobRecord, ModelRecord, NewJob, StoreError, Submitted},
};

/// Jobs on a page when the client does not say.
const DEFAULT_PAGE: u32 = 50;
/// Most jobs on a page.
const MAX_PAGE: u32 = 500;
/// Files or log lines in one message of a stream.
const STREAM_PAGE: usize = 200;
/// Longest idempotency key.
const MAX_KEY_BYTES: usize = 256;

/// Replies of a stream.
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone)]
pub(super) struct Jobs {
    pub(super) context: Context,
}

impl Jobs {
    async fn find(&self, text: &str) -> Result<JobId, Status> {
        if text.is_empty() {
            return Err(bad_field("job_id", "give a job's id or a unique prefix of one"));
        }
        Ok(self.context.store.find_job(text).await?)
    }

    async fn record(&self, text: &str) -> Result<JobRecord, Status> {
        let id = self.find(text).await?;
        Ok(self.context.store.job(&id).await?)
    }

    async fn view(&self, id: &JobId) -> Result<Option<v1::Job>, Status> {
        Ok(Some(view::job(&self.context, &self.context.store.job(id).await?)))
    }

    /// Artifacts that the spec reads must be there, or the job would fail later and further from its cause.
    async fn check_artifacts(&self, spec: &v1::JobSpec) -> Result<Vec<Violation>, Status> {
        let mut violations = Vec::new();
        for (field, artifact) in required_artifacts(spec) {
            match self.context.store.artifact(&artifact.id).await? {
                None => violations.push(Violation::new(field, "the artifact is not stored; upload it first")),
                Some(size) if size != artifact.size_bytes => violations.push(Violation::new(
                    format!("{field}.size_bytes"),
                    format!("the artifact has {size} bytes, not {}", artifact.size_bytes),
                )),
                Some(_) => {}
            }
        }
        Ok(violations)
    }

    /// The registered model that a spec names as its scorer; its id is completed in the spec, so that the plan stays
    /// what it is when other models come.
    async fn registered_scorer(&self, spec: &mut v1::JobSpec) -> Result<Option<ModelRecord>, Status> {
        let Some(kind) = planner::kind_of_mut(spec) else { return Ok(None) };
        let field = format!("spec.{}.scorer", kind.word());
        let Some(scorer) = kind.scorer_mut() else { return Ok(None) };
        if !scorer.starts_with(ModelId::PREFIX) {
            return Ok(None);
        }
        let model = match self.context.store.find_model(scorer).await {
            Ok(model) => model,
            Err(error @ (StoreError::NotFound { .. } | StoreError::Ambiguous { .. })) => {
                return Err(bad_field(&field, error.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        *scorer = model.id.to_string();
        Ok(Some(model))
    }
}

#[tonic::async_trait]
impl v1::job_service_server::JobService for Jobs {
    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::SubmitJobResponse>, Status> {
        let request = request.into_inner();
        if request.idempotency_key.len() > MAX_KEY_BYTES {
            return Err(bad_field("idempotency_key", "at most 256 bytes"));
        }
        let mut spec = request.spec.unwrap_or_default();
        let mut violations = planner::check(&spec);
        if violations.is_empty() {
            violations = self.check_artifacts(&spec).await?;
        }
        if !violations.is_empty() {
            return Err(bad_fields(violations));
        }
        let models: Vec<ModelRecord> = self.registered_scorer(&mut spec).await?.into_iter().collect();
        let kind = planner::kind_of(&spec).ok_or_else(|| bad_field("spec.kind", "is missing"))?;
        let id = JobId::generate();
        let job = NewJob {
            id: id.clone(),
            idempotency_key: Some(request.idempotency_key).filter(|key| !key.is_empty()),
            kind: kind.word().into(),
            title: kind.title(),
            priority: spec.priority,
            stages: kind.graph(Registry(&models)).stages(),
            inputs: required_artifacts(&spec).into_iter().map(|(_, artifact)| artifact.id.clone()).collect(),
            models: models.into_iter().map(|model| model.id).collect(),
            spec: spec.encode_to_vec(),
        };
        let (id, existing) = match self.context.store.submit(job).await? {
            Submitted::New => (id, false),
            Submitted::Existing(id) => (id, true),
        };
        if !existing {
            add(&self.context.metrics.jobs_submitted, 1);
            tracing::info!(job = %id, "job submitted");
            self.context.scheduler.look_at(&id);
        }
        Ok(Response::new(v1::SubmitJobResponse { job: self.view(&id).await?, existing }))
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::GetJobResponse>, Status> {
        let record = self.record(&request.into_inner().job_id).await?;
        Ok(Response::new(v1::GetJobResponse { job: Some(view::job(&self.context, &record)) }))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let request = request.into_inner();
        let size = if request.page_size == 0 { DEFAULT_PAGE } else { request.page_size.min(MAX_PAGE) };
        let before: Option<JobId> = match request.page_token.as_str() {
            "" => None,
            token => Some(
                token.parse().map_err(|_| bad_field("page_token", "give the token of the page before"))?,
            ),
        };
        let rows = self.context.store.list_jobs(size, before.as_ref()).await?;
        let more = rows.len() == size as usize;
        let next_page_token = rows.last().filter(|_| more).map(|row| row.id.to_string()).unwrap_or_default();
        Ok(Response::new(v1::ListJobsResponse {
            jobs: rows.iter().map(view::row).collect(),
            next_page_token,
        }))
    }

    type WatchJobStream = Replies<v1::WatchJobResponse>;

    async fn watch_job(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let record = self.record(&request.into_inner().job_id).await?;
        let stream = watch::watch(self.context.clone(), record.row.id.clone(), record);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let id = self.find(&request.into_inner().job_id).await?;
        let (_, revoked) = self.context.store.cancel(&id).await?;
        self.context.tell_revoked(&revoked, "the job was cancelled");
        self.context.job_changed(&id);
        Ok(Response::new(v1::CancelJobResponse { job: self.view(&id).await? }))
    }

    async fn pause_job(
        &self,
        request: Request<v1::PauseJobRequest>,
    ) -> Result<Response<v1::PauseJobResponse>, Status> {
        let id = self.find(&request.into_inner().job_id).await?;
        let (_, revoked) = self.context.store.set_paused(&id, true).await?;
        self.context.tell_revoked(&revoked, "the job was paused");
        self.context.job_changed(&id);
        Ok(Response::new(v1::PauseJobResponse { job: self.view(&id).await? }))
    }

    async fn resume_job(
        &self,
        request: Request<v1::ResumeJobRequest>,
    ) -> Result<Response<v1::ResumeJobResponse>, Status> {
        let id = self.find(&request.into_inner().job_id).await?;
        self.context.store.set_paused(&id, false).await?;
        self.context.job_changed(&id);
        Ok(Response::new(v1::ResumeJobResponse { job: self.view(&id).await? }))
    }

    async fn delete_job(
        &self,
        request: Request<v1::DeleteJobRequest>,
    ) -> Result<Response<v1::DeleteJobResponse>, Status> {
        let id = self.find(&request.into_inner().job_id).await?;
        let models = self.context.store.delete(&id).await?;
        for model in &models {
            tracing::info!(job = %id, %model, "the job's model went with it");
        }
        // Whoever removes a job wants the room now; what fails here is done by the next round.
        if let Err(error) = collection::collect(&self.context).await {
            tracing::error!(error = &error as &dyn std::error::Error, "failed to remove artifacts");
        }
        let models = models.into_iter().map(String::from).collect();
        Ok(Response::new(v1::DeleteJobResponse { models }))
    }

    type GetResultsStream = Replies<v1::GetResultsResponse>;

    async fn get_results(
        &self,
        request: Request<v1::GetResultsRequest>,
    ) -> Result<Response<Self::GetResultsStream>, Status> {
        let record = self.record(&request.into_inner().job_id).await?;
        let graph = planner::graph_of(&record)
            .ok_or_else(|| Status::failed_precondition("the job was written by another version"))?;
        let pages: Vec<Result<v1::GetResultsResponse, Status>> = result_files(&graph, &record.stages)
            .chunks(STREAM_PAGE)
            .map(|files| {
                let files = files
                    .iter()
                    .map(|file| v1::ResultFile { path: file.path.clone(), parts: file.parts.clone() })
                    .collect();
                Ok(v1::GetResultsResponse { files })
            })
            .collect();
        Ok(Response::new(Box::pin(stream::iter(pages))))
    }

    type GetLogsStream = Replies<v1::GetLogsResponse>;

    async fn get_logs(
        &self,
        request: Request<v1::GetLogsRequest>,
    ) -> Result<Response<Self::GetLogsStream>, Status> {
        let request = request.into_inner();
        let id = self.find(&request.job_id).await?;
        let only = EventFilter { stage: request.stage, shard: request.shard_id };
        let store = self.context.store.clone();
        let pages = stream::try_unfold(0, move |after| {
            let (store, id, only) = (store.clone(), id.clone(), only.clone());
            async move {
                let events = store.events(&id, after, STREAM_PAGE as u32, &only).await?;
                let Some(last) = events.last().map(|event| event.seq) else { return Ok::<_, Status>(None) };
                let entries = events
                    .into_iter()
                    .map(|event| v1::LogEntry {
                        time: view::time(event.time),
                        stage: event.stage,
                        shard_id: event.shard,
                        worker_id: event.worker,
                        level: event.level,
                        message: event.message,
                    })
                    .collect();
                Ok(Some((v1::GetLogsResponse { entries }, last)))
            }
        });
        Ok(Response::new(pages.boxed()))
    }
}
