//! Processes that die: the work goes on, and nothing is done twice.

use std::collections::BTreeMap;

use cappy_proto::v1::Job;
use cappy_tests::{Client, Cluster, ClusterPlan, Signal, wait_until};

use crate::job;

/// Fails unless every shard of a job that has ended was committed once, and some of them took another attempt.
#[track_caller]
fn assert_retried_and_committed_once(client: &Client<'_>, job: &Job) {
    let history = client.run(["logs", &job.id, "--output", "ndjson"]).expect(0).json_lines();
    let mut commits: BTreeMap<&str, usize> = BTreeMap::new();
    let mut retried = 0;
    for entry in &history {
        let message = entry["message"].as_str().expect("a message");
        if message.contains(" committed after ") {
            *commits.entry(entry["shard"].as_str().expect("a shard id")).or_default() += 1;
        }
        retried += usize::from(message.starts_with("leased again"));
    }
    let shards: u32 = job.stages.iter().map(|stage| stage.shards_total).sum();
    assert_eq!(commits.len() as u32, shards, "{commits:?}");
    assert!(commits.values().all(|&count| count == 1), "{commits:?}");
    assert!(retried > 0, "no lease was lost: {history:#?}");
}

/// `kill -9` of a worker in the middle of a shard, then of the coordinator in the middle of the job.
#[test]
fn a_job_survives_its_worker_and_its_coordinator() {
    let mut cluster = Cluster::start(&ClusterPlan { workers: 2, ..ClusterPlan::default() });
    let observer = cluster.observer();
    let id = job::submit_detached(&cluster.client());
    let watch = cluster.client().start(["watch", &id, "--output", "json", "--results", "results"]);

    job::wait_mid_stage(&observer, &id, "generate");
    let victim = cluster.workers[0].name().to_owned();
    observer.wait_workers("the worker is in the middle of a shard", |workers| {
        workers.iter().any(|worker| worker.name == victim && worker.busy_slots > 0)
    });
    cluster.workers[0].kill();
    observer
        .wait_workers("its loss is noticed", |workers| workers.iter().all(|worker| worker.name != victim));

    observer.wait_job(&id, "a subset is scored or trained", |job| {
        job.stages.iter().any(|stage| stage.kind == "train" && stage.shards_total > 0)
    });
    cluster.kill_coordinator();
    assert!(observer.job(&id).is_none(), "the coordinator is gone");
    cluster.restart_coordinator();

    watch.wait().expect(0);
    let job = observer.wait_end(&id);
    job::assert_same_as_embedded(&cluster.sandbox().path("results"));
    assert_retried_and_committed_once(&cluster.client(), &job);
}

/// A plugin that crashes when it is opened, then the backend's process crashing in the middle of a shard: the
/// supervisor says why, starts another, and the work is done again.
#[test]
fn a_crashing_backend_takes_only_its_process_along() {
    let struck = tempfile::tempdir().expect("a temporary directory");
    let once = struck.path().join("struck");
    let environment =
        [("CAPPY_FAULTY", "factory:segfault"), ("CAPPY_FAULTY_ONCE", once.to_str().expect("UTF-8"))];
    let cluster = Cluster::start(&ClusterPlan {
        plugins: &["candle", "faulty"],
        worker_environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..ClusterPlan::default()
    });
    let worker = &cluster.workers[0];
    assert!(once.exists(), "the plugin has crashed");
    assert_eq!(worker.children_started(), 2, "{}", worker.log());
    assert!(worker.log().contains("signal 11 (segmentation fault)"), "{}", worker.log());

    let observer = cluster.observer();
    let id = job::submit_detached(&cluster.client());
    job::wait_mid_stage(&observer, &id, "generate");
    observer.wait_workers("the worker is in the middle of a shard", |workers| {
        workers.iter().any(|worker| worker.busy_slots > 0)
    });
    worker.signal_child(Signal::Abort);
    wait_until("another child", || (worker.children_started() == 3).then_some(()));
    assert!(worker.log().contains("signal 6 (abort)"), "{}", worker.log());

    let client = cluster.client();
    client.run(["watch", &id, "--results", "results"]).expect(0);
    job::assert_same_as_embedded(&cluster.sandbox().path("results"));
    assert_retried_and_committed_once(&client, &observer.wait_end(&id));
}
