//! One's own rows: adapt a scorer to them, score and choose with it.

use std::{fs, path::Path};

use cappy_eval::rouge::RougeScorer;
use cappy_tests::{Client, Ended, Sandbox, json_lines};
use serde_json::{Value, json};

/// Settings that teach the demo scorer something in seconds.
pub fn quick<'a>(accumulate: &'a str, dropout: &'a str) -> Vec<&'a str> {
    let mut flags = vec!["--learning-rate", "5e-4", "--schedule", "corrected", "--warmup", "0.1"];
    flags.extend(["--batch-size", "8", "--accumulate", accumulate, "--dropout", dropout]);
    flags
}

/// Rows of a subset of the demo benchmark.
pub fn demo_rows(client: &Client<'_>, sandbox: &Sandbox, file: &str) -> Vec<Value> {
    if !sandbox.path("demo").exists() {
        client.run(["data", "demo", "--output", "demo"]).expect(0);
    }
    json_lines(&fs::read(sandbox.path("demo").join(file)).expect("rows of the demo benchmark"))
}

/// Each row's reference is right, the next row's is wrong.
pub fn labelled(rows: &[Value]) -> Vec<Value> {
    let reference = |at: usize| &rows[at % rows.len()]["references"][0];
    let pair = |at: usize, response: &Value, label: f64| json!({ "instruction": rows[at]["instruction"], "response": response, "label": label });
    (0..rows.len()).flat_map(|at| [pair(at, reference(at), 1.0), pair(at, reference(at + 1), 0.0)]).collect()
}

/// Rows with candidates, the first of which is wrong.
fn with_candidates(rows: &[Value]) -> Vec<Value> {
    let reference = |at: usize| rows[at % rows.len()]["references"][0].clone();
    (0..rows.len())
        .map(|at| {
            let mut row = rows[at].clone();
            row["responses"] = json!([reference(at + 1), reference(at), "no idea"]);
            row["id"] = at.into();
            row
        })
        .collect()
}

pub fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

#[track_caller]
fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().unwrap_or_else(|| panic!("no list: {value}"));
    list.iter().map(|number| number.as_f64().unwrap_or_else(|| panic!("no number: {value}"))).collect()
}

#[track_caller]
fn assert_close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance, "{what}: {a} and {b}");
}

/// `args` with `more` behind, run to its end.
fn run(client: &Client<'_>, args: &[&str], more: &[&str]) -> Ended {
    client.run(args.iter().chain(more))
}

