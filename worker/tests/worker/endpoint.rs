//! Generators behind an endpoint: against a small server of the test's own that speaks the protocol, faults included.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cappy_plugin_abi::{Control, Unattended};
use cappy_proto::v1::{self, inference_service_client::InferenceServiceClient};
use cappy_worker::{
    Backends, Config,
    compute::{Decodings, GenerationInput, row_keys},
    endpoint::{AllowedHosts, AnsweredRow, EndpointSettings, Endpoints, Key},
    execution::{self, Attempt, ExecutionError, FailureClass, Progress},
    settings::{decodings, endpoint_settings},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};
use tonic_types::StatusExt as _;

use crate::support::{Masked, Store, echo, engine, hub_settings, jsonl, model_dir};

const KEY: &str = "sk-test-0123456789";

/// What the server does with a request.
#[derive(Clone, Debug)]
enum Act {
    /// As many choices as are asked for, or one.
    Answer { one: bool },
    /// A status with headers and a body.
    Refuse(u16, &'static str, &'static str),
    /// A success with this body.
    Say(&'static str),
    /// Half an answer, then nothing.
    Cut,
    /// Nothing at all.
    Silence,
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    headers: HashMap<String, String>,
    body: Value,
}

impl Asked {
    fn prompt(&self) -> &str {
        self.body["messages"][0]["content"].as_str().unwrap_or_default()
    }
}

struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    over: Arc<AtomicBool>,
}

type Script = dyn Fn(usize, &Asked) -> Act + Send + Sync;

impl Server {
    /// `script` gets how many requests there were before.
    fn start(script: impl Fn(usize, &Asked) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (asked, over): (Arc<Mutex<Vec<Asked>>>, Arc<AtomicBool>) = Default::default();
        let script: Arc<Script> = Arc::new(script);
        std::thread::spawn({
            let (asked, over) = (Arc::clone(&asked), Arc::clone(&over));
            move || {
                for stream in listener.incoming().flatten() {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let (asked, script) = (Arc::clone(&asked), Arc::clone(&script));
                    std::thread::spawn(move || while serve(&stream, &asked, &*script).is_some() {});
                }
            }
        });
        Self { address, asked, over }
    }

    fn endpoint(&self) -> v1::Endpoint {
        v1::Endpoint {
            url: format!("http://{}/v1", self.address),
            model: "tiny".into(),
            requests_per_minute: 0,
        }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn endpoints(&self, dir: &Path) -> Endpoints {
        Endpoints::new(self.settings(), dir.join("answers"))
    }

    fn settings(&self) -> EndpointSettings {
        EndpointSettings {
            hosts: AllowedHosts { named: vec![self.address.clone()], file: None },
            key: Key::new(KEY),
            concurrency: 3,
            timeout: Duration::from_millis(600),
            tries: 4,
            first_pause: Duration::from_millis(1),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.address);
    }
}

/// One request of a connection; `None` ends it.
fn serve(mut stream: &TcpStream, asked: &Mutex<Vec<Asked>>, script: &Script) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request = Asked { path, headers, body: serde_json::from_slice(&body).unwrap_or_default() };
    let before = {
        let mut asked = asked.lock().unwrap();
        asked.push(request.clone());
        asked.len() - 1
    };
    let (status, headers, body) = match script(before, &request) {
        Act::Answer { one } => (200, "", answer(&request, one)),
        Act::Refuse(status, headers, body) => (status, headers, body.to_owned()),
        Act::Say(body) => (200, "", body.to_owned()),
        Act::Cut => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"choices\": [{\"mess").ok()?;
            stream.shutdown(std::net::Shutdown::Both).ok()?;
            return None;
        }
        Act::Silence => {
            std::thread::sleep(Duration::from_secs(2));
            return None;
        }
    };
    let head = format!("HTTP/1.1 {status} Some\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).ok()
}

/// Texts that tell prompt, temperature and seed.
fn answer(request: &Asked, one: bool) -> String {
    let count = if one { 1 } else { request.body["n"].as_u64().unwrap_or(1) };
    let text = |i| {
        let (temperature, seed) = (&request.body["temperature"], &request.body["seed"]);
        json!({ "message": { "content": format!(" {} {temperature} {seed} {i}\n", request.prompt()) } })
    };
    let choices: Vec<Value> = (0..count).map(text).collect();
    let usage = json!({ "prompt_tokens": 7, "completion_tokens": 5 * count });
    json!({ "choices": choices, "usage": usage }).to_string()
}

