//! Choosing a worker for a call, and another one when it cannot answer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cappy_proto::{
    MAX_MESSAGE_BYTES, WorkerId, timeout,
    v1::{self, inference_service_client::InferenceServiceClient},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tonic::{
    Code, Request, Response, Status,
    metadata::{KeyRef, MetadataMap},
    transport::{Channel, Endpoint},
};

use crate::{
    context::Context,
    membership::{Cluster, Wanted},
    rpc::status::try_again,
};

/// Time to connect to a worker.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which a connection to a worker is probed, and time it has to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));
/// Workers that one call is given to at most.
pub(super) const MAX_ATTEMPTS: usize = 4;
/// Calls that are under way at the same time, streams included.
const MAX_CALLS: usize = 4096;
/// Models whose content is remembered.
const MAX_KNOWN: usize = 1024;
/// Answering an instruction is as much work as scoring so many pairs.
pub(super) const ROWS_PER_GENERATION: usize = 32;
/// Metadata that is about this hop, or is for the coordinator alone.
const OWN_METADATA: [&str; 7] =
    ["authorization", "cookie", "content-type", "te", "user-agent", "host", "connection"];

pub(super) type Client = InferenceServiceClient<Channel>;

/// A request as far as routing needs to know it.
pub(super) trait Call: Clone + Send + Sync + 'static {
    fn backend(&self) -> &str;
    /// Names of its models; empty: none.
    fn models(&self) -> [&str; 2];
    /// How much work it is, in pairs to score.
    fn rows(&self) -> usize;
}

#[derive(Clone)]
pub(super) struct Router {
    context: Context,
    channels: Arc<Mutex<HashMap<String, Channel>>>,
    /// Content of models by name, as workers told it.
    known: Arc<Mutex<HashMap<String, String>>>,
    calls: Arc<Semaphore>,
}

/// A worker's client for one call; the worker is given back when this is dropped.
pub(super) struct Routed {
    pub(super) client: Client,
    pub(super) turn: Turn,
}

pub(super) struct Turn {
    cluster: Arc<Cluster>,
    pub(super) worker: WorkerId,
    rows: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.cluster.release(&self.worker, self.rows);
    }
}

impl Router {
    pub(super) fn new(context: Context) -> Self {
        Self {
            context,
            channels: Arc::default(),
            known: Arc::default(),
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
        }
    }

    /// Lets a call in.
    pub(super) fn admit(&self) -> Result<OwnedSemaphorePermit, Status> {
        let full = |_| try_again(Code::ResourceExhausted, "the coordinator has too many online calls");
        Arc::clone(&self.calls).try_acquire_owned().map_err(full)
    }

    /// A worker for a call, none of those that were tried.
    pub(super) fn route<C: Call>(&self, call: &C, tried: &[WorkerId]) -> Result<Routed, Status> {
        let models: Vec<String> = {
            let known = lock(&self.known);
            call.models().iter().filter_map(|model| known.get(*model).cloned()).collect()
        };
        let rows = call.rows().max(1) as u64;
        let wanted = Wanted { backend: call.backend(), models: &models, rows, tried };
        let server = self.context.cluster.acquire(wanted).ok_or_else(|| {
            let what = match call.backend() {
                "" => String::new(),
                backend => format!(" with backend `{backend}`"),
            };
            try_again(Code::Unavailable, format!("no worker{what} serves online calls now"))
        })?;
        let turn = Turn { cluster: Arc::clone(&self.context.cluster), worker: server.worker, rows };
        let client = InferenceServiceClient::new(self.channel(&server.url)?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Routed { client, turn })
    }

