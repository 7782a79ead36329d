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

    fn generate_request(&self, texts: &[&str], namespace: &str) -> v1::GenerateRequest {
        v1::GenerateRequest {
            model: self.generator.clone(),
            instructions: texts.iter().map(|&text| text.into()).collect(),
            row_namespace: namespace.into(),
            ..v1::GenerateRequest::default()
        }
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

    let status = online.client.generate(online.generate_request(&["x", "a\0b"], "")).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "instructions[1]"));

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
async fn a_full_line_sheds_and_a_caller_that_left_frees_the_model() {
    let online = online(2, false).await;
    // Two calls are with the model, whose gate is closed; whoever comes next is turned away.
    let call = |text: &str| {
        let mut client = online.client.clone();
        let request = online.score_request(&[text]);
        tokio::spawn(async move { client.score(request).await })
    };
    let mut waiting = vec![call("a"), call("b"), call("c"), call("d")];
    let mut shed = Vec::new();
    for _ in 0..2 {
        let (ended, _, rest) = futures::future::select_all(waiting.drain(..)).await;
        shed.push(ended.unwrap().unwrap_err());
        waiting = rest;
    }
    for status in &shed {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.get_details_retry_info().is_some_and(|it| it.retry_delay.is_some()));
    }

    // Everybody leaves; a call with a deadline is given up too, though the gate never opened for it.
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    let late = patiently(async || {
        let mut request = Request::new(online.score_request(&["late"]));
        request.set_timeout(Duration::from_millis(50));
        online.client.clone().score(request).await
    });
    let status = late.await.unwrap_err();
    // The client's own clock, which may be the first, says `Cancelled`.
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    online.gate.store(true, Ordering::Relaxed);
    let after = async || online.client.clone().score(online.score_request(&["after"])).await;
    let answer = patiently(after).await.unwrap().into_inner();
    assert!((answer.rows[0].scores[0] - expected_score("after", "fig")).abs() < 1e-6);
    online.end().await;
}

/// Asks again while the line is full: a caller that left is noticed a moment later.
async fn patiently<T>(call: impl AsyncFn() -> Result<T, tonic::Status>) -> Result<T, tonic::Status> {
    loop {
        match call().await {
            Err(status) if status.code() == Code::ResourceExhausted => tokio::task::yield_now().await,
            result => return result,
        }
    }
}

/// Ten times more calls than there is room for, in every way of calling: each is answered or told to come again.
#[tokio::test]
async fn an_overload_is_shed_and_what_was_let_in_is_right() {
    let online = online(8, true).await;
    let calls = (0..320).map(|i| {
        let (mut client, text) = (online.client.clone(), format!("call {}", i % 40));
        let (score, generate) = (online.score_request(&[&text]), online.generate_request(&[&text], "one"));
        tokio::spawn(async move {
            if i % 4 == 0 {
                return client.generate(generate).await.map(|answer| {
                    assert_eq!(answer.into_inner().rows.len(), 1);
                });
            }
            client.score(score).await.map(|answer| {
                let score = answer.into_inner().rows[0].scores[0];
                assert!((score - expected_score(&text, "fig")).abs() < 1e-6);
            })
        })
    });
    let (mut answered, mut shed) = (0, 0);
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            Ok(()) => answered += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                assert!(status.get_details_retry_info().is_some());
                shed += 1;
            }
        }
    }
    assert!(answered >= 8 && answered + shed == 320, "{answered} answered, {shed} shed");
    // Streams are slowed down instead: all of them are answered.
    let streams = (0..24).map(|i| {
        let (mut client, text) = (online.client.clone(), format!("stream {i}"));
        let requests: Vec<_> = (0..4)
            .map(|_| v1::ScoreStreamRequest { request: Some(online.score_request(&[&text])) })
            .collect();
        tokio::spawn(async move {
            let mut answers = client.score_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
            let mut count = 0;
            while let Some(answer) = answers.message().await.unwrap() {
                let score = answer.response.unwrap().rows[0].scores[0];
                assert!((score - expected_score(&text, "fig")).abs() < 1e-6);
                count += 1;
            }
            count
        })
    });
    for stream in streams.collect::<Vec<_>>() {
        assert_eq!(stream.await.unwrap(), 4);
    }
    online.end().await;
}

#[tokio::test]
async fn generated_rows_are_streamed_one_by_one_and_do_not_depend_on_their_company() {
    let online = online(64, true).await;
    let texts = ["fig", "pear apple", "fig", "a longer instruction than the others", "x"];
    let request = |texts: &[&str], first_row| v1::GenerateStreamRequest {
        request: Some(v1::GenerateRequest { first_row, ..online.generate_request(texts, "") }),
    };
    let requests = vec![request(&texts[..2], 0), request(&texts[2..], 2)];
    let mut client = online.client.clone();
    let mut answers = client.generate_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    for text in texts {
        let streamed = answers.message().await.unwrap().unwrap().response.unwrap();
        assert_eq!(streamed.rows.len(), 1, "a message a row");
        let usage = streamed.usage.unwrap();
        assert!(usage.output_tokens > 0 && usage.input_tokens > 0 && usage.model_fingerprint.len() == 64);
        let alone = online.generate_request(&[text], "");
        let alone = online.client.clone().generate(alone).await.unwrap().into_inner();
        assert_eq!(streamed.rows[0], alone.rows[0], "{text}");
    }
    assert!(answers.message().await.unwrap().is_none());

    // A request that is wrong ends the stream with what is wrong.
    let requests = vec![request(&["fig"], 0), request(&[], 1)];
    let mut answers = client.generate_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
    online.end().await;
}

#[tokio::test]
async fn a_stream_ends_at_its_deadline() {
    let online = online(64, false).await;
    let requests = vec![v1::ScoreStreamRequest { request: Some(online.score_request(&["x"])) }];
    let mut request = Request::new(tokio_stream::iter(requests));
    request.set_timeout(Duration::from_millis(300));
    let mut client = online.client.clone();
    let status = match client.score_stream(request).await {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    drop(client);
    online.end().await;
}
