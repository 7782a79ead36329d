//! The other end of the wire: leases out, artifacts in memory, and a record of what the worker said.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use cappy_proto::v1::{
    self,
    artifact_service_server::{ArtifactService, ArtifactServiceServer},
    cluster_service_server::{ClusterService, ClusterServiceServer},
    session_request::Message as Said,
    session_response::Message as Heard,
    worker_service_server::{WorkerService, WorkerServiceServer},
};
use futures::Stream;
use sha2::{Digest as _, Sha256};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Nothing here takes a tenth of it, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the worker told so far.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub hellos: Vec<v1::Hello>,
    pub heartbeats: Vec<v1::Heartbeat>,
    pub completed: Vec<v1::CompleteShardRequest>,
    pub failed: Vec<v1::FailShardRequest>,
    pub joined: Vec<v1::JoinGroupRequest>,
    pub uploads: usize,
    pub sessions_ended: usize,
}

#[derive(Default)]
struct State {
    artifacts: Mutex<HashMap<String, Bytes>>,
    /// Registered models.
    models: Mutex<Vec<v1::GetModelResponse>>,
    /// Sends into the open session.
    session: Mutex<Option<mpsc::Sender<Result<v1::SessionResponse, Status>>>>,
    /// Completions that are answered with UNAVAILABLE first.
    refuse_completions: Mutex<u32>,
    refuse_sessions: Mutex<Option<Status>>,
    /// What whoever wants to meet others is told.
    place: Mutex<Option<Result<v1::JoinGroupResponse, Status>>>,
}

#[derive(Clone)]
pub struct Coordinator {
    state: Arc<State>,
    record: watch::Sender<Record>,
    lease_ttl_ms: u32,
}

/// A coordinator that listens; it ends with this.
pub struct Running {
    pub coordinator: Coordinator,
    pub address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Coordinator {
    pub fn new(lease_ttl_ms: u32) -> Self {
        Self { state: Arc::default(), record: watch::channel(Record::default()).0, lease_ttl_ms }
    }

    pub async fn serve(&self, address: SocketAddr) -> Running {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let router = Server::builder()
            .add_service(WorkerServiceServer::new(self.clone()))
            .add_service(ArtifactServiceServer::new(self.clone()))
            .add_service(ClusterServiceServer::new(self.clone()));
        let task = tokio::spawn(async move {
            // Dropping the server's future drops its connections, as a crash would.
            tokio::select! {
                result = router.serve_with_incoming(TcpListenerStream::new(listener)) => result.unwrap(),
                () = stopping.cancelled() => {}
            }
        });
        Running { coordinator: self.clone(), address, stop, task }
    }

    pub fn put(&self, content: impl Into<Bytes>) -> v1::Artifact {
        let content = content.into();
        let id = hex::encode(Sha256::digest(&content));
        let size_bytes = content.len() as u64;
        self.state.artifacts.lock().unwrap().insert(id.clone(), content);
        v1::Artifact { id, size_bytes }
    }

    pub fn get(&self, id: &str) -> Option<Bytes> {
        self.state.artifacts.lock().unwrap().get(id).cloned()
    }

    pub fn register(&self, id: &str, fingerprint: &str, files: v1::ModelFiles) {
        let [id, fingerprint] = [id, fingerprint].map(str::to_owned);
        let model = Some(v1::RegisteredModel { id, fingerprint, ..v1::RegisteredModel::default() });
        self.state.models.lock().unwrap().push(v1::GetModelResponse { model, files: Some(files) });
    }

    pub fn refuse_completions(&self, count: u32) {
        *self.state.refuse_completions.lock().unwrap() = count;
    }

    pub fn refuse_sessions(&self, status: Status) {
        *self.state.refuse_sessions.lock().unwrap() = Some(status);
    }

    pub fn answer_joins(&self, answer: Result<v1::JoinGroupResponse, Status>) {
        *self.state.place.lock().unwrap() = Some(answer);
    }

    /// Waits until what the worker told satisfies `wanted`; a worker that never does shows what it did instead.
    pub async fn until(&self, wanted: impl Fn(&Record) -> bool) -> Record {
        let mut told = self.record.subscribe();
        let state = tokio::time::timeout(PATIENCE, told.wait_for(|record| wanted(record))).await;
        match state {
            Ok(record) => record.unwrap().clone(),
            Err(_) => {
                let mut record = self.record.borrow().clone();
                record.heartbeats.drain(..record.heartbeats.len().saturating_sub(1));
                panic!("the worker did not get there: {record:#?}")
            }
        }
    }

    pub async fn say(&self, message: Heard) {
        let session = self.state.session.lock().unwrap().clone().expect("a session is open");
        session.send(Ok(v1::SessionResponse { message: Some(message) })).await.unwrap();
    }

    pub async fn lease(&self, lease_id: &str, task: v1::ShardTask) {
        self.lease_to_gang(lease_id, task, None).await;
    }

    pub async fn lease_to_gang(&self, lease_id: &str, task: v1::ShardTask, gang: Option<v1::Gang>) {
        let lease = v1::Lease {
            lease_id: lease_id.to_owned(),
            fencing_token: 7,
            shard_id: format!("shard of {lease_id}"),
            task: Some(task),
            gang,
            ..v1::Lease::default()
        };
        self.say(Heard::Lease(lease)).await;
    }
}

impl Running {
    /// As a crash: connections break, nothing is said.
    pub async fn crash(self) {
        self.stop.cancel();
        self.task.await.unwrap();
        self.coordinator.state.session.lock().unwrap().take();
    }
}

#[tonic::async_trait]
impl WorkerService for Coordinator {
    type SessionStream = ReceiverStream<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if let Some(status) = self.state.refuse_sessions.lock().unwrap().clone() {
            return Err(status);
        }
        let mut said = request.into_inner();
        let (send, receive) = mpsc::channel(16);
        let welcome = v1::Welcome {
            worker_id: "wrk_1".into(),
            heartbeat_interval_ms: 50,
            lease_ttl_ms: self.lease_ttl_ms,
        };
        send.send(Ok(v1::SessionResponse { message: Some(Heard::Welcome(welcome)) })).await.unwrap();
        *self.state.session.lock().unwrap() = Some(send);
        let this = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = said.message().await {
                this.record.send_modify(|record| match request.message {
                    Some(Said::Hello(hello)) => record.hellos.push(hello),
                    Some(Said::Heartbeat(heartbeat)) => record.heartbeats.push(heartbeat),
                    None => {}
                });
            }
            this.record.send_modify(|record| record.sessions_ended += 1);
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn complete_shard(
        &self,
        request: Request<v1::CompleteShardRequest>,
    ) -> Result<Response<v1::CompleteShardResponse>, Status> {
        {
            let mut refuse = self.state.refuse_completions.lock().unwrap();
            if *refuse > 0 {
                *refuse -= 1;
                return Err(Status::unavailable("not now"));
            }
        }
        self.record.send_modify(|record| record.completed.push(request.into_inner()));
        Ok(Response::new(v1::CompleteShardResponse { newly_committed: true }))
    }

