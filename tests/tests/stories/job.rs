//! The job that the stories run, and what it gives when nothing goes wrong.

use std::{collections::BTreeMap, ffi::OsString, path::Path, sync::OnceLock};

use cappy_proto::v1::{Job, StageState};
use cappy_tests::{Client, Ended, Observer, Sandbox, tree};
use serde_json::Value;

/// Its subsets, of the demo benchmark.
pub const SUBSETS: [&str; 2] = ["past_tense", "sort_words"];

/// Samples of each sampling decoding: so many that a shard takes long enough to be in the middle of one.
pub const NUM_SAMPLES: usize = 12;

/// Files by their path below the results folder.
pub type Files = BTreeMap<String, Vec<u8>>;

/// `submit bigbench` of the stories' job, with these flags behind.
pub fn submit<const N: usize>(flags: [&str; N]) -> Vec<OsString> {
    let samples = NUM_SAMPLES.to_string();
    let mut args =
        vec!["submit", "bigbench", "--model", "demo", "--num-samples", &samples, "--train-size", "96"];
    args.extend(SUBSETS.iter().flat_map(|subset| ["--subset", subset]));
    args.extend(flags);
    args.into_iter().map(OsString::from).collect()
}

/// The same job twice, embedded, on the same data directory.
pub struct Embedded {
    pub first: Ended,
    pub files: Files,
    pub second: Ended,
    pub files_again: Files,
    /// `status --output json` of the second job.
    pub status: Value,
}

/// Runs it the first time that a story asks.
pub fn embedded() -> &'static Embedded {
    static DONE: OnceLock<Embedded> = OnceLock::new();
    DONE.get_or_init(|| {
        let sandbox = Sandbox::new();
        let client = Client::embedded(&sandbox);
        let run = |folder| client.run(submit(["--output", "json", "--results", folder])).expect(0);
        let first = run("first");
        let files = tree(&sandbox.path("first"));
        let second = run("second");
        let files_again = tree(&sandbox.path("second"));
        let id = job_id(&second.json());
        let status = client.run(["status", id.as_str(), "--output", "json"]).expect(0).json();
        Embedded { first, files, second, files_again, status }
    })
}

/// Submits the job to a cluster without waiting for it; its id.
pub fn submit_detached(client: &Client<'_>) -> String {
    job_id(&client.run(submit(["--detach", "--output", "json"])).expect(0).json())
}

/// `job` of a command's output.
pub fn job_id(output: &Value) -> String {
    output["job"].as_str().unwrap_or_else(|| panic!("no job in {output}")).to_owned()
}

/// Fails unless the files below `folder` are those of the embedded run.
#[track_caller]
pub fn assert_same_as_embedded(folder: &Path) {
    assert_same(&embedded().files, &tree(folder));
}

/// Fails unless both have the same files with the same bytes, naming the first line that differs.
#[track_caller]
pub fn assert_same(expected: &Files, actual: &Files) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(expected), names(actual));
    for (name, expected) in expected {
        let lines =
            |bytes: &[u8]| String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect::<Vec<_>>();
        let (expected, actual) = (lines(expected), lines(&actual[name]));
        for (number, (expected, actual)) in (1..).zip(expected.iter().zip(&actual)) {
            assert_eq!(expected, actual, "{name}:{number}");
        }
        assert_eq!(expected.len(), actual.len(), "lines of {name}");
    }
}

/// Waits until a stage of this kind runs with some shards done and some to do, and one of them leased.
pub fn wait_mid_stage(observer: &Observer, id: &str, kind: &str) -> Job {
    observer.wait_job(id, &format!("a {kind} stage is half done"), |job| {
        job.stages.iter().any(|stage| {
            stage.kind == kind
                && stage.state() == StageState::Running
                && (1..stage.shards_total).contains(&stage.shards_done)
        })
    })
}
