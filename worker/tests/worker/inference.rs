//! Online calls to a worker that has no coordinator.

use std::{sync::atomic::Ordering, time::Duration};

use cappy_proto::v1::{self, inference_service_client::InferenceServiceClient};
use cappy_worker::{
    Backends, Config, Handle, settings::default_settings, start, tokenization::ModelTokenizer,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, transport::Channel};
use tonic_types::StatusExt as _;

use crate::support::{Masked, VOCAB, fixture, hub_settings, model_dir};

struct Online {
    _dir: TempDir,
    scorer: String,
    generator: String,
    gate: std::sync::Arc<std::sync::atomic::AtomicBool>,
    client: InferenceServiceClient<Channel>,
    channel: Channel,
    worker: Handle,
    stop: CancellationToken,
}

async fn online(queue: usize, open: bool) -> Online {
    let dir = tempfile::tempdir().unwrap();
    let (scorer, generator) =
        (model_dir(dir.path(), "roberta", "roberta"), model_dir(dir.path(), "t5", "t5"));
    let (backend, gate) = Masked::new(open);
    let mut config =
        Config::new(Backends::Builtin(vec![backend]), dir.path().join("cache"), hub_settings(dir.path()));
    config.inference_listen = Some("127.0.0.1:0".parse().unwrap());
    config.queue = queue;
    let stop = CancellationToken::new();
    let worker = start(config, stop.clone()).await.unwrap();
    let url = format!("http://{}", worker.inference_addr().unwrap());
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let client = InferenceServiceClient::new(channel.clone());
    Online { _dir: dir, scorer, generator, gate, client, channel, worker, stop }
}

impl Online {
    fn score_request(&self, texts: &[&str]) -> v1::ScoreRequest {
        let rows = texts
            .iter()
            .map(|text| v1::ScoreRow {
                instruction: (*text).to_owned(),
                responses: vec!["fig".into(), String::new()],
            })
            .collect();
        v1::ScoreRequest { model: self.scorer.clone(), rows, ..v1::ScoreRequest::default() }
    }

    async fn end(self) {
        drop((self.client, self.channel));
        self.stop.cancel();
        self.worker.stopped().await.unwrap();
    }
}

fn expected_score(instruction: &str, response: &str) -> f32 {
    let tokenizer = ModelTokenizer::open(&fixture("roberta")).unwrap();
    let [first, second] = [instruction, response].map(|text| tokenizer.side(text).unwrap());
    let ids = tokenizer.pair(&first, &second, 64).unwrap().ids;
    0.5 + ids.iter().sum::<u32>() as f32 / ids.len() as f32 / VOCAB as f32
}