/// From own rows to a model, and the model by every way that takes one.
#[test]
fn an_adapted_scorer_is_a_model_like_any_other() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let train = labelled(&demo_rows(&client, &sandbox, "past_tense_train.jsonl")[..64]);
    let rows = demo_rows(&client, &sandbox, "past_tense_validation.jsonl");
    let validation = labelled(&rows[..24]);
    sandbox.file("train.jsonl", lines(&train));
    sandbox.file("validation.jsonl", lines(&validation));
    let adapt = ["submit", "adapt", "--scorer", "demo", "--train", "train.jsonl", "--output", "json"];
    let validated =
        ["--validation", "validation.jsonl", "--updates", "12", "--evaluate-every", "5", "--results", "out"];
    let flags: Vec<&str> = validated.iter().chain(&quick("1", "0")).copied().collect();
    let adapted = run(&client, &adapt, &flags).expect(0);
    let result = adapted.json();
    let id = result["model"].as_str().expect("a model id").to_owned();
    assert!(id.starts_with("mdl_"), "{id}");
    assert_eq!((&result["state"], &result["updates"]), (&"succeeded".into(), &12.into()));
    let losses = numbers(&result["losses"]);
    assert!(losses.len() == 12 && losses.iter().all(|loss| *loss > 0.0), "{losses:?}");
    let evaluations = result["evaluations"].as_array().expect("evaluations");
    let updates: Vec<&Value> = evaluations.iter().map(|evaluation| &evaluation["update"]).collect();
    assert_eq!(updates, [5, 10, 12]);
    let best = evaluations.iter().find(|one| one["update"] == result["best_update"]).expect("the best one");
    assert_eq!(best, &result["validation"]);
    assert!(evaluations.iter().all(|one| one["loss"].as_f64() >= best["loss"].as_f64()), "{result:#}");
    let record: Value =
        serde_json::from_slice(&fs::read(sandbox.path("out/training.json")).expect("a record"))
            .expect("JSON");
    assert_eq!(record["losses"], result["losses"]);

    // Online, as a job, and as a directory of its own: the same scores, whose error is the validation loss.
    let online = client.run(["score", "--scorer", &id, "--input", "validation.jsonl"]).expect(0).json_lines();
    let job = ["submit", "score", "--scorer", &id[..id.len() - 2], "--input", "validation.jsonl"];
    let job = run(&client, &job, &["--results", "scored"]).expect(0);
    assert_eq!(
        job.stdout.as_bytes(),
        fs::read(sandbox.path("scored/validation.jsonl")).expect("scored rows")
    );
    let job = job.json_lines();
    client.run(["models", "pull", &id, "--to", "pulled"]).expect(0);
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert!(sandbox.path("pulled").join(file).exists(), "{file}");
    }
    let pulled = sandbox.path("pulled");
    let pulled = ["score", "--scorer", pulled.to_str().expect("UTF-8"), "--input", "validation.jsonl"];
    let pulled = client.run(pulled).expect(0).json_lines();
    let mut squares = 0.0;
    for (at, row) in validation.iter().enumerate() {
        let score = |rows: &[Value]| rows[at]["score"].as_f64().expect("a score");
        assert_close(score(&online), score(&job), 1e-5, "online and as a job");
        assert_close(score(&online), score(&pulled), 1e-5, "registered and as a directory");
        assert_eq!((&job[at]["instruction"], &job[at]["label"]), (&row["instruction"], &row["label"]));
        squares += (score(&online) - row["label"].as_f64().expect("a label")).powi(2);
    }
    let loss = best["loss"].as_f64().expect("a loss");
    assert_close(squares / validation.len() as f64, loss, 1e-6, "validation loss");

    let listed = client.run(["models", "ls"]).expect(0).json_lines();
    let listed: Vec<&Value> = listed.iter().filter(|model| model["model"] == *id).collect();
    assert_eq!(listed.len(), 1, "{listed:?}");
    check_boost(&client, &sandbox, &id, &rows[24..]);

    // What the scorer was adapted to may be adapted again.
    let flags: Vec<&str> =
        ["--updates", "2", "--results", "again"].iter().chain(&quick("1", "0")).copied().collect();
    let again = ["submit", "adapt", "--scorer", &id, "--train", "train.jsonl", "--output", "json"];
    let again = run(&client, &again, &flags).expect(0).json();
    assert_ne!(again["model"], *id);
}

/// The choice is the first of the highest scores; its measures and their means are ROUGE-L's.
fn check_boost(client: &Client<'_>, sandbox: &Sandbox, scorer: &str, rows: &[Value]) {
    let rows = with_candidates(rows);
    sandbox.file("candidates.jsonl", lines(&rows));
    let boost =
        ["submit", "boost", "--scorer", scorer, "--input", "candidates.jsonl", "--results", "boosted"];
    let summary = run(client, &boost, &["--output", "json"]).expect(0).json();
    let boosted = json_lines(&fs::read(sandbox.path("boosted/candidates.jsonl")).expect("boosted rows"));
    assert_eq!(boosted.len(), rows.len());
    let mut rouge = RougeScorer::new();
    let (mut chosen, mut first) = (0.0, 0.0);
    for (row, boosted) in rows.iter().zip(&boosted) {
        let scores = numbers(&boosted["scores"]);
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let best = scores.iter().position(|&score| score == highest).expect("a highest score");
        assert_eq!((&boosted["best"], &boosted["id"]), (&best.into(), &row["id"]));
        assert_eq!(boosted["response"], row["responses"][best]);
        let references = [row["references"][0].as_str().expect("a reference")];
        let mut measure = |at: usize| {
            rouge.rouge_l(&references, row["responses"][at].as_str().expect("a text")).expect("references")
        };
        assert_eq!(boosted["rougeL"].as_f64(), Some(measure(best)));
        assert_eq!(boosted["oracle_rougeL"], 1.0);
        chosen += measure(best);
        first += measure(0);
    }
    let mean = |field: &str| summary[field].as_f64().unwrap_or_else(|| panic!("no {field} in {summary}"));
    assert_close(mean("rougeL"), chosen / rows.len() as f64, 1e-9, "rougeL");
    assert_close(mean("first_rougeL"), first / rows.len() as f64, 1e-9, "first_rougeL");
    assert!(mean("rougeL") > mean("first_rougeL"), "{summary}");
}