fn settings(names: &[&str]) -> Decodings {
    let mut settings = endpoint_settings();
    settings.decodings.retain(|decoding| names.contains(&decoding.name.as_str()));
    decodings(&settings).unwrap()
}

/// Every row's answers by its index.
fn generate(
    endpoints: &Endpoints,
    endpoint: &v1::Endpoint,
    prompts: &[&str],
    decodings: &Decodings,
    control: &dyn Control,
) -> Result<BTreeMap<usize, AnsweredRow>, ExecutionError> {
    let instructions: Vec<String> = prompts.iter().map(|&text| text.to_owned()).collect();
    let row_keys = row_keys("", 0, &instructions);
    let input = GenerationInput {
        instructions: &instructions,
        row_keys: &row_keys,
        first_row: 0,
        log_likelihood: false,
    };
    let mut rows = BTreeMap::new();
    endpoints.generate(endpoint, input, decodings, control, &mut |row, answered| {
        assert!(rows.insert(row, answered).is_none(), "row {row} is done once");
        Ok(())
    })?;
    Ok(rows)
}

fn texts(row: &AnsweredRow) -> Vec<Vec<String>> {
    row.row.samples.iter().map(|list| list.iter().map(|sample| sample.response.clone()).collect()).collect()
}

#[test]
fn samples_are_asked_for_as_the_decodings_say_and_paid_for_once() {
    for one in [false, true] {
        let server = Server::start(move |_, _| Act::Answer { one });
        let dir = tempfile::tempdir().unwrap();
        let decodings = settings(&["sampling", "temp0.9"]);
        let ask = |dir: &Path, prompts: &[&str]| {
            generate(&server.endpoints(dir), &server.endpoint(), prompts, &decodings, &Unattended).unwrap()
        };
        let rows = ask(dir.path(), &["a", "b", "c"]);
        assert_eq!(rows.len(), 3);
        for (row, prompt) in rows.values().zip(["a", "b", "c"]) {
            let lists = texts(row);
            for (list, temperature) in lists.iter().zip(["1.0", "0.9"]) {
                assert_eq!(list.len(), 4);
                assert!(
                    list.iter().all(|text| text.starts_with(&format!("{prompt} {temperature} "))),
                    "{list:?}"
                );
                let distinct: std::collections::HashSet<_> = list.iter().collect();
                assert_eq!(distinct.len(), 4, "another seed or place each: {list:?}");
            }
            assert_eq!((row.row.tokens, row.failures.len()), (40, 0));
        }
        let asked = server.asked();
        // Where the server gives one choice at a time, the others are asked for one by one.
        assert_eq!(asked.len(), if one { 3 * 2 * 4 } else { 3 * 2 });
        for request in &asked {
            assert_eq!(request.path, "/v1/chat/completions");
            assert_eq!(request.headers["authorization"], format!("Bearer {KEY}"));
            assert_eq!((&request.body["model"], &request.body["max_tokens"]), (&json!("tiny"), &json!(63)));
            assert!(request.body.get("top_k").is_none());
        }
        // Again, by another process of the same machine: nothing is asked. Alone a row gives the same.
        assert_eq!(ask(dir.path(), &["c", "a"])[&0], rows[&2]);
        assert_eq!(server.asked().len(), asked.len());
        let elsewhere = tempfile::tempdir().unwrap();
        assert_eq!(ask(elsewhere.path(), &["b"])[&0], rows[&1]);
        assert!(server.asked().len() > asked.len());
    }
}

