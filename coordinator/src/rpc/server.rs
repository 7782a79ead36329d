//! All services on one port, with every limit of the transport set.

use std::{io, time::Duration};

use cappy_proto::{
    FILE_DESCRIPTOR_SET, MAX_MESSAGE_BYTES,
    v1::{
        artifact_service_server::ArtifactServiceServer, cluster_service_server::ClusterServiceServer,
        inference_service_server::InferenceServiceServer, job_service_server::JobServiceServer,
        worker_service_server::WorkerServiceServer,
    },
};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::RoutesBuilder,
    transport::{Identity, Server, ServerTlsConfig},
};
use tonic_health::ServingStatus;

use super::{
    artifacts::Artifacts, authentication::Authentication, cluster::Clusters, inference::Inference,
    jobs::Jobs, workers::Workers,
};
use crate::{config::Tls, context::Context};

/// Calls of one connection that are answered at once; more are shed with RESOURCE_EXHAUSTED.
const CALLS_PER_CONNECTION: usize = 256;
/// Streams of one connection, those that only wait included.
const STREAMS_PER_CONNECTION: u32 = 1024;
/// Connections at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// Time from connecting to the first byte.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection is probed, and time it has to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of a stream that may be in flight.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Bytes of a connection that may be in flight.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Metadata of a call.
const HEADER_BYTES: u32 = 64 * 1024;
/// Streams that a client may open and reset before it is cut off.
const PENDING_RESETS: usize = 64;

/// The transport with every limit set, and with TLS if there is a certificate.
///
/// # Errors
/// A certificate or key that is not one.
pub(crate) fn transport(tls: Option<&Tls>) -> Result<Server, tonic::transport::Error> {
    let server = Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .load_shed(true)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(PENDING_RESETS));
    match tls {
        None => Ok(server),
        Some(tls) => {
            let identity = Identity::from_pem(&tls.certificate, &tls.key);
            server.tls_config(ServerTlsConfig::new().identity(identity).timeout(FIRST_BYTE_TIMEOUT))
        }
    }
}

/// Serves until `shutdown`; open calls get to end, watched jobs and sessions are ended.
pub(crate) async fn serve(
    server: Server,
    context: Context,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors are the compiler's own");

    macro_rules! limited {
        ($service:expr) => {
            $service.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES)
        };
    }
    let jobs = limited!(JobServiceServer::new(Jobs { context: context.clone() }));
    let workers = limited!(WorkerServiceServer::new(Workers { context: context.clone() }));
    let artifacts = limited!(ArtifactServiceServer::new(Artifacts { context: context.clone() }));
    let clusters = limited!(ClusterServiceServer::new(Clusters { context: context.clone() }));
    let inference = limited!(InferenceServiceServer::new(Inference::new(context.clone())));

    let mut routes = RoutesBuilder::default();
    routes
        .add_service(health_service)
        .add_service(reflection)
        .add_service(jobs)
        .add_service(workers)
        .add_service(artifacts)
        .add_service(clusters)
        .add_service(inference);

    // The whole server and each service serve from here on: the store is open and the port is bound.
    health.set_service_status("", ServingStatus::Serving).await;
    health.set_serving::<JobServiceServer<Jobs>>().await;
    health.set_serving::<WorkerServiceServer<Workers>>().await;
    health.set_serving::<ArtifactServiceServer<Artifacts>>().await;
    health.set_serving::<ClusterServiceServer<Clusters>>().await;
    health.set_serving::<InferenceServiceServer<Inference>>().await;

    let ending = shutdown.clone();
    let closing = async move {
        ending.cancelled().await;
        health.set_service_status("", ServingStatus::NotServing).await;
        health.set_not_serving::<JobServiceServer<Jobs>>().await;
        health.set_not_serving::<WorkerServiceServer<Workers>>().await;
        health.set_not_serving::<ArtifactServiceServer<Artifacts>>().await;
        health.set_not_serving::<ClusterServiceServer<Clusters>>().await;
        health.set_not_serving::<InferenceServiceServer<Inference>>().await;
    };
    let authentication = Authentication::new(context.config.tokens.as_ref());
    server
        .layer(authentication)
        .add_routes(routes.routes())
        .serve_with_incoming_shutdown(accept(listener, shutdown), closing)
        .await
}

/// Connections whose client has said something: one that connects and stays silent costs a task, not a slot.
fn accept(
    listener: TcpListener,
    shutdown: CancellationToken,
) -> impl futures::Stream<Item = io::Result<TcpStream>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    let waiting = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(slot) = std::sync::Arc::clone(&waiting).acquire_owned().await else { return };
            let stream = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of file descriptors, mostly: breathe, then go on.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let sender = sender.clone();
            tokio::spawn(async move {
                let _slot = slot;
                let _ = stream.set_nodelay(true);
                let first = tokio::time::timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut [0])).await;
                if matches!(first, Ok(Ok(1..))) {
                    let _ = sender.send(Ok(stream)).await;
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}
