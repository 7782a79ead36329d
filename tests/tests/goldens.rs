//! What `cappy-client` prints, compared with committed files (`CAPPY_UPDATE_GOLDENS=1` rewrites them).

use std::{fs, path::PathBuf};

use cappy_tests::{Client, Sandbox, golden, tree};

fn fixture(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    path.into_os_string().into_string().expect("UTF-8")
}

/// Every verb's short help, and the long help of the main job.
#[test]
fn help() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    golden("help.txt", &client.run(["--help"]).expect(0).stdout);
    golden("help-submit-bigbench.txt", &client.run(["submit", "bigbench", "--help"]).expect(0).stdout);
    golden("help-score.txt", &client.run(["score", "-h"]).expect(0).stdout);
}

#[test]
fn rouge_l_of_rows() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let rows = fixture("rouge_rows.jsonl");
    let ended = client.run(["rouge-l", "--input", &rows]).expect(4);
    golden("rouge-l.jsonl", &ended.stdout);
    golden("rouge-l.stderr.txt", &ended.stderr.replace(&rows, "rouge_rows.jsonl"));
    let content = fs::read_to_string(&rows).expect("a fixture");
    assert_eq!(client.run_with_input(["rouge-l", "--input", "-"], &content).expect(4).stdout, ended.stdout);
    let whole = client.run(["rouge-l", "--input", &rows, "--output", "json"]).expect(4).json();
    assert_eq!(whole.as_array(), Some(&ended.json_lines()), "one document");
    let table = client.run(["rouge-l", "--input", &rows, "--output", "table"]).expect(4).stdout;
    assert!(table.trim_start().starts_with("ROUGE-L"), "{table}");
    assert_eq!(table.lines().count(), ended.json_lines().len() + 1, "{table}");
}

#[test]
fn the_demo_benchmark_as_rows() {
    let sandbox = Sandbox::new();
    Client::embedded(&sandbox).run(["data", "demo", "--output", "demo"]).expect(0);
    let listing: String = tree(&sandbox.path("demo"))
        .iter()
        .map(|(name, content)| {
            let text = String::from_utf8_lossy(content);
            format!(
                "{name}  {} lines\n    {}\n",
                text.lines().count(),
                text.lines().next().unwrap_or_default()
            )
        })
        .collect();
    golden("data-demo.txt", &listing);
}

/// The published figures beside ours for a model that has some; a file that is no result is left out and named.
#[test]
fn report_of_a_results_folder() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let results = fixture("results");
    let report = |flags: &[&str]| {
        client.run(["report", "bigbench", "--results", &results].iter().chain(flags)).expect(0)
    };
    let text = report(&["--output", "table"]);
    golden("report.txt", &text.stdout);
    golden("report.stderr.txt", &text.stderr.replace(&results, "results"));
    golden("report.md", &report(&["--markup", "markdown"]).stdout);
    golden("report.csv", &report(&["--markup", "csv"]).stdout);
    golden("report.ndjson", &report(&[]).stdout);
}
