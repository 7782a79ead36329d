//! Online calls: the same service that the coordinator routes to.
//!
//! A call is let in while there are not too many (`admission.rs`), and checked (`checks.rs`). Its model is loaded
//! (`loading.rs`), its texts are tokenized into units (`calls.rs`), and these wait in the model's line (`line.rs`) for
//! a batch (`queue.rs` says which), in which they run with the units of other calls (`work.rs`). What goes wrong
//! becomes a rich status (`status.rs`). Answers of an endpoint come past the lines (`elsewhere.rs`). A caller that went away (deadline, drop) takes its work with it.

mod admission;
mod calls;
mod checks;
mod elsewhere;
mod line;
mod loading;
mod queue;
mod service;
mod status;
mod work;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cappy_proto::{
    FILE_DESCRIPTOR_SET, MAX_MESSAGE_BYTES,
    v1::inference_service_server::{InferenceServiceServer, SERVICE_NAME},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{service::interceptor::InterceptedService, transport::Server};

use crate::engine::Engine;
use admission::Admission;
use calls::Calls;
pub use line::Rules;
use service::Inference;

/// Calls that the worker listens to at the same time, for each that may wait for a model: some wait for a model to be
/// loaded, or for another one.
const CALLS_PER_QUEUE: usize = 4;
/// Calls of one connection at the same time: a coordinator's are all of its clients'.
const MAX_STREAMS: u32 = 4096;
/// Streams that a client may open and reset before it is cut off.
const PENDING_RESETS: usize = 64;
/// Metadata of a call.
const HEADER_BYTES: u32 = 64 * 1024;
/// A dead peer is noticed within the sum of both.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// Why the service does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// The service, listening.
pub struct Listening {
    /// Where; with the port that the system chose.
    pub address: SocketAddr,
    listener: TcpListener,
}

/// Takes the address; serves nothing yet.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn listen(address: SocketAddr) -> Result<Listening, ServeError> {
    let listen = async {
        let listener = TcpListener::bind(address).await?;
        Ok(Listening { address: listener.local_addr()?, listener })
    };
    listen.await.map_err(|source| ServeError::Listen { address, source })
}

impl Listening {
    /// Serves until `stop`, then lets running calls end.
    pub async fn serve(self, engine: Arc<Engine>, rules: Rules, stop: CancellationToken) {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status(SERVICE_NAME, tonic_health::ServingStatus::Serving).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("the descriptors are those that the code was made from");
        let inference = InferenceServiceServer::new(Inference::new(Calls::new(engine, rules)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let admission = Admission::new(rules.calls.max(1).saturating_mul(CALLS_PER_QUEUE));
        let inference = InterceptedService::new(inference, admission);
        let stopping = {
            let stop = stop.clone();
            async move {
                stop.cancelled().await;
                health.set_service_status(SERVICE_NAME, tonic_health::ServingStatus::NotServing).await;
            }
        };
        let served = Server::builder()
            .tcp_nodelay(true)
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
            .http2_max_local_error_reset_streams(Some(PENDING_RESETS))
            .http2_max_header_list_size(HEADER_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE.0))
            .http2_keepalive_timeout(Some(KEEPALIVE.1))
            .add_service(health_service)
            .add_service(reflection)
            .add_service(inference)
            .serve_with_incoming_shutdown(TcpListenerStream::new(self.listener), stopping)
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the inference service ended");
        }
    }
}
