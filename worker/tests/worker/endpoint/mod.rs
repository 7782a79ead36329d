//! Generators behind an endpoint: what is asked for, what faults do, what is kept. `served.rs` has the shards and online
//! calls that they answer, `server.rs` the server that they are asked at, `real.rs` the same at a server of one's own.

mod real;
mod served;
mod server;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use cappy_plugin_abi::{Control, Unattended};
use cappy_proto::v1;
use cappy_worker::{
    compute::{Decodings, GenerationInput, row_keys},
    endpoint::{AllowedHosts, AnsweredRow, EndpointSettings, Endpoints},
    execution::{ExecutionError, FailureClass},
    settings::{decodings, endpoint_settings},
};
use serde_json::json;

use self::server::{Act, KEY, Server};

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
