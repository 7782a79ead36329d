//! Shards and online calls that an endpoint answers.

use cappy_proto::v1::{self, inference_service_client::InferenceServiceClient};
use cappy_worker::{
    Backends, Config,
    execution::{self, Attempt, Progress},
    settings::endpoint_settings,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;

use super::server::{Act, Server};
use crate::support::{Masked, Store, echo, engine, hub_settings, jsonl, model_dir};

#[test]
fn a_shard_is_answered_by_an_endpoint() {
    let server = Server::start(|_, request| match request.prompt() {
        "" => Act::Say("{}"),
        _ => Act::Answer { one: false },
    });
    let dir = tempfile::tempdir().unwrap();
    let mut engine = engine(dir.path(), echo());
    engine.endpoints = server.endpoints(dir.path());
    let mut store = Store::default();
    let rows: Vec<Value> =
        ["one", "", "two"].iter().map(|text| json!({ "instruction": text, "id": text.len() })).collect();
    let input = store.put(dir.path(), &jsonl(&rows));
    let (scratch, progress) = (dir.path().join("scratch"), Progress::default());
    std::fs::create_dir(&scratch).unwrap();
    let attempt = Attempt { inputs: &store.files, scratch: &scratch, progress: &progress, gang: None };
    let run = |task| {
        let task = v1::ShardTask { task: Some(task), ..v1::ShardTask::default() };
        execution::run(&engine, &task, &attempt)
    };
    let resolve = v1::shard_task::Task::ResolveModels(v1::ResolveModelsTask {
        models: vec![v1::ResolveModel {
            name: "openai:tiny".into(),
            endpoint: Some(server.endpoint()),
            role: 2,
        }],
    });
    let resolved = run(resolve).unwrap().resolved_models;
    assert_eq!((resolved[0].name.as_str(), resolved[0].fingerprint.len()), ("openai:tiny", 64));

    let generate = v1::GenerateTask {
        model: Some(v1::ModelRef {
            source: Some(v1::model_ref::Source::Endpoint(server.endpoint())),
            fingerprint: resolved[0].fingerprint.clone(),
        }),
        input: vec![input],
        row_start: 0,
        row_end: 3,
        settings: Some(endpoint_settings()),
        ..v1::GenerateTask::default()
    };
    let outcome = run(v1::shard_task::Task::Generate(generate)).unwrap();
    let text = std::fs::read_to_string(&outcome.outputs[0].1).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows.len(), outcome.stats.rows), (3, 3));
    for (row, prompt) in rows.iter().zip(["one", "", "two"]) {
        assert_eq!(row["id"], prompt.len(), "fields are carried through");
        for name in ["sampling", "temp0.9", "topp0.95"] {
            let samples = row["flan_samples"][name].as_array().unwrap();
            assert_eq!(samples.len(), 4);
            let good = samples.iter().all(|it| it["response"].as_str().unwrap().starts_with(prompt));
            assert!(good && samples[0].get("log_likelihood_sum").is_none());
        }
        assert_eq!(row.get("endpoint_failures").is_some(), prompt.is_empty(), "{row}");
    }
    assert_eq!(rows[1]["endpoint_failures"]["sampling"], "no `choices`");
}

#[tokio::test]
async fn online_calls_are_answered_by_an_endpoint() {
    let server = Server::start(|_, request| match request.prompt() {
        "nonsense" => Act::Say("{}"),
        _ => Act::Answer { one: false },
    });
    let dir = tempfile::tempdir().unwrap();
    let scorer = model_dir(dir.path(), "roberta", "roberta");
    let (backend, _gate) = Masked::new(true);
    let mut config =
        Config::new(Backends::Builtin(vec![backend]), dir.path().join("cache"), hub_settings(dir.path()));
    config.inference_listen = Some("127.0.0.1:0".parse().unwrap());
    config.endpoint = server.settings();
    let stop = CancellationToken::new();
    let worker = cappy_worker::start(config, stop.clone()).await.unwrap();
    let url = format!("http://{}", worker.inference_addr().unwrap());
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut client = InferenceServiceClient::new(channel);
    let request = |texts: &[&str]| v1::GenerateRequest {
        model: "openai:tiny".into(),
        instructions: texts.iter().map(|&text| text.into()).collect(),
        endpoint: Some(server.endpoint()),
        ..v1::GenerateRequest::default()
    };
    let answer = client.generate(request(&["a", "b"])).await.unwrap().into_inner();
    let names: Vec<&str> = answer.rows[0].decodings.iter().map(|decoding| decoding.name.as_str()).collect();
    assert_eq!(names, ["sampling", "temp0.9", "topp0.95"]);
    let usage = answer.usage.unwrap();
    assert_eq!((usage.output_tokens, usage.model_fingerprint.len()), (2 * 3 * 4 * 5, 64));

    let requests = ["b", "c", "a"].map(|text| v1::GenerateStreamRequest { request: Some(request(&[text])) });
    let mut streamed = client.generate_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    for expected in [Some(&answer.rows[1]), None, Some(&answer.rows[0])] {
        let row = streamed.message().await.unwrap().unwrap().response.unwrap().rows.remove(0);
        assert!(expected.is_none_or(|expected| *expected == row), "{row:?}");
    }
    let boost = v1::BoostRequest {
        scorer,
        model: "openai:tiny".into(),
        rows: vec![v1::ScoreRow { instruction: "a".into(), responses: vec!["given".into()] }],
        endpoint: Some(server.endpoint()),
        ..v1::BoostRequest::default()
    };
    let boosted = client.boost(boost).await.unwrap().into_inner().rows.remove(0);
    assert_eq!((boosted.candidates.len(), boosted.scores.len()), (13, 13));

    let beam = cappy_worker::settings::default_settings();
    let elsewhere = v1::Endpoint { url: "http://elsewhere.example/v1".into(), ..server.endpoint() };
    for (request, code, field) in [
        (request(&["a", "nonsense"]), Code::InvalidArgument, "instructions[1]"),
        (
            v1::GenerateRequest { log_likelihood: true, ..request(&["a"]) },
            Code::InvalidArgument,
            "log_likelihood",
        ),
        (v1::GenerateRequest { settings: Some(beam), ..request(&["a"]) }, Code::InvalidArgument, "endpoint"),
        (v1::GenerateRequest { endpoint: Some(elsewhere), ..request(&["a"]) }, Code::FailedPrecondition, ""),
    ] {
        let status = client.generate(request).await.unwrap_err();
        let named = status.get_details_bad_request().map(|it| it.field_violations[0].field.clone());
        assert_eq!((status.code(), named.unwrap_or_default().as_str()), (code, field), "{status:?}");
    }
    drop(client);
    stop.cancel();
    worker.stopped().await.unwrap();
}
