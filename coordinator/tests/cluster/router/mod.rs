//! Online calls through the coordinator, to workers that a test can direct.

mod pretended;

use std::time::Duration;

use cappy_proto::v1;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use crate::{
    fake_worker::{Act, FakeWorker, hello},
    harness::{Harness, eventually},
};
use pretended::{Mood, Pretended};

/// A coordinator, and workers that answer online calls.
struct Routed {
    harness: Harness,
    workers: Vec<Pretended>,
    _sessions: Vec<FakeWorker>,
}

impl Routed {
    async fn start(moods: &[(&'static str, Mood)]) -> Self {
        let harness = Harness::start().await;
        let (mut workers, mut sessions) = (Vec::new(), Vec::new());
        for &(name, mood) in moods {
            let worker = Pretended::start(name, mood).await;
            let hello = v1::Hello { inference_url: worker.url.clone(), ..hello(name, 1) };
            sessions.push(FakeWorker::connect(&harness.url, hello, |_| Act::Hold).await);
            workers.push(worker);
        }
        Self { harness, workers, _sessions: sessions }
    }

    /// What a worker saw, by its place.
    fn instructions(&self, worker: usize) -> Vec<String> {
        self.workers[worker].seen.lock().unwrap().instructions.clone()
    }
}

fn score(instruction: &str) -> v1::ScoreRequest {
    let row = v1::ScoreRow { instruction: instruction.into(), responses: vec!["four".into(), "xyz".into()] };
    v1::ScoreRequest { model: "m".into(), rows: vec![row], ..Default::default() }
}

fn streamed(instruction: &str) -> v1::ScoreStreamRequest {
    v1::ScoreStreamRequest { request: Some(score(instruction)) }
}

#[tokio::test]
async fn a_call_keeps_its_trace_and_loses_its_token() {
    let routed = Routed::start(&[("one", Mood::Answer)]).await;
    let mut request = Request::new(score("x"));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (name, value) in [("traceparent", trace), ("x-request-id", "17"), ("authorization", "Bearer secret")]
    {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    request.set_timeout(Duration::from_secs(50));
    let answer = routed.harness.inference().score(request).await.unwrap().into_inner();
    assert_eq!(answer.rows[0].scores, [4.0, 3.0]);
    let seen = routed.workers[0].seen.lock().unwrap().metadata[0].clone();
    assert_eq!((seen["traceparent"].as_str(), seen["x-request-id"].as_str()), (trace, "17"));
    assert!(!seen.contains_key("authorization"), "{seen:?}");
    let left: String = seen["grpc-timeout"].chars().filter(char::is_ascii_digit).collect();
    assert!(left.parse::<u64>().unwrap() > 0 && seen["grpc-timeout"] != "50S", "what is left: {seen:?}");
    routed.harness.stop().await;
}

#[tokio::test]
async fn a_worker_that_dies_or_is_full_is_passed_over() {
    let mut routed = Routed::start(&[("dying", Mood::Hang), ("full", Mood::Full)]).await;
    // Whoever is asked first, one takes the call and dies, the other has no room.
    let mut client = routed.harness.inference();
    let call = tokio::spawn(async move { client.score(score("first")).await });
    routed.workers[0].hung().await;
    routed.workers[0].die();
    let status = call.await.unwrap().unwrap_err();
    assert!(matches!(status.code(), Code::ResourceExhausted | Code::Unavailable), "{status:?}");
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    assert!(!status.message().contains("127.0.0.1"), "{status:?}");

    routed.workers[1].turn(Mood::Answer);
    for _ in 0..4 {
        let answer = routed.harness.inference().score(score("again")).await.unwrap().into_inner();
        assert_eq!(answer.usage.unwrap().backend, "full");
    }
    routed.harness.stop().await;
}

#[tokio::test]
async fn calls_that_are_over_end_at_the_worker_too() {
    let mut routed = Routed::start(&[("slow", Mood::Hang)]).await;
    let mut late = Request::new(score("late"));
    late.set_timeout(Duration::from_millis(100));
    let status = routed.harness.inference().score(late).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    let dropped = async |count| {
        eventually("the worker's calls end", async || {
            (routed.workers[0].seen.lock().unwrap().dropped == count).then_some(())
        })
        .await;
    };
    dropped(1).await;
    // A caller that goes away takes its call along; a stream's too.
    let mut client = routed.harness.inference();
    let call = tokio::spawn(async move { client.score(score("dropped")).await });
    let mut hanging = routed.workers[0].hanging.clone();
    hanging.wait_for(|count| *count == 2).await.unwrap();
    call.abort();
    dropped(2).await;
    let requests = tokio_stream::iter([streamed("x")]);
    let answers = routed.harness.inference().score_stream(requests).await.unwrap();
    hanging.wait_for(|count| *count == 3).await.unwrap();
    drop(answers);
    dropped(3).await;
    routed.workers.clear();
    routed.harness.stop().await;
}

#[tokio::test]
async fn a_stream_goes_on_elsewhere_from_its_first_unanswered_row() {
    let mut routed = Routed::start(&[("dying", Mood::HangAfter(3))]).await;
    let texts: Vec<String> = (0..40).map(|i| format!("row {i}")).collect();
    let requests: Vec<_> = texts.iter().map(|text| streamed(text)).collect();
    let mut answers =
        routed.harness.inference().score_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    for _ in 0..3 {
        answers.message().await.unwrap().unwrap();
    }
    routed.workers[0].hung().await;
    let second = Pretended::start("second", Mood::Answer).await;
    let hello = v1::Hello { inference_url: second.url.clone(), ..hello("second", 1) };
    let _session = FakeWorker::connect(&routed.harness.url, hello, |_| Act::Hold).await;
    routed.workers.push(second);
    routed.workers[0].die();
    let mut rest = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.response.unwrap().usage.unwrap().backend, "second");
        rest += 1;
    }
    assert_eq!(
        (rest, routed.instructions(0), routed.instructions(1)),
        (37, texts[..3].to_vec(), texts[3..].to_vec())
    );
    routed.harness.stop().await;
}

#[tokio::test]
async fn a_generation_that_is_half_streamed_is_not_made_twice() {
    let mut routed = Routed::start(&[("dying", Mood::HangAfter(2))]).await;
    let request = |texts: &[&str], first_row| v1::GenerateStreamRequest {
        request: Some(v1::GenerateRequest {
            model: "g".into(),
            instructions: texts.iter().map(|&text| text.into()).collect(),
            first_row,
            ..Default::default()
        }),
    };
    let requests = vec![request(&["a", "b", "c", "d"], 10), request(&["e"], 14)];
    let mut answers =
        routed.harness.inference().generate_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let text = |answer: v1::GenerateStreamResponse| {
        answer.response.unwrap().rows[0].decodings[0].samples[0].response.clone()
    };
    let mut got = Vec::new();
    for _ in 0..2 {
        got.push(text(answers.message().await.unwrap().unwrap()));
    }
    routed.workers[0].hung().await;
    let second = Pretended::start("second", Mood::Answer).await;
    let hello = v1::Hello { inference_url: second.url.clone(), ..hello("second", 1) };
    let _session = FakeWorker::connect(&routed.harness.url, hello, |_| Act::Hold).await;
    routed.workers.push(second);
    routed.workers[0].die();
    while let Some(answer) = answers.message().await.unwrap() {
        got.push(text(answer));
    }
    assert_eq!(got, ["a 10", "b 11", "c 12", "d 13", "e 14"]);
    assert_eq!(routed.instructions(1), ["c", "d", "e"]);
    routed.harness.stop().await;
}