#[tokio::test]
async fn calls_are_answered_alone_joined_and_streamed() {
    let mut online = online(64, false).await;
    // Behind the closed gate the calls gather; then they run together, and each gets its own.
    let calls: Vec<_> = (0..6)
        .map(|i| {
            let mut client = online.client.clone();
            let text = format!("call {i}");
            let request = online.score_request(&[&text, "shared"]);
            tokio::spawn(async move { (text, client.score(request).await.unwrap().into_inner()) })
        })
        .collect();
    online.gate.store(true, Ordering::Relaxed);
    for call in calls {
        let (text, answer) = call.await.unwrap();
        for (row, instruction) in answer.rows.iter().zip([text.as_str(), "shared"]) {
            for (score, response) in row.scores.iter().zip(["fig", ""]) {
                assert!((score - expected_score(instruction, response)).abs() < 1e-6);
            }
        }
        let usage = answer.usage.unwrap();
        assert_eq!((usage.model_fingerprint.len(), usage.backend.contains("echo")), (64, true));
        assert!(usage.input_tokens > 0);
    }

    let requests: Vec<_> = ["x", "y", "z"]
        .iter()
        .map(|text| v1::ScoreStreamRequest { request: Some(online.score_request(&[text])) })
        .collect();
    let mut answers = online.client.score_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    for text in ["x", "y", "z"] {
        let answer = answers.message().await.unwrap().unwrap().response.unwrap();
        assert!((answer.rows[0].scores[0] - expected_score(text, "fig")).abs() < 1e-6);
    }
    assert!(answers.message().await.unwrap().is_none());

    let generate = v1::GenerateRequest {
        model: online.generator.clone(),
        instructions: vec!["fig".into(), "pear apple".into()],
        log_likelihood: true,
        ..v1::GenerateRequest::default()
    };
    let generated = online.client.generate(generate).await.unwrap().into_inner();
    let names: Vec<&str> =
        generated.rows[0].decodings.iter().map(|decoding| decoding.name.as_str()).collect();
    assert_eq!(names, ["beam4", "sampling", "temp0.9", "topk40", "topp0.95"]);
    let sample = &generated.rows[1].decodings[1].samples[2];
    let judged = v1::LogLikelihoodRequest {
        model: online.generator.clone(),
        rows: vec![v1::LogLikelihoodRow {
            instruction: "pear apple".into(),
            response: sample.response.clone(),
        }],
        ..v1::LogLikelihoodRequest::default()
    };
    let likelihood = online.client.log_likelihood(judged).await.unwrap().into_inner().rows[0];
    assert!((likelihood.sum - sample.log_likelihood_sum.unwrap()).abs() < 1e-5);
    assert!((likelihood.mean - sample.log_likelihood_mean.unwrap()).abs() < 1e-6);

    let boost = v1::BoostRequest {
        scorer: online.scorer.clone(),
        model: online.generator.clone(),
        rows: vec![v1::ScoreRow { instruction: "fig".into(), responses: vec!["given".into()] }],
        settings: Some(default_settings()),
        ..v1::BoostRequest::default()
    };
    let boosted = online.client.boost(boost).await.unwrap().into_inner();
    let row = &boosted.rows[0];
    assert_eq!((row.candidates.len(), row.scores.len(), row.candidates[0].as_str()), (18, 18, "given"));
    let highest = row.scores.iter().copied().fold(f32::MIN, f32::max);
    assert_eq!(row.best as usize, row.scores.iter().position(|&score| score == highest).unwrap());
    online.end().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_call_is_named() {
    let mut online = online(64, true).await;
    let field = |status: &tonic::Status| {
        status.get_details_bad_request().map(|it| it.field_violations[0].field.clone()).unwrap_or_default()
    };
    let mut nameless = online.score_request(&["x"]);
    nameless.model.clear();
    let status = online.client.score(nameless).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "model"));

    let mut missing = online.score_request(&["x"]);
    missing.model = "./nowhere".into();
    let status = online.client.score(missing).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert!(status.message().contains("nowhere"));

    let mut other = online.score_request(&["x"]);
    other.backend = "libtorch".into();
    assert_eq!(online.client.score(other).await.unwrap_err().code(), Code::FailedPrecondition);

    let mut settings = default_settings();
    settings.decodings[2].num_samples = 0;
    let generate = v1::GenerateRequest {
        model: online.generator.clone(),
        instructions: vec!["x".into()],
        settings: Some(settings),
        ..v1::GenerateRequest::default()
    };
    let status = online.client.generate(generate).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "settings"));
    assert!(status.message().contains("temp0.9"));

    let boost = v1::BoostRequest {
        scorer: online.scorer.clone(),
        rows: vec![v1::ScoreRow { instruction: "x".into(), responses: vec![] }],
        ..v1::BoostRequest::default()
    };
    let status = online.client.boost(boost).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "rows[0].responses"));

    let mut health = tonic_health::pb::health_client::HealthClient::new(online.channel.clone());
    let request = tonic_health::pb::HealthCheckRequest { service: "cappy.v1.InferenceService".into() };
    let health = health.check(request).await.unwrap().into_inner();
    assert_eq!(health.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    online.end().await;
}

#[tokio::test]
async fn a_full_queue_sheds_and_a_caller_that_left_frees_the_model() {
    let online = online(1, false).await;
    // One call is in the model's hands, one waits; the gate is closed, so whoever comes next is shed.
    let call = |text: &str| {
        let mut client = online.client.clone();
        let request = online.score_request(&[text]);
        tokio::spawn(async move { client.score(request).await })
    };
    let mut waiting = vec![call("a"), call("b"), call("c"), call("d")];
    let (shed, _, rest) = futures::future::select_all(waiting.drain(..)).await;
    let status = shed.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_some_and(|it| it.retry_delay.is_some()));

    // Everybody leaves; a call with a deadline is given up too, though the gate never opened for it.
    rest.iter().for_each(tokio::task::JoinHandle::abort);
    let mut late = Request::new(online.score_request(&["late"]));
    late.set_timeout(Duration::from_millis(50));
    let status = loop {
        let mut request = Request::new(late.get_ref().clone());
        *request.metadata_mut() = late.metadata().clone();
        let status = online.client.clone().score(request).await.unwrap_err();
        if status.code() != Code::ResourceExhausted {
            break status;
        }
    };
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    online.gate.store(true, Ordering::Relaxed);
    let answer = loop {
        match online.client.clone().score(online.score_request(&["after"])).await {
            Err(status) if status.code() == Code::ResourceExhausted => tokio::task::yield_now().await,
            answer => break answer.unwrap().into_inner(),
        }
    };
    assert!((answer.rows[0].scores[0] - expected_score("after", "fig")).abs() < 1e-6);
    online.end().await;
}
