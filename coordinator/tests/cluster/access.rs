//! Who may call, and over what.

use cappy_coordinator::config::{Tls, Tokens};
use cappy_proto::v1::{
    self, artifact_service_client::ArtifactServiceClient, cluster_service_client::ClusterServiceClient,
    inference_service_client::InferenceServiceClient, job_service_client::JobServiceClient,
    worker_service_client::WorkerServiceClient,
};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{fake_worker::hello, harness::Harness};

type Caller = Option<&'static str>;

fn with<T>(message: T, caller: Caller) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = caller {
        let value: MetadataValue<Ascii> = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// The code of one call of each service, `Ok` where it got through.
async fn codes(channel: &Channel, caller: Caller) -> [Code; 5] {
    let code = |result: Result<(), Status>| result.err().map_or(Code::Ok, |status| status.code());
    let session = v1::SessionRequest { message: Some(v1::session_request::Message::Hello(hello("one", 1))) };
    let stat = v1::StatArtifactRequest { artifact_id: "0".repeat(64) };
    let jobs = JobServiceClient::new(channel.clone());
    let artifacts = ArtifactServiceClient::new(channel.clone());
    let clusters = ClusterServiceClient::new(channel.clone());
    let inference = InferenceServiceClient::new(channel.clone());
    let workers = WorkerServiceClient::new(channel.clone());
    let (mut jobs, mut artifacts, mut clusters) = (jobs, artifacts, clusters);
    let (mut inference, mut workers) = (inference, workers);
    [
        code(jobs.list_jobs(with(v1::ListJobsRequest::default(), caller)).await.map(drop)),
        code(artifacts.stat_artifact(with(stat, caller)).await.map(drop)),
        code(clusters.list_workers(with(v1::ListWorkersRequest {}, caller)).await.map(drop)),
        code(inference.score(with(v1::ScoreRequest::default(), caller)).await.map(drop)),
        code(workers.session(with(tokio_stream::iter([session]), caller)).await.map(drop)),
    ]
}

#[tokio::test]
async fn every_service_wants_a_token_of_its_role() {
    let harness = Harness::start_with(|config| {
        config.tokens = Some(Tokens { client: "client-token".into(), worker: Some("worker-token".into()) });
    })
    .await;
    let channel = Endpoint::from_shared(harness.url.clone()).unwrap().connect().await.unwrap();
    assert_eq!(codes(&channel, None).await, [Code::Unauthenticated; 5]);
    assert_eq!(codes(&channel, Some("wrong")).await, [Code::Unauthenticated; 5]);
    // A call that gets through finds no worker that serves online calls.
    let denied = Code::PermissionDenied;
    assert_eq!(
        codes(&channel, Some("client-token")).await,
        [Code::Ok, Code::Ok, Code::Ok, Code::Unavailable, denied]
    );
    assert_eq!(codes(&channel, Some("worker-token")).await, [denied, Code::Ok, denied, denied, Code::Ok]);
    assert!(harness.serving("").await, "probes need no token");
    harness.stop().await;
}

#[tokio::test]
async fn over_tls_only_who_trusts_the_authority_and_knows_the_name_gets_through() {
    let tls = || Tls {
        certificate: include_bytes!("fixtures/server.pem").to_vec(),
        key: include_bytes!("fixtures/server.key").to_vec(),
    };
    let harness = Harness::start_with(move |config| config.tls = Some(tls())).await;
    let connect = async |scheme: &str, trusted: bool, name: &str| {
        let port = harness.url.rsplit(':').next().unwrap();
        let endpoint = Endpoint::from_shared(format!("{scheme}://127.0.0.1:{port}")).unwrap();
        if scheme == "http" {
            return endpoint.connect().await;
        }
        let mut tls = ClientTlsConfig::new().domain_name(name);
        if trusted {
            tls = tls.ca_certificate(Certificate::from_pem(include_bytes!("fixtures/ca.pem")));
        }
        endpoint.tls_config(tls).unwrap().connect().await
    };
    let channel = connect("https", true, "localhost").await.unwrap();
    assert_eq!(codes(&channel, None).await[0], Code::Ok);
    assert!(connect("https", false, "localhost").await.is_err(), "an unknown authority");
    assert!(connect("https", true, "elsewhere").await.is_err(), "another name");
    if let Ok(plain) = connect("http", false, "").await {
        assert_ne!(codes(&plain, None).await[0], Code::Ok, "without TLS");
    }
    harness.stop().await;
}
