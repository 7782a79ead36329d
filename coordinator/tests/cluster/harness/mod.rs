//! A coordinator on a free port with its state in a folder of its own, and a client.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, time::Duration};

use cappy_coordinator::{Config, Handle, start};
use cappy_proto::v1::{
    self, artifact_service_client::ArtifactServiceClient, cluster_service_client::ClusterServiceClient,
    inference_service_client::InferenceServiceClient, job_service_client::JobServiceClient, job_spec::Kind,
    worker_service_client::WorkerServiceClient,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt as _;

/// No state is waited for longer; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Harness {
    pub url: String,
    channel: Channel,
    folder: TempDir,
    handle: Handle,
    shutdown: CancellationToken,
    change: Change,
}

type Change = Box<dyn Fn(&mut Config) + Send + Sync>;

/// Waits for a state, never for a time.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

impl Harness {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A coordinator with other settings than a test's usual ones.
    pub async fn start_with(change: impl Fn(&mut Config) + Send + Sync + 'static) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), Box::new(change)).await
    }

    async fn start_in(folder: TempDir, change: Change) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let mut config = Config::new(
            any,
            format!("sqlite://{}", at("jobs.sqlite")),
            format!("file://{}", at("artifacts")),
        );
        config.http = Some(any);
        config.lease_ttl = Duration::from_secs(20);
        config.heartbeat_interval = Duration::from_millis(50);
        config.reconnect_grace = Duration::from_millis(50);
        config.sweep_interval = Duration::from_millis(20);
        config.watch_interval = Duration::from_millis(10);
        config.retry_backoff = Duration::from_millis(1);
        change(&mut config);
        let shutdown = CancellationToken::new();
        let handle = start(config, shutdown.clone()).await.unwrap();
        let url = format!("http://{}", handle.local_addr());
        let channel = Channel::from_shared(url.clone()).unwrap().connect_lazy();
        Self { url, channel, folder, handle, shutdown, change }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.handle.stopped().await;
    }

    /// Ends the coordinator and starts another on the same state.
    pub async fn restart(self) -> Self {
        let Self { folder, handle, shutdown, change, .. } = self;
        shutdown.cancel();
        handle.stopped().await;
        Self::start_in(folder, change).await
    }

    fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone())
    }

    pub async fn upload(&self, content: &[u8]) -> v1::Artifact {
        self.try_upload(content).await.unwrap()
    }

    pub async fn try_upload(&self, content: &[u8]) -> Result<v1::Artifact, Status> {
        crate::fake_worker::upload(&self.channel, content).await
    }

    /// Below the folder of the artifact store.
    pub fn artifact_path(&self, name: &str) -> PathBuf {
        self.folder.path().join("artifacts").join(name)
    }

    /// Names of all files that are stored.
    pub fn stored(&self) -> Vec<String> {
        let folders = std::fs::read_dir(self.artifact_path("objects")).unwrap();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub async fn try_submit(
        &self,
        spec: &v1::BigbenchSpec,
        key: &str,
    ) -> Result<v1::SubmitJobResponse, Status> {
        self.try_submit_spec(job_spec(Kind::Bigbench(spec.clone())), key).await
    }

    pub async fn try_submit_spec(
        &self,
        spec: v1::JobSpec,
        key: &str,
    ) -> Result<v1::SubmitJobResponse, Status> {
        let request = v1::SubmitJobRequest { spec: Some(spec), idempotency_key: key.into() };
        Ok(self.jobs().submit_job(request).await?.into_inner())
    }

    pub async fn submit(&self, spec: &v1::BigbenchSpec, key: &str) -> v1::Job {
        let response = self.try_submit(spec, key).await.unwrap();
        assert!(!response.existing);
        response.job.unwrap()
    }

    pub async fn submit_kind(&self, kind: Kind) -> v1::Job {
        self.try_submit_spec(job_spec(kind), "").await.unwrap().job.unwrap()
    }

    pub async fn submit_urgent(&self, kind: Kind, priority: i32) -> v1::Job {
        let spec = v1::JobSpec { priority, ..job_spec(kind) };
        self.try_submit_spec(spec, "").await.unwrap().job.unwrap()
    }

    pub async fn pause(&self, id: &str) -> v1::Job {
        let request = v1::PauseJobRequest { job_id: id.into() };
        self.jobs().pause_job(request).await.unwrap().into_inner().job.unwrap()
    }

    pub async fn resume(&self, id: &str) -> v1::Job {
        let request = v1::ResumeJobRequest { job_id: id.into() };
        self.jobs().resume_job(request).await.unwrap().into_inner().job.unwrap()
    }

    /// A file of rows, uploaded.
    pub async fn rows(&self, name: &str, rows: &[serde_json::Value]) -> Option<v1::RowFile> {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let artifact = Some(self.upload(text.as_bytes()).await);
        Some(v1::RowFile { name: name.into(), artifact, rows: rows.len() as u64 })
    }

    pub async fn try_job(&self, id: &str) -> Result<v1::Job, Status> {
        let request = v1::GetJobRequest { job_id: id.into() };
        Ok(self.jobs().get_job(request).await?.into_inner().job.unwrap())
    }

    pub async fn job(&self, id: &str) -> v1::Job {
        self.try_job(id).await.unwrap()
    }

    pub async fn list(&self) -> Vec<v1::Job> {
        self.jobs().list_jobs(v1::ListJobsRequest::default()).await.unwrap().into_inner().jobs
    }

    pub async fn cancel(&self, id: &str) -> v1::Job {
        let request = v1::CancelJobRequest { job_id: id.into() };
        self.jobs().cancel_job(request).await.unwrap().into_inner().job.unwrap()
    }

    pub async fn delete(&self, id: &str) -> Result<Vec<String>, Status> {
        let request = v1::DeleteJobRequest { job_id: id.into() };
        Ok(self.jobs().delete_job(request).await?.into_inner().models)
    }

    pub async fn models(&self) -> Vec<v1::RegisteredModel> {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        client.list_models(v1::ListModelsRequest {}).await.unwrap().into_inner().registered
    }

    pub async fn model(&self, id: &str) -> Result<v1::GetModelResponse, Status> {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        Ok(client.get_model(v1::GetModelRequest { model_id: id.into() }).await?.into_inner())
    }

    /// Watches a job to its end. The shown progress never goes back.
    pub async fn end_of(&self, id: &str) -> v1::Job {
        let watching = async {
            let request = v1::WatchJobRequest { job_id: id.into() };
            let mut snapshots = self.jobs().watch_job(request).await.unwrap().into_inner();
            let (mut last, mut reached) = (None, 0.0);
            while let Some(snapshot) = snapshots.message().await.unwrap() {
                let job = snapshot.job.unwrap();
                let fraction = job.progress.as_ref().unwrap().fraction;
                assert!((reached..=1.0).contains(&fraction), "{reached} -> {fraction}");
                reached = fraction;
                last = Some(job);
            }
            last.unwrap()
        };
        tokio::time::timeout(PATIENCE, watching).await.expect("the job ends")
    }

    /// All result files with their content.
    pub async fn results(&self, id: &str) -> HashMap<String, Vec<u8>> {
        let request = v1::GetResultsRequest { job_id: id.into() };
        let mut pages = self.jobs().get_results(request).await.unwrap().into_inner();
        let mut files = HashMap::new();
        while let Some(page) = pages.message().await.unwrap() {
            for file in page.files {
                let mut content = Vec::new();
                for part in file.parts {
                    let request = v1::DownloadRequest { artifact_id: part.id, offset: 0 };
                    let mut client = ArtifactServiceClient::new(self.channel.clone());
                    let mut pieces = client.download(request).await.unwrap().into_inner();
                    while let Some(piece) = pieces.message().await.unwrap() {
                        content.extend_from_slice(&piece.chunk);
                    }
                }
                assert!(files.insert(file.path, content).is_none());
            }
        }
        files
    }

    /// `stage message`, a line an entry.
    pub async fn log(&self, id: &str) -> Vec<String> {
        self.log_of(id, "", "").await
    }

    /// The entries of one stage or shard.
    pub async fn log_of(&self, id: &str, stage: &str, shard: &str) -> Vec<String> {
        let request = v1::GetLogsRequest { job_id: id.into(), stage: stage.into(), shard_id: shard.into() };
        let mut pages = self.jobs().get_logs(request).await.unwrap().into_inner();
        let mut lines = Vec::new();
        while let Some(page) = pages.message().await.unwrap() {
            lines.extend(page.entries.into_iter().map(|entry| format!("{} {}", entry.stage, entry.message)));
        }
        lines
    }

    pub async fn workers(&self) -> Vec<v1::Worker> {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        client.list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner().workers
    }

    pub async fn drain(&self, id: &str) -> Result<v1::Worker, Status> {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        let request = v1::DrainWorkerRequest { worker_id: id.into() };
        Ok(client.drain_worker(request).await?.into_inner().worker.unwrap())
    }

    pub async fn try_session(&self, hello: v1::Hello) -> Result<(), Status> {
        let message = Some(v1::session_request::Message::Hello(hello));
        let requests = tokio_stream::iter([v1::SessionRequest { message }]);
        WorkerServiceClient::new(self.channel.clone()).session(requests).await.map(drop)
    }

    pub fn inference(&self) -> InferenceServiceClient<Channel> {
        InferenceServiceClient::new(self.channel.clone())
    }

    pub async fn score(&self) -> Result<v1::ScoreResponse, Status> {
        Ok(self.inference().score(v1::ScoreRequest::default()).await?.into_inner())
    }

    pub async fn serving(&self, service: &str) -> bool {
        let request = HealthCheckRequest { service: service.into() };
        let reply = HealthClient::new(self.channel.clone()).check(request).await.unwrap().into_inner();
        reply.status() == ServingStatus::Serving
    }

    pub async fn reflects(&self, service: &str) -> bool {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut replies = ServerReflectionClient::new(self.channel.clone())
            .server_reflection_info(tokio_stream::iter([request]))
            .await
            .unwrap()
            .into_inner();
        match replies.message().await.unwrap().unwrap().message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => {
                list.service.iter().any(|found| found.name == service)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Body of a GET.
    pub async fn http(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.handle.http_addr().unwrap()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        reply
    }
}

/// Fields of a BadRequest.
pub fn violations(status: &Status) -> Vec<String> {
    let details = status.get_details_bad_request().expect("the status has a BadRequest");
    details.field_violations.into_iter().map(|violation| violation.field).collect()
}

/// A spec of this kind.
pub fn job_spec(kind: Kind) -> v1::JobSpec {
    v1::JobSpec { kind: Some(kind), priority: 0 }
}

/// Subsets of 100 train and 40 validation rows, whose references are what the fake generator answers first.
pub async fn spec(harness: &Harness, subsets: &[&str]) -> v1::BigbenchSpec {
    let mut list = Vec::new();
    for name in subsets {
        let rows = |split: &str, count: u64| -> String {
            (0..count)
                .map(|row| {
                    format!(
                        "{{\"dataset\":\"{name}\",\"example_idx\":{row},\"instruction\":\"{name} {split} {row}\",\
                         \"references\":[\"answer {row} 0\"]}}\n"
                    )
                })
                .collect()
        };
        list.push(v1::BigbenchSubset {
            name: (*name).into(),
            train: Some(harness.upload(rows("train", 100).as_bytes()).await),
            validation: Some(harness.upload(rows("validation", 40).as_bytes()).await),
            train_rows: 100,
            validation_rows: 40,
            generated: false,
        });
    }
    v1::BigbenchSpec {
        model: "tests/gen".into(),
        scorer: "scorer".into(),
        subsets: list,
        generation: generation(),
        fine_tuning: fine_tuning(),
        ..Default::default()
    }
}

/// One beam and two samples a row.
pub fn generation() -> Option<v1::GenerationSettings> {
    let sampling = v1::Sampling { temperature: 1.0, top_k: 50, top_p: 1.0 };
    let beam = v1::BeamSearch { num_beams: 4, length_penalty: 1.0, early_stopping: false };
    let decoding = |name: &str, num_samples, method| v1::Decoding {
        name: name.into(),
        num_samples,
        min_length: 3,
        max_length: 64,
        min_length_rule: v1::MinLengthRule::Pytorch.into(),
        method: Some(method),
    };
    Some(v1::GenerationSettings {
        decodings: vec![
            decoding("beam4", 1, v1::decoding::Method::Beam(beam)),
            decoding("sampling", 2, v1::decoding::Method::Sampling(sampling)),
        ],
        max_source_tokens: 512,
        seed: 11111,
    })
}

pub fn fine_tuning() -> Option<v1::FineTuning> {
    Some(v1::FineTuning {
        learning_rate: 2e-5,
        batch_size: 8,
        accumulate: 16,
        train_size: 1024,
        warmup: 0.1,
        schedule: v1::Schedule::Corrected.into(),
        dropout: 0.1,
        order: v1::RowOrder::Shuffled.into(),
        seed: 11111,
        max_tokens: 512,
        ..Default::default()
    })
}
