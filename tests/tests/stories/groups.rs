//! Several workers compute one shard, through the real libtorch backend: what comes out is what one worker gives, also
//! when one of them dies meanwhile.
//!
//! Without libtorch (see `cargo xtask libtorch`) there is nothing to run; that is said.

use std::{collections::BTreeMap, fs};

use cappy_tests::{Client, Cluster, ClusterPlan, Ended, Signal, programs, tree, wait_until};
use serde_json::Value;

use crate::{
    job,
    own_data::{demo_rows, labelled, lines, quick},
};

/// Workers with libtorch; none where the plugin has no engine.
fn cluster(workers: usize) -> Option<Cluster> {
    let Some(torch) = &programs().torch_lib_dir else {
        eprintln!(
            "skipped: the libtorch plugin is built without its engine; `cargo xtask libtorch` brings it"
        );
        return None;
    };
    let environment = [
        ("CAPPY_TORCH_LIB_DIR", torch.to_str().expect("UTF-8")),
        // Every update, so that a run which broke off shows that it goes on.
        ("CAPPY_CHECKPOINT_INTERVAL", "0"),
        // Ranks share the machine's cores.
        ("OMP_NUM_THREADS", "1"),
    ];
    Some(Cluster::start(&ClusterPlan {
        workers,
        plugins: &["libtorch"],
        worker_environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    }))
}

/// A fine-tuning of the demo scorer; the updates are as many as a test has time for.
fn adapt(cluster: &Cluster, updates: &str, more: &[&str]) -> Vec<String> {
    let client = cluster.client();
    let rows = labelled(&demo_rows(&client, cluster.sandbox(), "past_tense_train.jsonl")[..48]);
    cluster.sandbox().file("train.jsonl", lines(&rows));
    let verb = ["submit", "adapt", "--scorer", "demo", "--train", "train.jsonl", "--updates", updates];
    let flags = quick("48", "0");
    verb.iter().chain(&flags).chain(more).map(|flag| (*flag).to_owned()).collect()
}

/// The tensors of the model that a result names, f32.
fn weights(cluster: &Cluster, result: &Value) -> BTreeMap<String, Vec<f32>> {
    let model = result["model"].as_str().expect("a model id");
    cluster.client().run(["models", "pull", model, "--to", "pulled"]).expect(0);
    let file = fs::read(cluster.sandbox().path("pulled/model.safetensors")).expect("the model");
    let (length, rest) = file.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&rest[..length]).expect("a header");
    let tensors = header.as_object().expect("tensors").iter().filter(|(name, _)| *name != "__metadata__");
    tensors
        .map(|(name, tensor)| {
            let at = |end: usize| tensor["data_offsets"][end].as_u64().expect("an offset") as usize;
            let bytes = &rest[length + at(0)..length + at(1)];
            let floats = bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().expect("four bytes")));
            (name.clone(), floats.collect())
        })
        .collect()
}

/// Within 1e-5, but for the biases of attention keys: softmax takes out what they add, so their gradient is nothing but
/// rounding, which Adam blows up to the size of its steps.
#[track_caller]
fn assert_same_weights(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, a) in a.iter().filter(|(name, _)| !name.ends_with("attention.self.key.bias")) {
        let furthest = a.iter().zip(&b[name]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(furthest <= 1e-5, "`{name}` differs by {furthest}");
    }
}

fn result(ended: Ended) -> Value {
    ended.expect(0).json()
}

#[test]
fn two_workers_train_what_one_does_though_one_dies_in_the_middle() {
    let Some(alone) = cluster(1) else { return };
    let json = ["--output", "json", "--backend", "libtorch"];
    let one = result(alone.client().run(adapt(&alone, "14", &json)));
    let expected = weights(&alone, &one);
    drop(alone);

    let pair = cluster(2).expect("there is libtorch");
    let observer = pair.observer();
    let flags = [&json[..], &["--data-parallel", "2", "--detach"]].concat();
    let id = job::job_id(&result(pair.client().run(adapt(&pair, "14", &flags))));
    observer.wait_job(&id, "it is in the middle of the training", |job| {
        let train = job.stages.iter().find(|stage| stage.kind == "train");
        train.is_some_and(|stage| (1..13).contains(&stage.units_done))
    });
    observer.wait_workers("both train", |workers| workers.iter().all(|worker| worker.busy_slots == 1));
    pair.workers[1].signal_child(Signal::Kill);
    let client = pair.client();
    let watched = client.run(["watch", id.as_str(), "--output", "json"]).expect(0).json();
    assert_eq!((&watched["state"], &watched["updates"]), (&one["state"], &one["updates"]), "{watched:#}");
    assert_same_weights(&weights(&pair, &watched), &expected);

    // Only that child died, its shard was tried again, and the reason is told.
    assert_eq!(pair.workers.iter().map(|worker| worker.children_started()).collect::<Vec<_>>(), [1, 2]);
    let log = history(&client, &id);
    let told = |words: &str| log.iter().any(|line| line.contains(words));
    assert!(told("leased again to 2 workers together (attempt 1)"), "{log:#?}");
    let name = pair.workers[1].name();
    assert!(told(&format!("the process of worker `{name}` died: signal 9")), "{log:#?}");
}

