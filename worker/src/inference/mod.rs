//! Online calls: the same service that the coordinator routes to.
//!
//! A call is checked (`service.rs`), queued with others for its model and run on that model's thread (`executor.rs`);
//! what goes wrong becomes a rich status (`status.rs`). A full queue sheds; a caller that went away (deadline, drop)
//! takes its work with it.

mod executor;
mod service;
mod status;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use cappy_proto::{
    FILE_DESCRIPTOR_SET, MAX_MESSAGE_BYTES,
    v1::inference_service_server::{InferenceServiceServer, SERVICE_NAME},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::engine::Engine;
use executor::Executors;
use service::Inference;

/// Calls of one connection at the same time.
const MAX_STREAMS: u32 = 256;
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
    /// Serves until `stop`, then lets running calls end. At most `queue` calls wait for each model.
    pub async fn serve(self, engine: Arc<Engine>, queue: usize, stop: CancellationToken) {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status(SERVICE_NAME, tonic_health::ServingStatus::Serving).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("the descriptors are those that the code was made from");
        let inference = InferenceServiceServer::new(Inference::new(Executors::new(engine, queue)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
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
            .concurrency_limit_per_connection(MAX_STREAMS as usize)
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
