//! Cancelling, leaving and coming back.

use cappy_proto::v1::JobState;
use cappy_tests::{Client, Cluster, ClusterPlan, Observer, Running, Sandbox, Signal, wait_until};

use crate::job;

/// The id that a waiting `submit` tells first.
fn told_id(submit: &Running) -> String {
    wait_until("the job's id", || {
        let log = submit.stderr();
        log.lines()
            .find_map(|line| line.split_once(": ").map(|(id, _)| id).filter(|id| id.starts_with("job_")))
            .map(str::to_owned)
    })
}

#[test]
fn a_cancelled_job_frees_its_worker_and_an_interrupted_client_leaves_the_job_alone() {
    let cluster = Cluster::start(&ClusterPlan::default());
    let (client, observer) = (cluster.client(), cluster.observer());

    let submit = client.start(job::submit([]));
    let cancelled = told_id(&submit);
    observer.wait_workers("a shard runs", |workers| workers.iter().any(|worker| worker.busy_slots > 0));
    job::wait_mid_stage(&observer, &cancelled, "generate");
    // A unique prefix is enough.
    let answer =
        client.run(["cancel", &cancelled[..cancelled.len() - 1], "--output", "json"]).expect(0).json();
    assert_eq!((&answer["id"], &answer["state"]), (&cancelled.as_str().into(), &"cancelled".into()));
    let ended = submit.wait().expect(1);
    assert!(ended.stderr.contains(&format!("error: job {cancelled} was cancelled")), "{ended}");
    observer.wait_workers("the worker is free", |workers| {
        workers.len() == 1 && workers.iter().all(|worker| worker.busy_slots == 0)
    });
    // Cancelling again changes nothing.
    let again = client.run(["cancel", &cancelled]);
    assert!(again.code == Some(0) || again.stderr.contains("cancelled"), "{again}");

    let submit = client.start(job::submit(["--results", "results"]));
    let id = told_id(&submit);
    job::wait_mid_stage(&observer, &id, "generate");
    submit.signal(Signal::Interrupt);
    let left = submit.wait().expect(130);
    assert!(left.stderr.contains(&format!("`cappy-client watch {id}`")), "{left}");
    assert_eq!(observer.job(&id).map(|job| job.state()), Some(JobState::Running));
    client.run(["watch", &id, "--results", "results"]).expect(0);
    job::assert_same_as_embedded(&cluster.sandbox().path("results"));
    assert_eq!(observer.job(&cancelled).map(|job| job.state()), Some(JobState::Cancelled));
}

/// The embedded cluster ends with the command; the job waits on disk, and `watch` goes on where it was.
#[test]
fn an_interrupted_embedded_run_goes_on_where_it_was() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let submit = client.start(job::submit([]));
    let id = told_id(&submit);
    let owner =
        std::fs::read(sandbox.data_dir().join("embedded.json")).expect("the embedded cluster's address");
    let owner: serde_json::Value = serde_json::from_slice(&owner).expect("JSON");
    job::wait_mid_stage(&Observer::new(owner["url"].as_str().expect("a URL")), &id, "generate");
    submit.signal(Signal::Interrupt);
    let left = submit.wait().expect(130);
    assert!(left.stderr.contains(&format!("`cappy-client watch {id}`")), "{left}");

    let waiting = client.run(["status", &id, "--output", "json"]).expect(0).json();
    let done: u64 =
        waiting["stages"].as_array().expect("stages").iter().filter_map(|s| s["shards_done"].as_u64()).sum();
    assert!(waiting["state"] == "running" && done > 0, "{waiting:#}");
    client.run(["watch", &id, "--results", "results"]).expect(0);
    job::assert_same_as_embedded(&sandbox.path("results"));
}

/// Two commands share one embedded cluster; when the one that started it leaves, the other goes on in its place.
#[test]
fn whoever_shares_an_embedded_cluster_takes_it_over() {
    let sandbox = Sandbox::new();
    let client = Client::embedded(&sandbox);
    let owner = client.start(job::submit([]));
    let id = told_id(&owner);
    let sharer = client.start(["watch", id.as_str(), "--results", "results"]);
    wait_until("the shared cluster", || sharer.stderr().contains("using the embedded cluster").then_some(()));
    owner.signal(Signal::Interrupt);
    owner.wait().expect(130);
    sharer.wait().expect(0);
    job::assert_same_as_embedded(&sandbox.path("results"));
}
