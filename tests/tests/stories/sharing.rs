//! Several jobs on one cluster: they share it, one that is paused frees it, and what one has done the next does not.

use cappy_proto::v1::{Job, JobState, StageState};
use cappy_tests::{Client, Cluster, ClusterPlan, Sandbox, Signal, json_lines, tree, wait_until};
use serde_json::Value;

use crate::{
    job::{self, NUM_SAMPLES, SUBSETS, job_id},
    own_data::{demo_rows, labelled, lines, quick},
};

/// `submit generate` of the demo benchmark's stories' subsets, with these flags behind.
fn generate(flags: &[&str]) -> Vec<String> {
    generate_some(NUM_SAMPLES, flags)
}

/// As [`generate`], with so many samples of each decoding.
fn generate_some(samples: usize, flags: &[&str]) -> Vec<String> {
    let samples = samples.to_string();
    let mut args = vec!["submit", "generate", "--model", "demo", "--num-samples", &samples];
    args.extend(SUBSETS.iter().flat_map(|subset| ["--subset", subset]));
    args.extend(flags);
    args.into_iter().map(str::to_owned).collect()
}

/// One that takes a while: several times the samples.
fn long(flags: &[&str]) -> Vec<String> {
    generate_some(4 * NUM_SAMPLES, flags)
}

fn submit(client: &Client<'_>, flags: &[&str]) -> String {
    let flags: Vec<&str> = flags.iter().chain(&["--detach", "--output", "json"]).copied().collect();
    job_id(&client.run(long(&flags)).expect(0).json())
}

fn done(job: &Job) -> u32 {
    job.stages.iter().map(|stage| stage.shards_done).sum()
}

/// The seed's layout, and the answers that the whole pipeline gives, which then finds them done.
#[test]
fn the_same_generation_is_done_once() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    client.run(generate(&["--output", "json"])).expect(0);
    let made = tree(&sandbox.path("bigbench_flan_gens"));
    let pipeline = &job::embedded().files;
    for subset in SUBSETS {
        for split in ["train", "validation"] {
            let name = format!("demo/{subset}_{split}.jsonl");
            let same = made.get(&name) == pipeline.get(&name);
            assert!(same, "{name} is not what `submit bigbench` generates; made: {:?}", made.keys());
        }
    }
    assert_eq!(made.len(), 2 * SUBSETS.len());

    let second = client.run(generate(&["--output", "json", "--results", "again"])).expect(0);
    assert_eq!(tree(&sandbox.path("again")), made);
    assert!(second.stderr.contains("4 of 5 stages reused"), "{second}");
    let id = job_id(&second.json());
    let stages = client.run(["status", &id, "--output", "json"]).expect(0).json();
    for stage in stages["stages"].as_array().expect("stages") {
        let generates = stage["name"].as_str().is_some_and(|name| name.starts_with("generate/"));
        assert_eq!(stage["state"] == "reused", generates, "{stage}");
    }
    // The folder feeds the pipeline, whose own generation would have found everything done, too.
    let flags = ["--generations", "bigbench_flan_gens", "--results", "results"];
    let ended = client.run(job::submit([]).into_iter().chain(flags.map(Into::into)).filter(not_samples));
    ended.expect(0);
    for subset in SUBSETS {
        let name = format!("demo/{subset}.json");
        let rouge_l = |files: &job::Files| {
            let file: Value = serde_json::from_slice(&files[&name]).expect("JSON");
            file["rougeL"].as_f64().expect("a number")
        };
        assert_eq!(rouge_l(&tree(&sandbox.path("results"))), rouge_l(pipeline), "{name}");
    }
}

/// Imported generations have their samples.
fn not_samples(arg: &std::ffi::OsString) -> bool {
    *arg != *"--num-samples" && *arg != *NUM_SAMPLES.to_string()
}

/// A file of own rows comes back on a pipe.
#[test]
fn own_rows_are_answered_and_printed() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let rows = &demo_rows(&client, &sandbox, "past_tense_validation.jsonl")[..5];
    let own: Vec<Value> = rows
        .iter()
        .map(|row| serde_json::json!({ "instruction": row["instruction"], "mine": [1, "x"] }))
        .collect();
    let flags = ["--decoding", "beam4", "--log-likelihood", "--results", "out", "--data", "-"];
    let args = ["submit", "generate", "--model", "demo"].iter().chain(&flags);
    let answered = client.run_with_input(args, &lines(&own)).expect(0);
    let file = std::fs::read(sandbox.path("out/demo/rows.jsonl")).expect("generations");
    assert_eq!(answered.stdout.as_bytes(), file);
    let pipeline = json_lines(&job::embedded().files["demo/past_tense_validation.jsonl"]);
    for ((row, own), theirs) in answered.json_lines().iter().zip(&own).zip(&pipeline) {
        assert_eq!((&row["instruction"], &row["mine"]), (&own["instruction"], &own["mine"]));
        assert_eq!(row["flan_samples"]["beam4"], theirs["flan_samples"]["beam4"], "likelihoods included");
    }
}