    async fn fail_shard(
        &self,
        request: Request<v1::FailShardRequest>,
    ) -> Result<Response<v1::FailShardResponse>, Status> {
        self.record.send_modify(|record| record.failed.push(request.into_inner()));
        Ok(Response::new(v1::FailShardResponse {}))
    }

    async fn join_group(
        &self,
        request: Request<v1::JoinGroupRequest>,
    ) -> Result<Response<v1::JoinGroupResponse>, Status> {
        self.record.send_modify(|record| record.joined.push(request.into_inner()));
        let answer = self.state.place.lock().unwrap().clone();
        answer.expect("the test says what ranks are told").map(Response::new)
    }
}

#[tonic::async_trait]
impl ArtifactService for Coordinator {
    type DownloadStream = Pin<Box<dyn Stream<Item = Result<v1::DownloadResponse, Status>> + Send>>;

    async fn upload(
        &self,
        request: Request<Streaming<v1::UploadRequest>>,
    ) -> Result<Response<v1::UploadResponse>, Status> {
        let mut parts = request.into_inner();
        let Some(v1::upload_request::Part::Header(header)) = parts.message().await?.and_then(|it| it.part)
        else {
            return Err(Status::invalid_argument("the first part is a header"));
        };
        let mut content = Vec::new();
        while let Some(request) = parts.message().await? {
            if let Some(v1::upload_request::Part::Chunk(chunk)) = request.part {
                content.extend_from_slice(&chunk);
            }
        }
        let announced = header.artifact.unwrap();
        let stored = self.put(content);
        assert_eq!((header.offset, &stored), (0, &announced));
        self.record.send_modify(|record| record.uploads += 1);
        Ok(Response::new(v1::UploadResponse { artifact: Some(stored) }))
    }

    async fn download(
        &self,
        request: Request<v1::DownloadRequest>,
    ) -> Result<Response<Self::DownloadStream>, Status> {
        let v1::DownloadRequest { artifact_id, offset } = request.into_inner();
        let content = self.get(&artifact_id).ok_or_else(|| Status::not_found("no such artifact"))?;
        let rest = content.slice(offset as usize..);
        let chunks: Vec<_> =
            rest.chunks(100).map(|chunk| Ok(v1::DownloadResponse { chunk: rest.slice_ref(chunk) })).collect();
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }

    async fn stat_artifact(
        &self,
        request: Request<v1::StatArtifactRequest>,
    ) -> Result<Response<v1::StatArtifactResponse>, Status> {
        let content = self.get(&request.into_inner().artifact_id);
        let size_bytes = content.as_ref().map_or(0, |content| content.len() as u64);
        Ok(Response::new(v1::StatArtifactResponse { stored: content.is_some(), size_bytes }))
    }
}

#[tonic::async_trait]
impl ClusterService for Coordinator {
    async fn get_model(
        &self,
        request: Request<v1::GetModelRequest>,
    ) -> Result<Response<v1::GetModelResponse>, Status> {
        let wanted = request.into_inner().model_id;
        let models = self.state.models.lock().unwrap();
        let found = models.iter().find(|model| model.model.as_ref().unwrap().id.starts_with(&wanted));
        let found = found.cloned().ok_or_else(|| Status::not_found(format!("no model `{wanted}`")))?;
        Ok(Response::new(found))
    }

    async fn list_models(
        &self,
        _: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        Err(Status::unimplemented("workers do not ask"))
    }

    async fn list_workers(
        &self,
        _: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        Err(Status::unimplemented("workers do not ask"))
    }

    async fn drain_worker(
        &self,
        _: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::DrainWorkerResponse>, Status> {
        Err(Status::unimplemented("workers do not ask"))
    }
}