fn history(client: &Client<'_>, id: &str) -> Vec<String> {
    let entries = client.run(["logs", id, "--output", "ndjson"]).expect(0).json_lines();
    entries.iter().map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_generator_on_two_workers_answers_as_on_one() {
    let Some(pair) = cluster(2) else { return };
    let client = pair.client();
    let rows = demo_rows(&client, pair.sandbox(), "past_tense_validation.jsonl");
    pair.sandbox().file("rows.jsonl", lines(&rows[..40]));
    let generate = |results: &str, shards: &str| {
        let mut flags =
            vec!["submit", "generate", "--model", "demo", "--data", "rows.jsonl", "--backend", "libtorch"];
        flags.extend([
            "--log-likelihood",
            "--results",
            results,
            "--model-shards",
            shards,
            "--output",
            "json",
        ]);
        result(client.run(flags))
    };
    generate("two", "2");
    let files = tree(&pair.sandbox().path("two"));

    let refused = client.run([
        "submit",
        "generate",
        "--model",
        "demo",
        "--data",
        "rows.jsonl",
        "--model-shards",
        "3",
        "--backend",
        "libtorch",
    ]);
    let told = refused.expect(1).stderr;
    assert!(told.contains("attention heads, which 3 shards do not divide"), "{told}");

    // On a cluster of its own: a stage that was computed once is not computed again.
    let alone = cluster(1).expect("there is libtorch");
    alone.sandbox().file("rows.jsonl", fs::read(pair.sandbox().path("rows.jsonl")).expect("the rows"));
    let mut flags =
        vec!["submit", "generate", "--model", "demo", "--data", "rows.jsonl", "--backend", "libtorch"];
    flags.extend(["--log-likelihood", "--results", "one", "--output", "json"]);
    result(alone.client().run(flags));
    assert_same_answers(&tree(&alone.sandbox().path("one")), &files);
}

/// The same texts, with the same likelihoods within 1e-4.
#[track_caller]
fn assert_same_answers(expected: &job::Files, actual: &job::Files) {
    assert_eq!(expected.keys().collect::<Vec<_>>(), actual.keys().collect::<Vec<_>>());
    let mut answers = 0;
    for (name, expected) in expected {
        let rows = |bytes: &[u8]| cappy_tests::json_lines(bytes);
        for (expected, actual) in rows(expected).iter().zip(rows(&actual[name])) {
            answers += close(expected, &actual, name);
        }
    }
    assert!(answers > 40, "{answers} numbers were compared");
}

/// Compares two values, numbers within 1e-4; how many numbers there were.
#[track_caller]
fn close(a: &Value, b: &Value, place: &str) -> usize {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{place}");
            a.iter().map(|(key, value)| close(value, &b[key], &format!("{place}.{key}"))).sum()
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{place}");
            a.iter().zip(b).map(|(a, b)| close(a, b, place)).sum()
        }
        (Value::Number(x), Value::Number(y)) => {
            let (x, y) = (x.as_f64().unwrap_or(f64::NAN), y.as_f64().unwrap_or(f64::NAN));
            assert!((x - y).abs() <= 1e-4, "{place}: {x} and {y}");
            1
        }
        _ => {
            assert_eq!(a, b, "{place}");
            0
        }
    }
}

#[test]
fn a_worker_killed_inside_libtorch_takes_only_its_process_along() {
    let Some(cluster) = cluster(1) else { return };
    let observer = cluster.observer();
    let flags = ["--output", "json", "--backend", "libtorch", "--detach"];
    let id = job::job_id(&result(cluster.client().run(adapt(&cluster, "14", &flags))));
    observer.wait_job(&id, "it trains", |job| {
        job.stages.iter().any(|stage| stage.kind == "train" && (1..13).contains(&stage.units_done))
    });
    let worker = &cluster.workers[0];
    worker.signal_child(Signal::Abort);
    wait_until("another child", || (worker.children_started() == 2).then_some(()));
    let client = cluster.client();
    client.run(["watch", id.as_str(), "--results", "results"]).expect(0);
    let log = history(&client, &id);
    assert!(log.iter().any(|line| line.contains("died: signal 6 (abort)")), "{log:#?}");
    assert!(log.iter().any(|line| line.starts_with("leased again")), "{log:#?}");
}
