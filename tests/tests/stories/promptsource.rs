//! Zero-shot accuracy, beside what transformers gives and what follows from the scores by hand.

use std::{collections::BTreeMap, path::Path};

use cappy_tests::{Client, Sandbox, json_lines};
use serde_json::Value;

/// Rows, and the accuracies that `tools/parity/promptsource.py` computed with transformers and the demo scorer.
fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/promptsource").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Accuracy of each dataset, a share, from rows with scores.
fn by_hand(rows: &[Value]) -> BTreeMap<String, f64> {
    // (dataset, template, example) -> (score, right) of the favourite; the first of equals stays.
    let mut favourites: BTreeMap<(String, String, u64), (f64, bool)> = BTreeMap::new();
    for row in rows {
        let text = |field: &str| row[field].as_str().expect("a text").to_owned();
        let key =
            (text("dataset_name"), text("template_name"), row["example_idx"].as_u64().expect("an index"));
        let (score, right) = (row["score"].as_f64().expect("a score"), row["label"].as_f64() == Some(1.0));
        let favourite = favourites.entry(key).or_insert((f64::NEG_INFINITY, false));
        if score > favourite.0 {
            *favourite = (score, right);
        }
    }
    let mut datasets: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for ((dataset, ..), (_, right)) in favourites {
        let counts = datasets.entry(dataset).or_default();
        counts.0 += f64::from(u8::from(right));
        counts.1 += 1.0;
    }
    datasets.into_iter().map(|(dataset, (right, all))| (dataset, right / all)).collect()
}

#[test]
fn accuracies_are_those_of_transformers_and_follow_from_the_scores() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    sandbox.file("rows.jsonl", fixture("rows.jsonl"));
    let args = ["submit", "promptsource", "--data", "rows.jsonl", "--scorer", "demo", "--results", "out"];
    let report = client.run(args.iter().chain(&["--output", "json"])).expect(0).json();
    let found: BTreeMap<String, f64> = report["datasets"]
        .as_array()
        .unwrap_or_else(|| panic!("no datasets in {report:#}"))
        .iter()
        .map(|dataset| {
            (
                dataset["dataset_name"].as_str().expect("a name").to_owned(),
                dataset["accuracy"].as_f64().expect("a number"),
            )
        })
        .collect();

    let scored =
        client.run(["submit", "score", "--scorer", "demo", "--input", "rows.jsonl", "--results", "scored"]);
    assert_eq!(by_hand(&scored.expect(0).json_lines()), found);

    let expected: Value = serde_json::from_slice(&fixture("expected.json")).expect("JSON");
    let transformers: BTreeMap<String, f64> =
        serde_json::from_value(expected["accuracy"].clone()).expect("accuracies by dataset");
    assert_eq!(found, transformers);
    let average = |value: &Value| value["average"].as_f64().expect("a mean");
    assert!((average(&report) - average(&expected)).abs() < 1e-12, "{report:#}");
    let rows = json_lines(&fixture("rows.jsonl")).len();
    assert_eq!(expected["rows"], rows);
    assert!(
        found.len() > 1 && found.values().any(|&accuracy| accuracy != 0.0 && accuracy != 1.0),
        "{found:?}"
    );
}