    /// Calls a worker; another one where that cannot answer. With the answer come the names of the call's models.
    pub(super) async fn call<C: Call, A>(
        &self,
        request: Request<C>,
        method: impl AsyncFn(&mut Client, Request<C>) -> Result<Response<A>, Status>,
    ) -> Result<(A, [String; 2]), Status> {
        let _admitted = self.admit()?;
        let (metadata, _, message) = request.into_parts();
        let deadline = Deadline::of(&metadata);
        let (mut tried, mut last) = (Vec::new(), None);
        while tried.len() < MAX_ATTEMPTS {
            let mut routed = match self.route(&message, &tried) {
                Ok(routed) => routed,
                // Whoever there is was asked: what the last one said tells more.
                Err(status) => return Err(last.unwrap_or(status)),
            };
            let forwarded = forward(&metadata, message.clone(), deadline)?;
            match deadline.limit(method(&mut routed.client, forwarded)).await? {
                Ok(answer) => return Ok((answer.into_inner(), message.models().map(str::to_owned))),
                Err(status) => {
                    let again = elsewhere(&status);
                    let status = outward(status);
                    if !again {
                        return Err(status);
                    }
                    tried.push(routed.turn.worker.clone());
                    last = Some(status);
                }
            }
        }
        Err(last.expect("an attempt that is not the last left its status"))
    }

    /// Remembers what a model's name means: workers that have it are preferred.
    pub(super) fn learn(&self, model: &str, usage: Option<&v1::Usage>) {
        let Some(usage) = usage.filter(|usage| !usage.model_fingerprint.is_empty()) else { return };
        let mut known = lock(&self.known);
        if known.len() >= MAX_KNOWN && !known.contains_key(model) {
            known.clear();
        }
        known.insert(model.to_owned(), usage.model_fingerprint.clone());
    }

    fn channel(&self, url: &str) -> Result<Channel, Status> {
        let mut channels = lock(&self.channels);
        if let Some(channel) = channels.get(url) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|_| Status::unavailable("a worker announced an unusable address"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1);
        // Addresses of workers that are gone would pile up.
        let serving: Vec<String> =
            self.context.cluster.list().into_iter().map(|worker| worker.inference_url).collect();
        channels.retain(|known, _| serving.contains(known));
        let channel = endpoint.connect_lazy();
        channels.insert(url.to_owned(), channel.clone());
        Ok(channel)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Until when the caller waits.
#[derive(Clone, Copy)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    pub(super) fn of(metadata: &MetadataMap) -> Self {
        Self(timeout(metadata).map(|time| Instant::now() + time))
    }

    /// What of the time is left.
    fn left(self) -> Result<Option<Duration>, Status> {
        match self.0 {
            None => Ok(None),
            Some(at) => match at.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => Ok(Some(left)),
                _ => Err(late()),
            },
        }
    }

    /// The work's result, unless the time is over first.
    pub(super) async fn limit<T>(self, work: impl Future<Output = T>) -> Result<T, Status> {
        match self.0 {
            None => Ok(work.await),
            Some(at) => tokio::time::timeout_at(at, work).await.map_err(|_| late()),
        }
    }
}

fn late() -> Status {
    Status::deadline_exceeded("not done within the deadline")
}

/// A worker's request: the caller's metadata, and what is left of its time.
pub(super) fn forward<T>(
    metadata: &MetadataMap,
    message: T,
    deadline: Deadline,
) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let own = |name: &str| OWN_METADATA.contains(&name) || name.starts_with("grpc-");
    for entry in metadata.keys() {
        match entry {
            KeyRef::Ascii(name) if !own(name.as_str()) => {
                for value in metadata.get_all(name) {
                    request.metadata_mut().append(name, value.clone());
                }
            }
            KeyRef::Binary(name) if !own(name.as_str()) => {
                for value in metadata.get_all_bin(name) {
                    request.metadata_mut().append_bin(name, value.clone());
                }
            }
            _ => {}
        }
    }
    if let Some(left) = deadline.left()? {
        request.set_timeout(left);
    }
    Ok(request)
}

/// Whether another worker may answer what this status says is not to be had here. Calls change nothing, so they may be
/// made twice.
pub(super) fn elsewhere(status: &Status) -> bool {
    broken(status) || matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
}

/// A status that carries a source was made here, by a connection that broke.
fn broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// A worker's status without the addresses that a broken connection's message names.
pub(super) fn outward(status: Status) -> Status {
    if broken(&status) {
        tracing::warn!(error = &status as &dyn std::error::Error, "a worker could not be reached");
        return try_again(Code::Unavailable, "the worker that was to answer could not be reached");
    }
    status
}