#[test]
fn faults_are_ridden_out() {
    let faults = [
        Act::Refuse(429, "retry-after: 0\r\n", r#"{"error": {"message": "slow down"}}"#),
        Act::Refuse(500, "", "oops"),
        Act::Cut,
        Act::Silence,
        Act::Refuse(503, "retry-after: 0.01\r\n", ""),
        Act::Say("<html>a proxy's page</html>"),
        Act::Say(r#"{"choices": []}"#),
    ];
    let expected = faults.len() + 4;
    let server =
        Server::start(move |before, _| faults.get(before).cloned().unwrap_or(Act::Answer { one: false }));
    let dir = tempfile::tempdir().unwrap();
    let decodings = settings(&["sampling"]);
    let endpoints = server.endpoints(dir.path());
    let rows =
        generate(&endpoints, &server.endpoint(), &["a", "b", "c", "d"], &decodings, &Unattended).unwrap();
    assert!(rows.values().all(|row| row.failures.is_empty() && texts(row)[0].len() == 4), "{rows:?}");
    assert_eq!(server.asked().len(), expected);
}

#[test]
fn what_was_answered_is_kept_when_the_rest_fails() {
    let broken = Arc::new(AtomicBool::new(true));
    let server = Server::start({
        let broken = Arc::clone(&broken);
        move |_, request| match request.prompt() {
            "bad" if broken.load(Ordering::Relaxed) => Act::Refuse(502, "", ""),
            _ => Act::Answer { one: false },
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let decodings = settings(&["sampling"]);
    // One thread: the good rows are asked first.
    let one = EndpointSettings { concurrency: 1, ..server.settings() };
    let endpoints = Endpoints::new(one, dir.path().join("answers"));
    let prompts = ["a", "b", "bad", "c"];
    let error = generate(&endpoints, &server.endpoint(), &prompts, &decodings, &Unattended).unwrap_err();
    assert_eq!((error.class, error.code), (FailureClass::Attempt, "unavailable"), "{error:?}");
    assert!(error.message.contains("502") && error.message.contains("4 times"), "{error}");
    broken.store(false, Ordering::Relaxed);
    let before = server.asked().len();
    let rows = generate(&endpoints, &server.endpoint(), &prompts, &decodings, &Unattended).unwrap();
    assert_eq!(rows.len(), 4);
    let again: Vec<String> =
        server.asked()[before..].iter().map(|request| request.prompt().to_owned()).collect();
    assert_eq!(again, ["bad", "c"], "a and b were paid for");
}

#[test]
fn rows_without_a_usable_answer_are_named_and_survived() {
    let server = Server::start(|_, request| match request.prompt() {
        "nonsense" => Act::Say("not JSON"),
        "empty" => Act::Say(r#"{"choices": [{"message": {"content": ""}}]}"#),
        "long" => {
            Act::Refuse(400, "", r#"{"error": {"message": "too long; your key is sk-test-0123456789"}}"#)
        }
        _ => Act::Answer { one: false },
    });
    let dir = tempfile::tempdir().unwrap();
    let decodings = settings(&["sampling"]);
    let prompts = ["a", "nonsense", "b", "empty", "c", "long", "d"];
    let endpoints = server.endpoints(dir.path());
    let rows = generate(&endpoints, &server.endpoint(), &prompts, &decodings, &Unattended).unwrap();
    let reasons: Vec<(usize, String)> = rows
        .iter()
        .flat_map(|(row, it)| it.failures.iter().map(|(_, reason)| (*row, reason.clone())))
        .collect();
    let expected =
        [(1, "not JSON"), (3, "an empty answer"), (5, "400 Bad Request: too long; your key is ***")];
    assert_eq!(reasons, expected.map(|(row, reason)| (row, reason.to_owned())));
    assert_eq!(texts(&rows[&1])[0], [""; 4], "as many samples as asked for");
    assert_eq!(texts(&rows[&2])[0].len(), 4);
    // When hardly a row is answered, something else is wrong.
    let error =
        generate(&endpoints, &server.endpoint(), &["nonsense", "empty", "a"], &decodings, &Unattended);
    assert!(error.unwrap_err().message.contains("no usable answer to 2 of 3 rows"));
}

#[test]
fn the_key_goes_to_allowed_hosts_only_and_a_refused_one_ends_the_work() {
    let server = Server::start(|_, _| {
        Act::Refuse(401, "", r#"{"error": {"message": "sk-test-0123456789 is wrong"}}"#)
    });
    let dir = tempfile::tempdir().unwrap();
    let decodings = settings(&["sampling"]);
    let strict = EndpointSettings {
        hosts: AllowedHosts { named: vec!["api.openai.com".into()], file: None },
        ..server.settings()
    };
    let endpoints = Endpoints::new(strict, dir.path().join("answers"));
    let error = generate(&endpoints, &server.endpoint(), &["a"], &decodings, &Unattended).unwrap_err();
    assert_eq!((error.class, error.code), (FailureClass::Permanent, "permission_denied"));
    assert!(error.message.contains("--endpoint-hosts"), "{error}");
    assert!(endpoints.probe(&server.endpoint()).is_err());
    assert!(server.asked().is_empty(), "nobody was asked");

    let endpoints = server.endpoints(dir.path());
    for error in [
        generate(&endpoints, &server.endpoint(), &["a"], &decodings, &Unattended).map(drop),
        endpoints.probe(&server.endpoint()).map(drop),
    ] {
        let error = error.unwrap_err();
        assert_eq!((error.class, error.code), (FailureClass::Permanent, "permission_denied"));
        assert!(error.message.contains("OPENAI_API_KEY") && !error.message.contains("sk-"), "{error}");
    }
    assert!(!format!("{:?}", server.settings()).contains("sk-"));
}

#[test]
fn cancelled_work_ends_at_once_and_newer_models_get_the_limit_as_they_want_it() {
    struct Cancelled;
    impl Control for Cancelled {
        fn cancelled(&self) -> bool {
            true
        }
        fn progress(&self, _: u64, _: u64) {}
    }
    let server = Server::start(|_, request| match request.body.get("max_tokens") {
        Some(_) => Act::Refuse(400, "", r#"{"error": {"message": "Use 'max_completion_tokens' instead."}}"#),
        None => Act::Answer { one: false },
    });
    let dir = tempfile::tempdir().unwrap();
    let decodings = settings(&["sampling"]);
    let endpoints = server.endpoints(dir.path());
    let error = generate(&endpoints, &server.endpoint(), &["a"], &decodings, &Cancelled).unwrap_err();
    assert!(error.cancelled());
    let rows = generate(&endpoints, &server.endpoint(), &["b"], &decodings, &Unattended).unwrap();
    assert!(rows[&0].failures.is_empty());
    // What was cancelled may still be on its way and arrive last.
    let asked = server.asked();
    let answered = asked.iter().rfind(|request| request.prompt() == "b").unwrap();
    assert_eq!(answered.body["max_completion_tokens"], json!(63));
}

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

/// See `tools/endpoint`.
#[test]
fn a_real_server() {
    let Ok(url) = std::env::var("CAPPY_TEST_ENDPOINT") else {
        println!("skipped: CAPPY_TEST_ENDPOINT names no server (tools/endpoint says how to start one)");
        return;
    };
    let model = std::env::var("CAPPY_TEST_ENDPOINT_MODEL").unwrap_or_else(|_| "tiny".to_owned());
    let dir = tempfile::tempdir().unwrap();
    let hosts = AllowedHosts { named: vec!["*".into()], file: None };
    let key = std::env::var("OPENAI_API_KEY").ok().as_deref().and_then(Key::new);
    let settings = EndpointSettings { hosts, key, ..EndpointSettings::default() };
    let endpoints = Endpoints::new(settings, dir.path().join("answers"));
    let endpoint = v1::Endpoint { url, model, requests_per_minute: 0 };
    endpoints.probe(&endpoint).unwrap();
    let decodings = settings_of_a_few_samples();
    let prompts = ["Say something.", "What is two and two?", "Sort the words: pear fig apple"];
    let rows = generate(&endpoints, &endpoint, &prompts, &decodings, &Unattended).unwrap();
    for (row, answered) in &rows {
        println!("{row}: {:?} {:?}", texts(answered), answered.failures);
    }
    assert!(rows.values().all(|row| texts(row).iter().all(|list| list.len() == 2)));
    assert_eq!(generate(&endpoints, &endpoint, &prompts, &decodings, &Unattended).unwrap(), rows, "kept");
}

fn settings_of_a_few_samples() -> Decodings {
    let mut settings = endpoint_settings();
    settings.decodings.iter_mut().for_each(|decoding| decoding.num_samples = 2);
    decodings(&settings).unwrap()
}
