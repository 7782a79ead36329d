//! The cluster that a command talks to: a coordinator by URL, or one started inside this process. Past this
//! module nothing knows which.

mod embedded;
mod patience;

use std::time::Duration;

use cappy_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        ListWorkersRequest, WorkerState, artifact_service_client::ArtifactServiceClient,
        cluster_service_client::ClusterServiceClient, inference_service_client::InferenceServiceClient,
        job_service_client::JobServiceClient,
    },
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

pub use patience::patiently;

use crate::{
    arguments::Global,
    failure::{Context as _, Failure, Outcome},
    printer::Printer,
};

/// Time to wait for a coordinator's TCP and TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that an embedded worker may take to say hello, and how often it is looked for.
const WORKER_PATIENCE: Duration = Duration::from_secs(30);
const WORKER_POLL: Duration = Duration::from_millis(10);
/// HTTP/2 pings that notice a coordinator that vanished without a word.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// What a command needs of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Jobs and artifacts: an embedded cluster starts no worker.
    Records,
    /// Models, too.
    Models,
}

/// A channel with the caller's token.
pub type Wire = InterceptedService<Channel, SendToken>;

/// A connected cluster.
pub struct Cluster {
    wire: Wire,
    embedded: Option<embedded::Embedded>,
}

/// Puts the caller's token on every request.
#[derive(Clone)]
pub struct SendToken(Option<MetadataValue<Ascii>>);

impl Interceptor for SendToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

macro_rules! clients {
    ($($name:ident: $client:ident),* $(,)?) => {
        $(
            #[doc = concat!("A `", stringify!($client), "` with the project's message limits.")]
            pub fn $name(&self) -> $client<Wire> {
                $client::new(self.wire.clone())
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES)
            }
        )*
    };
}

impl Cluster {
    /// The configured coordinator, or an embedded cluster.
    ///
    /// # Errors
    /// Unreachable coordinator (exit code 3), unusable URL, token or data directory.
    pub async fn connect(global: &Global, need: Need, printer: &Printer) -> Outcome<Self> {
        let token = match &global.token {
            None => None,
            Some(token) => {
                let value = format!("Bearer {token}").parse();
                Some(
                    value
                        .map_err(|_| Failure::usage("--token: a token has visible ASCII characters only"))?,
                )
            }
        };
        let (url, embedded) = match &global.coordinator {
            Some(url) if !global.local => (url.clone(), None),
            _ => {
                let embedded = embedded::Embedded::start(global, need, printer).await?;
                (embedded.url().to_owned(), Some(embedded))
            }
        };
        let channel = endpoint(&url, global)?
            .connect()
            .await
            .map_err(|error| Failure::unreachable(unreachable(&url, &error)))?;
        let cluster = Self { wire: InterceptedService::new(channel, SendToken(token)), embedded };
        if cluster.is_embedded() && need == Need::Models {
            cluster.wait_for_worker().await?;
        }
        Ok(cluster)
    }

    /// An embedded cluster is there when its worker has said hello.
    async fn wait_for_worker(&self) -> Outcome<()> {
        let give_up = tokio::time::Instant::now() + WORKER_PATIENCE;
        loop {
            let workers = self.workers().list_workers(ListWorkersRequest {}).await?.into_inner().workers;
            if workers.iter().any(|worker| worker.state == WorkerState::Ready as i32) {
                return Ok(());
            }
            if tokio::time::Instant::now() > give_up {
                return Err(Failure::failed("the embedded cluster's worker does not start; -v tells more"));
            }
            tokio::time::sleep(WORKER_POLL).await;
        }
    }

    clients! {
        jobs: JobServiceClient,
        artifacts: ArtifactServiceClient,
        workers: ClusterServiceClient,
        inference: InferenceServiceClient,
    }

    /// Whether the jobs of this cluster run only while this process does.
    pub fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// Ends an embedded cluster in an orderly way.
    pub async fn stop(self) {
        if let Some(embedded) = self.embedded {
            embedded.stop().await;
        }
    }
}

fn endpoint(url: &str, global: &Global) -> Outcome<Endpoint> {
    let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let mut endpoint = Endpoint::from_shared(with_scheme.clone())
        .map_err(|_| {
            Failure::usage(format!("--coordinator: `{url}` is not a URL such as http://127.0.0.1:50051"))
        })?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_while_idle(true);
    if with_scheme.starts_with("https://") {
        let mut tls = ClientTlsConfig::new().with_enabled_roots();
        if let Some(path) = &global.tls_ca {
            let pem = std::fs::read(path).context(format!("cannot read --tls-ca `{}`", path.display()))?;
            tls = tls.ca_certificate(Certificate::from_pem(pem));
        }
        endpoint = endpoint.tls_config(tls).map_err(|error| Failure::usage(format!("--tls-ca: {error}")))?;
    }
    Ok(endpoint)
}

fn unreachable(url: &str, error: &tonic::transport::Error) -> String {
    let mut source: &dyn std::error::Error = error;
    while let Some(inner) = source.source() {
        source = inner;
    }
    format!(
        "no coordinator answers at {url} ({source}); is it running? --local uses an embedded cluster instead"
    )
}