/// One worker with one slot: two jobs take turns; a paused one gives its place up and keeps what it has.
#[test]
fn two_jobs_share_the_cluster_and_a_paused_one_frees_it() {
    let cluster = Cluster::start(&ClusterPlan::default());
    let (client, observer) = (cluster.client(), cluster.observer());
    let first = submit(&client, &["--seed", "1"]);
    // So that it is not over before the other begins.
    client.run(["pause", &first]).expect(0);
    let second = submit(&client, &["--seed", "2"]);
    client.run(["resume", &first]).expect(0);
    // Both have finished shards before either has ended.
    observer.wait_job(&first, "both jobs have done something", |first| {
        let generated =
            |job: &Job| job.stages.iter().any(|stage| stage.kind == "generate" && stage.shards_done > 0);
        generated(first) && observer.job(&second).is_some_and(|second| generated(&second))
    });

    let paused = client.run(["pause", &first, "--output", "json"]).expect(0).json();
    assert_eq!(paused["state"], "paused");
    let before = observer.wait_job(&first, "it is paused", |job| job.state() == JobState::Paused);
    let ended = observer.wait_end(&second);
    assert_eq!(ended.state(), JobState::Succeeded);
    let after = observer.job(&first).expect("the paused job");
    assert_eq!(after.state(), JobState::Paused);
    // The shard that it had in hand may have been finished, no other.
    assert!((done(&before)..=done(&before) + 1).contains(&done(&after)), "{before:#?}{after:#?}");
    assert!(after.stages.iter().any(|stage| stage.state() != StageState::Succeeded), "{after:#?}");
    observer
        .wait_workers("the worker is free", |workers| workers.iter().all(|worker| worker.busy_slots == 0));

    client.run(["resume", &first]).expect(0);
    client.run(["watch", &first, "--results", "resumed"]).expect(0);
    let sandbox = Sandbox::new();
    Client::embedded(&sandbox).run(long(&["--seed", "1", "--results", "alone"])).expect(0);
    job::assert_same(&tree(&sandbox.path("alone")), &tree(&cluster.sandbox().path("resumed")));
}

/// `kill -9` in the middle of an adaptation: it goes on from its checkpoint and ends with the same bytes.
#[test]
fn an_adaptation_survives_its_workers_process() {
    let environment = [("CAPPY_CHECKPOINT_INTERVAL".to_owned(), "0".to_owned())];
    let plan = ClusterPlan { worker_environment: environment.into(), ..ClusterPlan::default() };
    let cluster = Cluster::start(&plan);
    let (client, observer) = (cluster.client(), cluster.observer());
    let rows = |sandbox: &Sandbox, client: &Client<'_>| {
        let train = labelled(&demo_rows(client, sandbox, "past_tense_train.jsonl"));
        let validation = labelled(&demo_rows(client, sandbox, "past_tense_validation.jsonl")[..16]);
        sandbox.file("train.jsonl", lines(&train));
        sandbox.file("validation.jsonl", lines(&validation));
    };
    rows(cluster.sandbox(), &client);
    let mut args = vec!["submit", "adapt", "--scorer", "demo", "--train", "train.jsonl", "--output", "json"];
    args.extend(["--validation", "validation.jsonl", "--updates", "90", "--evaluate-every", "6"]);
    // 64 rows an update: the run is long enough to be met in its middle. Dropout draws must come back, too.
    args.extend(quick("8", "0.1"));

    let detached = client.run(args.iter().chain(&["--detach"])).expect(0).json();
    let id = job_id(&detached);
    let trained =
        |job: &Job| job.stages.iter().find(|stage| stage.kind == "train").map_or(0, |stage| stage.units_done);
    observer.wait_job(&id, "a third of the updates are made", |job| trained(job) >= 30);
    let worker = &cluster.workers[0];
    worker.signal_child(Signal::Kill);
    wait_until("another child", || (worker.children_started() == 2).then_some(()));
    let result = client.run(["watch", &id, "--results", "out", "--output", "json"]).expect(0).json();
    assert!(worker.log().contains("training goes on from a checkpoint"), "{}", worker.log());
    let model = result["model"].as_str().expect("a model id");
    client.run(["models", "pull", model, "--to", "pulled"]).expect(0);

    let alone = Sandbox::new();
    let embedded = Client::embedded(&alone);
    rows(&alone, &embedded);
    let straight = embedded.run(args.iter().chain(&["--results", "out"])).expect(0).json();
    assert_ne!(straight["model"], model, "ids are the clusters' own");
    embedded
        .run(["models", "pull", straight["model"].as_str().expect("a model id"), "--to", "pulled"])
        .expect(0);
    let (survived, straight) = (cluster.sandbox(), &alone);
    job::assert_same(&tree(&straight.path("pulled")), &tree(&survived.path("pulled")));
    let record =
        |sandbox: &Sandbox| std::fs::read_to_string(sandbox.path("out/training.json")).expect("a record");
    assert_eq!(record(survived), record(straight));
}
