//! Bad input: one line that names it, the exit code that says what kind it is, and everything else goes on.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

use cappy_plugin_abi::border::{ABI_VERSION, FINGERPRINT};
use cappy_tests::{Client, Cluster, ClusterPlan, Ended, Running, Sandbox, json_lines, programs};

/// Longest message that a person reads to its end.
const MAX_MESSAGE: usize = 600;

/// Fails unless the command ended with this code and one line `error: ...` that says all of `words`.
#[track_caller]
fn assert_refused(what: &str, ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{what}: {ended}");
    assert!(!ended.stderr.contains("panicked"), "{what}: {ended}");
    let errors: Vec<&str> = ended.stderr.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    let [error] = errors[..] else { panic!("{what}: one error line, not {errors:?}: {ended}") };
    assert!(error.len() <= MAX_MESSAGE, "{what}: {error}");
    for word in words {
        assert!(error.contains(word), "{what}: `{word}` is not in: {error}");
    }
}

#[test]
fn commands_without_a_cluster_refuse_what_cannot_be() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    sandbox.folder("empty");
    sandbox.file("report/demo/x.json", "no result");
    // A port that nobody listens on: it was free a moment ago.
    let free =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let nobody = format!("http://{free}");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["submit", "bigbench", "--model", "demo", "--trainsize", "7"], 2, &["--trainsize"]),
        (&["submit", "bigbench", "--model", "demo", "--train-size", "0"], 2, &["--train-size", "0"]),
        (&["submit", "bigbench"], 2, &["required"]),
        (&["submit", "bigbench", "--model", "demo", "--decoding", "greedy"], 2, &["`greedy`", "beamN"]),
        (&["submit", "bigbench", "--model", "flan-t5-small"], 2, &["--data", "data bigbench"]),
        (
            &["submit", "bigbench", "--model", "demo", "--data", "empty"],
            1,
            &["empty", "holds no benchmark data"],
        ),
        (&["submit", "bigbench", "--model", "demo", "--data", "nowhere"], 1, &["nowhere"]),
        (
            &["submit", "bigbench", "--model", "demo", "--subset", "sort_word"],
            1,
            &["no subset `sort_word`", "did you mean `sort_words`"],
        ),
        (&["score", "--scorer", "demo"], 2, &["--input"]),
        (&["ls", "--coordinator", &nobody], 3, &[&nobody]),
        (&["score", "--scorer", "demo", "--coordinator", "not a url", "--input", "-"], 2, &["not a url"]),
        (&["rouge-l", "--input", "nowhere.jsonl"], 1, &["nowhere.jsonl"]),
        (&["report", "bigbench", "--results", "nowhere"], 1, &["nowhere"]),
        (&["report", "bigbench", "--results", "report"], 1, &["report"]),
        (&["data", "bigbench", "--source", "nowhere.tar.gz", "--output", "out"], 1, &["nowhere.tar.gz"]),
        (&["status", "job_unknown"], 1, &["job_unknown"]),
        (&["watch", "job_unknown"], 1, &["job_unknown"]),
    ];
    for (args, code, words) in cases {
        assert_refused(&args.join(" "), &client.run(*args), *code, words);
    }
}

/// A model directory like the demo scorer's, with one file changed.
fn scorer(sandbox: &Sandbox, name: &str, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/assets/scorer");
    for entry in fs::read_dir(source).expect("the demo scorer") {
        let path = entry.expect("a readable entry").path();
        let content = fs::read(&path).expect("a readable file");
        sandbox.file(Path::new(name).join(path.file_name().expect("a name")), content);
    }
    let path = sandbox.path(name);
    fs::write(path.join(file), change(fs::read(path.join(file)).expect("a file of the model")))
        .expect("writable");
    path
}

/// Models that cannot be used are named by every way that leads to them, and the worker serves on.
#[test]
fn broken_models_are_named_and_the_worker_serves_on() {
    let cluster = Cluster::start(&ClusterPlan::default());
    let (client, sandbox) = (cluster.client(), cluster.sandbox());
    let text = |change: fn(String) -> String| {
        move |bytes| change(String::from_utf8(bytes).expect("text")).into_bytes()
    };
    let missing = sandbox.path("no-such-model");
    let cut_short =
        scorer(sandbox, "cut-short", "model.safetensors", |bytes| bytes[..bytes.len() / 2].to_vec());
    let corrupt = scorer(sandbox, "corrupt", "model.safetensors", |mut bytes| {
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        bytes
    });
    let unknown =
        scorer(sandbox, "unknown", "config.json", text(|json| json.replace("\"roberta\"", "\"gpt2\"")));
    let mismatched = scorer(
        sandbox,
        "mismatched",
        "config.json",
        text(|json| {
            let mut config: serde_json::Value = serde_json::from_str(&json).expect("JSON");
            config["vocab_size"] = 7.into();
            config.to_string()
        }),
    );
    let cases: [(&PathBuf, &[&str]); 5] = [
        (&missing, &["no such directory"]),
        (&cut_short, &["`model.safetensors`"]),
        (&corrupt, &["`model.safetensors`"]),
        (&unknown, &["`gpt2`", "supported", "roberta"]),
        (&mismatched, &["vocab_size 7"]),
    ];
    for (model, words) in cases {
        let name = model.to_str().expect("UTF-8");
        let words: Vec<&str> = words.iter().copied().chain([name]).collect();
        let row = ["--instruction", "Past tense of `go`?", "--response", "went"];
        let scored = client.run(["score", "--scorer", name].iter().chain(&row));
        assert_refused(&format!("score with {name}"), &scored, 1, &words);
        let verified = Client::embedded(sandbox).run(["models", "verify", name]);
        assert_refused(&format!("models verify {name}"), &verified, 1, &words);
    }
    let name = unknown.to_str().expect("UTF-8");
    let job = ["submit", "bigbench", "--model", "demo", "--subset", "past_tense", "--scorer", name];
    assert_refused("submit bigbench", &client.run(job), 1, &["failed", name, "`gpt2`"]);
    // A name that needs the hub, which this place never asks.
    let offline =
        client.run(["score", "--instruction", "a", "--response", "b", "--scorer", "nobody/nothing"]);
    assert_refused("a model of the hub", &offline, 1, &["nobody/nothing", "HF_HUB_OFFLINE"]);
    client.run(["score", "--scorer", "demo", "--instruction", "a", "--response", "b"]).expect(0);
}

