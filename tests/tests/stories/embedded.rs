//! One command, everything in its process.

use cappy_eval::{rouge::RougeScorer, rows::GeneratedRow, selection::SubsetResult};
use cappy_tests::json_lines;
use serde_json::Value;

use crate::job::{self, NUM_SAMPLES, SUBSETS};

/// Methods of the table, in its order.
const METHODS: [&str; 9] = [
    "Beam Search (beam=4)",
    "Sampling",
    "Temperature (t=0.9)",
    "Topk (k=40)",
    "Nucleus (p=0.95)",
    "Self-Score (sum)",
    "Self-Score (mean)",
    "Cappy",
    "Oracle (best candidate)",
];

/// Decodings in the order of `flan_samples`.
const DECODINGS: [&str; 5] = ["beam4", "sampling", "temp0.9", "topk40", "topp0.95"];

#[test]
fn the_table_compares_every_method_with_the_oracle() {
    let output = job::embedded().first.json();
    assert_eq!((&output["state"], &output["model"]), (&"succeeded".into(), &"demo".into()));
    let rows: Vec<(&str, f64)> = output["methods"]["rows"]
        .as_array()
        .unwrap_or_else(|| panic!("no table in {output:#}"))
        .iter()
        .map(|row| (row["cells"][0].as_str().expect("a method"), row["cells"][1].as_f64().expect("a mean")))
        .collect();
    assert_eq!(rows.iter().map(|(method, _)| *method).collect::<Vec<_>>(), METHODS);
    let oracle = rows[METHODS.len() - 1].1;
    for (method, mean) in rows {
        assert!((0.0..=100.0).contains(&mean) && mean <= oracle, "{method}: {mean} of {oracle}");
    }
}

/// The figures are what the generations and the choices say.
#[test]
fn results_follow_from_the_generations_and_the_choices() {
    let files = &job::embedded().files;
    let mut rouge = RougeScorer::new();
    for subset in SUBSETS {
        let file = &files[&format!("demo/{subset}.json")];
        let raw: Value = serde_json::from_slice(file).expect("JSON");
        let result: SubsetResult = serde_json::from_slice(file).expect("a result file");
        assert_eq!(raw["rougeL"].as_f64(), Some(result.rouge_l), "the seed's scripts read `rougeL`");
        let rows: Vec<GeneratedRow> = parsed(&files[&format!("demo/{subset}_validation.jsonl")]);
        let per_row = result.per_row.expect("per-row figures");
        assert_eq!((result.rows, per_row.chosen.len()), (Some(rows.len() as u64), rows.len()));
        let (mut chosen, mut beam, mut best) = (0.0, 0.0, 0.0);
        for (row, &choice) in rows.iter().zip(&per_row.chosen) {
            let measured: Vec<f64> = row
                .candidates()
                .map(|candidate| {
                    rouge.rouge_l(&row.row.references, &candidate.sample.response).expect("references")
                })
                .collect();
            chosen += measured[choice as usize];
            beam += measured[0];
            best += measured.iter().copied().fold(0.0, f64::max);
        }
        let mean = |sum: f64| sum / rows.len() as f64;
        assert_close(result.rouge_l, mean(chosen), subset);
        assert_close(result.baselines["beam4"], mean(beam), subset);
        assert_close(result.oracle.expect("an oracle"), mean(best), subset);
    }
}

#[test]
fn generations_have_the_seeds_shape() {
    let files = &job::embedded().files;
    for subset in SUBSETS {
        for (split, keys) in [
            ("train", &["response"][..]),
            ("validation", &["log_likelihood_mean", "log_likelihood_sum", "response"]),
        ] {
            let rows = json_lines(&files[&format!("demo/{subset}_{split}.jsonl")]);
            assert!(!rows.is_empty());
            for (index, row) in rows.iter().enumerate() {
                let fields: Vec<&String> = row.as_object().expect("an object").keys().collect();
                assert_eq!(fields, ["dataset", "example_idx", "instruction", "references", "flan_samples"]);
                assert_eq!((&row["dataset"], &row["example_idx"]), (&subset.into(), &index.into()));
                let samples = row["flan_samples"].as_object().expect("samples by decoding");
                assert_eq!(samples.keys().collect::<Vec<_>>(), DECODINGS);
                for (decoding, samples) in samples {
                    let samples = samples.as_array().expect("a list");
                    assert_eq!(samples.len(), if decoding == "beam4" { 1 } else { NUM_SAMPLES });
                    for sample in samples {
                        let mut found: Vec<&String> = sample.as_object().expect("an object").keys().collect();
                        found.sort();
                        assert_eq!(found, keys, "{subset}_{split}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_second_run_reuses_every_stage_and_changes_nothing() {
    let run = job::embedded();
    job::assert_same(&run.files, &run.files_again);
    let stages = run.status["stages"].as_array().expect("stages");
    for stage in stages {
        // What the names mean today must be looked at.
        let expected = if stage["name"] == "resolve" { "succeeded" } else { "reused" };
        assert_eq!(stage["state"], expected, "{}", stage["name"]);
    }
    let told = format!("{} of {} stages reused", stages.len() - 1, stages.len());
    assert!(run.second.stderr.contains(&told), "`{told}` is not in {}", run.second);
    assert_eq!(run.first.json()["methods"], run.second.json()["methods"]);
}

fn parsed<T: for<'de> serde::Deserialize<'de>>(file: &[u8]) -> Vec<T> {
    json_lines(file).into_iter().map(|row| serde_json::from_value(row).expect("a row")).collect()
}

#[track_caller]
fn assert_close(a: f64, b: f64, what: &str) {
    assert!((a - b).abs() < 1e-12, "{what}: {a} and {b}");
}