/// Only references: a generator answers, its answers are labelled.
#[test]
fn references_alone_are_enough_with_a_generator() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let rows = &demo_rows(&client, &sandbox, "sort_words_train.jsonl")[..12];
    let bare: Vec<Value> = rows
        .iter()
        .map(|row| json!({ "instruction": row["instruction"], "references": row["references"] }))
        .collect();
    sandbox.file("bare.jsonl", lines(&bare));
    let adapt = ["submit", "adapt", "--scorer", "demo", "--train", "bare.jsonl", "--output", "json"];
    let flags: Vec<&str> = ["--updates", "2"].iter().chain(&quick("1", "0")).copied().collect();
    let refused = run(&client, &adapt, &flags).expect(2);
    assert!(refused.stderr.contains("give --model"), "{refused}");
    let generated = ["--model", "demo", "--decoding", "beam4", "--results", "out"];
    let flags: Vec<&str> = flags.iter().chain(&generated).copied().collect();
    let adapted = run(&client, &adapt, &flags).expect(0).json();
    // References and mismatched responses, and answers that are neither.
    let examples = adapted["examples"].as_u64().expect("a count");
    assert!((13..=36).contains(&examples), "{examples}");
    assert!(adapted["model"].as_str().is_some_and(|id| id.starts_with("mdl_")));
}

/// Bad rows are named by line and left out; the rest is trained on, and the exit code says so.
#[test]
fn bad_rows_of_own_data_are_named_counted_and_survived() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let good = labelled(&demo_rows(&client, &sandbox, "past_tense_train.jsonl")[..8]);
    let mut rows: Vec<String> = good.iter().map(Value::to_string).collect();
    rows[1] = r#"{"instruction": "a", "response": "b", "label": 1.5}"#.into();
    rows[3] = r#"{"instruction": "a", "response": "b", "label": NaN}"#.into();
    rows[5] = r#"{"instruction": "a", "label": 1}"#.into();
    rows[6] = r#"{"id": 7, "instruction": "a", "response": "b", "label": 1}"#.into();
    rows[8] = r#"{"id": 7, "instruction": "a", "response": "c", "label": 1}"#.into();
    rows[9] = "not JSON".into();
    sandbox.file("train.jsonl", rows.join("\n"));
    let adapt = ["submit", "adapt", "--scorer", "demo", "--train", "train.jsonl", "--output", "json"];
    let flags: Vec<&str> =
        ["--results", "out", "--updates", "1"].iter().chain(&quick("1", "0")).copied().collect();
    let ended = run(&client, &adapt, &flags).expect(4);
    for told in [
        "train.jsonl:2: `label` is 1.5, not in [0, 1]",
        "train.jsonl:4: `label` is NaN, not in [0, 1]",
        "train.jsonl:6: there is no `response`",
        "train.jsonl:9: the `id` 7 is there twice",
        "train.jsonl:10: ",
        "5 bad rows left out",
    ] {
        assert!(ended.stderr.contains(told), "`{told}` is not in {ended}");
    }
    assert_eq!(ended.json()["examples"], good.len() - 5);
    let strict: Vec<&str> = flags.iter().chain(&["--strict"]).copied().collect();
    let strict = run(&client, &adapt, &strict).expect(1);
    assert!(strict.stderr.contains("error: train.jsonl:2: "), "{strict}");

    for (args, file, words) in [
        (["submit", "score", "--scorer", "demo", "--input"], "{\"response\": \"b\"}\n", "no `instruction`"),
        (["submit", "boost", "--scorer", "demo", "--input"], "{\"instruction\": \"b\"}\n", "no `responses`"),
        (
            ["submit", "promptsource", "--scorer", "demo", "--data"],
            "{\"instruction\": \"b\"}\n",
            "dataset_name",
        ),
        (["submit", "generate", "--model", "demo", "--data"], "[]\n", "bad.jsonl:1"),
    ] {
        let path = sandbox.file("bad.jsonl", file);
        let ended = run(&client, &args, &[path.to_str().expect("UTF-8")]).expect(1);
        assert!(ended.stderr.contains(words) && ended.stderr.contains("no good row"), "{ended}");
    }
    assert!(!Path::new("cappy_results").exists());
}