/// Rows that are no rows are named by file and line and left out; the job ends `partial` for the caller.
#[test]
fn bad_rows_are_named_and_the_others_go_on() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    client.run(["data", "demo", "--output", "rows"]).expect(0);
    let train = sandbox.path("rows/past_tense_train.jsonl");
    let content = fs::read_to_string(&train).expect("rows");
    let mut lines: Vec<&str> = content.lines().collect();
    let good = lines.len();
    lines.insert(2, "this is not JSON");
    lines.insert(4, r#"{"dataset": "past_tense", "example_idx": 4, "references": ["went"]}"#);
    fs::write(&train, lines.join("\n")).expect("writable");
    let submit = |flags: &[&'static str]| {
        let args = ["submit", "bigbench", "--model", "demo", "--data", "rows", "--subset", "past_tense"];
        let quick = ["--decoding", "beam4", "--train-size", "16", "--results", "results"];
        client.run(args.iter().chain(&quick).chain(flags))
    };

    let strict = submit(&["--strict"]);
    assert_refused("--strict", &strict, 1, &["past_tense_train.jsonl:3:"]);

    let ended = submit(&[]).expect(4);
    for told in ["past_tense_train.jsonl:3:", "past_tense_train.jsonl:5:", "`instruction`", "2 bad rows"] {
        assert!(ended.stderr.contains(told), "`{told}` is not in {ended}");
    }
    let generated = fs::read(sandbox.path("results/demo/past_tense_train.jsonl")).expect("generations");
    assert_eq!(json_lines(&generated).len(), good);
    assert!(sandbox.path("results/demo/past_tense.json").exists());
}

/// The same library, claiming to be built for another ABI.
fn of_another_abi(library: &Path) {
    let mut bytes = fs::read(library).expect("a library");
    // The declaration: a magic number, then the ABI version. The magic number alone is also a constant of the code.
    let declaration: Vec<u8> = [b"cappy-plugin-abi", &ABI_VERSION.to_ne_bytes()[..]].concat();
    let found =
        bytes.windows(declaration.len()).position(|window| window == declaration).expect("a declaration");
    let version = found + declaration.len() - 4;
    bytes[version..version + 4].copy_from_slice(&(ABI_VERSION + 6).to_ne_bytes());
    fs::write(library, bytes).expect("writable");
}

#[test]
fn plugins_are_listed_with_the_reason_of_every_refusal() {
    let sandbox = Sandbox::new();
    let list = |folder: &Path, flags: &[&str]| {
        let mut command = sandbox.command(&programs().worker);
        command.arg("plugins").arg("--plugin-path").arg(folder).args(flags);
        Running::start("plugins", command, &sandbox).wait()
    };
    let folder = sandbox.folder("plugins");
    programs().install("candle", &folder);
    of_another_abi(&programs().install("faulty", &folder));
    sandbox.file(format!("plugins/libcappy_plugin_text{}", std::env::consts::DLL_SUFFIX), "plain text");

    let listed = list(&folder, &[]).expect(0);
    let line = |name: &str| {
        let found = listed.stdout.lines().find(|line| line.starts_with(name));
        found.unwrap_or_else(|| panic!("no {name} in {listed}"))
    };
    assert!(line("candle ").contains("generators t5"), "{listed}");
    // What such a library says of itself is not believed: it goes by its file.
    let file = |name: &str| format!("libcappy_plugin_{name}{} refused: ", std::env::consts::DLL_SUFFIX);
    let both = format!(
        "built for plugin ABI {} (fingerprint {FINGERPRINT:016x}), this host has ABI {ABI_VERSION}",
        ABI_VERSION + 6
    );
    assert!(line(&file("faulty")).contains(&both), "{listed}");
    assert!(line(&file("text")).contains("not a shared library"), "{listed}");
    let entries = list(&folder, &["--json"]).expect(0).json_lines();
    assert_eq!(entries.len(), 3);
    assert_eq!(entries.iter().filter(|entry| entry["refused"].is_string()).count(), 2);

    let nowhere = sandbox.path("nowhere");
    assert_refused("plugins", &list(&nowhere, &[]), 1, &[nowhere.to_str().expect("UTF-8")]);
}
