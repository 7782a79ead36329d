//! Online calls that name a scorer which a job has trained.

use std::net::{SocketAddr, TcpListener};

use cappy_proto::v1::{self, inference_service_client::InferenceServiceClient};
use cappy_worker::{Backends, Config, Handle, start};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};

use crate::{
    coordinator::Coordinator,
    support::{Store, echo, echo_score, hub_settings, tokenizer},
};

struct Online {
    dir: tempfile::TempDir,
    client: InferenceServiceClient<Channel>,
    worker: Handle,
    stop: CancellationToken,
}

async fn online(coordinator: Option<SocketAddr>) -> Online {
    let dir = tempfile::tempdir().unwrap();
    let mut config =
        Config::new(Backends::Builtin(vec![echo()]), dir.path().join("cache"), hub_settings(dir.path()));
    config.coordinator = coordinator.map(|address| format!("http://{address}"));
    config.inference_listen = Some("127.0.0.1:0".parse().unwrap());
    let stop = CancellationToken::new();
    let worker = start(config, stop.clone()).await.unwrap();
    let url = format!("http://{}", worker.inference_addr().unwrap());
    let client = InferenceServiceClient::connect(url).await.unwrap();
    Online { dir, client, worker, stop }
}

impl Online {
    async fn score(&mut self, model: &str) -> Result<v1::ScoreResponse, tonic::Status> {
        let row = v1::ScoreRow { instruction: "sort: fig".into(), responses: vec!["fig".into()] };
        let request =
            v1::ScoreRequest { model: model.to_owned(), rows: vec![row], ..v1::ScoreRequest::default() };
        self.client.score(request).await.map(tonic::Response::into_inner)
    }

    async fn end(self) {
        drop(self.client);
        self.stop.cancel();
        self.worker.stopped().await.unwrap();
        drop(self.dir);
    }
}

/// The files of a model of the echo backend, which the coordinator has.
fn model_files(coordinator: &Coordinator, bias: f32) -> v1::ModelFiles {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::default();
    let model = store.model(dir.path(), "roberta", 64, bias);
    for path in store.files.values() {
        coordinator.put(std::fs::read(path).unwrap());
    }
    match model.source {
        Some(v1::model_ref::Source::Files(files)) => files,
        other => panic!("files, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_scorer_is_fetched_checked_and_used() {
    let coordinator = Coordinator::new(30_000);
    let running = coordinator.serve("127.0.0.1:0".parse().unwrap()).await;
    let files = model_files(&coordinator, 0.25);
    coordinator.register("mdl_good", "", files.clone());
    coordinator.register("mdl_other", "0123456789abcdef", files.clone());
    let mut incomplete = files.clone();
    incomplete.files[0].artifact.as_mut().unwrap().id = "0".repeat(64);
    coordinator.register("mdl_incomplete", "", incomplete);

    let mut online = online(Some(running.address)).await;
    let scored = online.score("mdl_go").await.unwrap();
    let expected = echo_score(&tokenizer("roberta"), "sort: fig", "fig", 0.25);
    assert!((scored.rows[0].scores[0] - expected).abs() < 1e-6);
    let fingerprint = scored.usage.unwrap().model_fingerprint;
    coordinator.register("mdl_same", &fingerprint, files);
    assert_eq!(online.score("mdl_same").await.unwrap().rows, scored.rows);

    for (model, code, words) in [
        ("mdl_unknown", Code::NotFound, "no model `mdl_unknown`"),
        ("mdl_other", Code::FailedPrecondition, "not 0123456789ab"),
        ("mdl_incomplete", Code::NotFound, "`mdl_incomplete` cannot be fetched"),
    ] {
        let status = online.score(model).await.unwrap_err();
        assert_eq!(status.code(), code, "{model}: {status}");
        assert!(status.message().contains(words), "{model}: {status}");
    }
    // What was scored with stays in use while the coordinator is away.
    running.crash().await;
    assert_eq!(online.score("mdl_same").await.unwrap().rows, scored.rows);
    online.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_coordinator_a_registered_scorer_is_not_known() {
    let mut alone = online(None).await;
    let status = alone.score("mdl_good").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().contains("this worker has none"), "{status}");
    alone.end().await;

    // A port that nobody listens on: it was free a moment ago.
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
    let mut waiting = online(Some(nobody)).await;
    let status = waiting.score("mdl_good").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().starts_with("cannot ask the coordinator for `mdl_good`"), "{status}");
    waiting.end().await;
}
