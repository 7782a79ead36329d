//! `InferenceService` on the coordinator: a router with no state beyond membership. Each call goes to the least busy
//! worker that serves; deadline and trace go with it.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Poll, ready},
    time::Duration,
};

use cappy_proto::{
    MAX_MESSAGE_BYTES, WorkerId,
    v1::{self, inference_service_client::InferenceServiceClient},
};
use futures::{Stream, StreamExt as _};
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::status::try_again;
use crate::{context::Context, membership::Cluster};

/// Time to connect to a worker.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which a connection to a worker is probed.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Metadata that goes on to the worker.
const FORWARDED: [&str; 3] = ["grpc-timeout", "traceparent", "tracestate"];

#[derive(Clone)]
pub(super) struct Inference {
    pub(super) context: Context,
    channels: Arc<Mutex<HashMap<String, Channel>>>,
}

/// A worker's client for one call; the worker is given back when this is dropped.
struct Routed {
    client: InferenceServiceClient<Channel>,
    turn: Turn,
}

struct Turn {
    cluster: Arc<Cluster>,
    worker: WorkerId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.cluster.release(&self.worker);
    }
}

impl Inference {
    pub(super) fn new(context: Context) -> Self {
        Self { context, channels: Arc::default() }
    }

    fn route(&self, backend: &str) -> Result<Routed, Status> {
        let server = self.context.cluster.acquire(backend).ok_or_else(|| {
            let what = if backend.is_empty() { String::new() } else { format!(" with backend `{backend}`") };
            try_again(Code::Unavailable, format!("no worker{what} serves online calls now"))
        })?;
        let turn = Turn { cluster: Arc::clone(&self.context.cluster), worker: server.worker };
        let channel = self.channel(&server.url)?;
        let client = InferenceServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Routed { client, turn })
    }

    fn channel(&self, url: &str) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(url) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|_| Status::unavailable("a worker announced an unusable address"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE);
        // Addresses of workers that are gone would pile up.
        let serving: Vec<String> =
            self.context.cluster.list().into_iter().map(|worker| worker.inference_url).collect();
        channels.retain(|known, _| serving.contains(known));
        let channel = endpoint.connect_lazy();
        channels.insert(url.to_owned(), channel.clone());
        Ok(channel)
    }
}

fn forward<T>(metadata: &MetadataMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    for name in FORWARDED {
        if let Some(value) = metadata.get(name) {
            request.metadata_mut().insert(name, value.clone());
        }
    }
    request
}

/// A worker's status without the addresses that a broken connection's message names.
fn outward(status: Status) -> Status {
    if std::error::Error::source(&status).is_some() {
        tracing::warn!(error = &status as &dyn std::error::Error, "a worker could not be reached");
        return try_again(Code::Unavailable, "the worker that was to answer could not be reached");
    }
    status
}

macro_rules! relay {
    ($self:ident.$method:ident($request:ident)) => {{
        let (metadata, _, message) = $request.into_parts();
        let mut routed = $self.route(&message.backend)?;
        let reply = routed.client.$method(forward(&metadata, message)).await.map_err(outward)?;
        drop(routed.turn);
        Ok(Response::new(reply.into_inner()))
    }};
}

#[tonic::async_trait]
impl v1::inference_service_server::InferenceService for Inference {
    async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        relay!(self.score(request))
    }

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<v1::GenerateResponse>, Status> {
        relay!(self.generate(request))
    }

    async fn log_likelihood(
        &self,
        request: Request<v1::LogLikelihoodRequest>,
    ) -> Result<Response<v1::LogLikelihoodResponse>, Status> {
        relay!(self.log_likelihood(request))
    }

    async fn boost(&self, request: Request<v1::BoostRequest>) -> Result<Response<v1::BoostResponse>, Status> {
        relay!(self.boost(request))
    }

    type ScoreStreamStream = Relay<v1::ScoreStreamResponse>;

    async fn score_stream(
        &self,
        request: Request<Streaming<v1::ScoreStreamRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        let (metadata, _, messages) = request.into_parts();
        let mut routed = self.route("")?;
        let reply = routed.client.score_stream(forward(&metadata, good(messages))).await.map_err(outward)?;
        Ok(Response::new(Relay { inner: reply.into_inner(), _turn: routed.turn }))
    }

    type GenerateStreamStream = Relay<v1::GenerateStreamResponse>;

    async fn generate_stream(
        &self,
        request: Request<Streaming<v1::GenerateStreamRequest>>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (metadata, _, messages) = request.into_parts();
        let mut routed = self.route("")?;
        let reply =
            routed.client.generate_stream(forward(&metadata, good(messages))).await.map_err(outward)?;
        Ok(Response::new(Relay { inner: reply.into_inner(), _turn: routed.turn }))
    }
}

/// The client's messages up to its first error, which ends the worker's side too.
fn good<T: Send + 'static>(messages: Streaming<T>) -> impl Stream<Item = T> + Send + 'static {
    messages
        .take_while(|message| std::future::ready(message.is_ok()))
        .filter_map(|message| async { message.ok() })
}

/// A worker's replies, on their way to the client.
pub(super) struct Relay<T> {
    inner: Streaming<T>,
    _turn: Turn,
}

impl<T> Stream for Relay<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.inner.poll_next_unpin(context));
        Poll::Ready(next.map(|item| item.map_err(outward)))
    }
}
