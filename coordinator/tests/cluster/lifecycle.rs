//! A job from submission to its end, and what may come between.

use crate::fake_worker::{Act, FakeWorker, hello};
use crate::harness::{Harness, eventually, spec};
use cappy_proto::v1::{self, JobState, StageState};
use tonic::Code;

fn always(_: &v1::Lease) -> Act {
    Act::Complete
}

#[tokio::test]
async fn a_job_goes_from_rows_to_tables_and_a_second_one_reuses_its_stages() {
    let harness = Harness::start().await;
    let spec = spec(&harness, &["word_sorting", "tense"]).await;
    let job = harness.submit(&spec, "first").await;
    let waiting = harness.job(&job.id).await;
    assert_eq!(waiting.progress.as_ref().unwrap().activity, "waiting for a worker");
    assert_eq!(waiting.state(), JobState::Queued);

    let worker = FakeWorker::connect(&harness.url, hello("one", 2), always).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:#?}");
    assert_eq!(done.progress.unwrap().fraction, 1.0);
    assert!(done.stages.iter().all(|stage| stage.state() == StageState::Succeeded));
    // 100 train rows in 4 shards, 40 validation rows in 2, one fine-tuning, one scoring, for both subsets.
    assert_eq!(worker.stages().len(), 1 + 2 * (4 + 2 + 1 + 1));

    let files = harness.results(&job.id).await;
    let mut names: Vec<&str> = files.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "gen/report.json",
            "gen/report.txt",
            "gen/tense.json",
            "gen/tense_train.jsonl",
            "gen/tense_validation.jsonl",
            "gen/training/tense.json",
            "gen/training/word_sorting.json",
            "gen/word_sorting.json",
            "gen/word_sorting_train.jsonl",
            "gen/word_sorting_validation.jsonl",
        ]
    );
    let text = |name: &str| String::from_utf8(files[name].clone()).unwrap();
    let generated = text("gen/word_sorting_validation.jsonl");
    let order: Vec<u64> = generated
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["example_idx"].as_u64().unwrap())
        .collect();
    assert_eq!(order, (0..40).collect::<Vec<_>>(), "parts are in row order");
    let result: serde_json::Value = serde_json::from_str(&text("gen/word_sorting.json")).unwrap();
    assert_eq!(result["rougeL"], 1.0, "the fake scorer prefers the first candidate, which is the reference");
    assert_eq!(result["rows"], 40);
    assert_eq!(result["settings"]["schedule"], "corrected");
    assert!(text("gen/report.json").contains("word_sorting"));
    assert!(!text("gen/report.txt").is_empty());

    let again = harness.submit(&spec, "second").await;
    assert_ne!(again.id, job.id);
    let done = harness.end_of(&again.id).await;
    assert_eq!(done.state(), JobState::Succeeded);
    for stage in &done.stages {
        let expected = if stage.kind == "resolve" { StageState::Succeeded } else { StageState::Reused };
        assert_eq!(stage.state(), expected, "{}", stage.name);
    }
    assert_eq!(harness.results(&again.id).await, files);
    assert_eq!(worker.stages().len(), 1 + 2 * 8 + 1, "only the models were looked at again");

    let log = harness.log(&job.id).await;
    assert!(log.iter().any(|line| line.starts_with("train/tense") && line.contains("committed")), "{log:#?}");
    harness.stop().await;
}

#[tokio::test]
async fn a_resubmission_with_the_same_key_is_the_same_job() {
    let harness = Harness::start().await;
    let spec = spec(&harness, &["tense"]).await;
    let job = harness.submit(&spec, "key").await;
    let again = harness.try_submit(&spec, "key").await.unwrap();
    assert!(again.existing);
    assert_eq!(again.job.unwrap().id, job.id);
    let mut other = spec.clone();
    other.model = "other".into();
    let refused = harness.try_submit(&other, "key").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains(&job.id), "{refused}");
    harness.stop().await;
}

#[tokio::test]
async fn a_bad_spec_is_refused_field_by_field_and_nothing_is_kept() {
    let harness = Harness::start().await;
    let mut bad = spec(&harness, &["tense", "tense"]).await;
    bad.dtype = "f16".into();
    bad.subsets[0].validation_rows = 0;
    let status = harness.try_submit(&bad, "").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let fields = crate::harness::violations(&status);
    assert_eq!(
        fields,
        ["spec.bigbench.dtype", "spec.bigbench.subsets[0].validation_rows", "spec.bigbench.subsets[1].name"]
    );
    let mut missing = spec(&harness, &["tense"]).await;
    missing.subsets[0].train.as_mut().unwrap().id = "0".repeat(64);
    let status = harness.try_submit(&missing, "").await.unwrap_err();
    assert_eq!(crate::harness::violations(&status), ["spec.bigbench.subsets[0].train"]);
    assert!(harness.list().await.is_empty());
    let status = harness.try_job("job_nothing").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    harness.stop().await;
}

#[tokio::test]
async fn a_worker_that_vanishes_loses_its_lease_and_the_shard_commits_once() {
    let harness = Harness::start().await;
    let spec = spec(&harness, &["tense"]).await;
    let job = harness.submit(&spec, "").await;
    let lost = FakeWorker::connect(&harness.url, hello("lost", 1), |_| Act::Hold).await;
    let lease = lost.lease().await;
    assert_eq!(lease.stage, "resolve");
    let made = lost.make(&lease).await;
    drop(lost);

    let worker = FakeWorker::connect(&harness.url, hello("steady", 1), always).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:#?}");
    assert_eq!(worker.stages()[0], "resolve");
    let log = harness.log(&job.id).await;
    assert!(log.iter().any(|line| line.contains("lease expired")), "{log:#?}");

    // The lost worker speaks up after all.
    let late = worker.complete(&lease, made).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
    assert_eq!(harness.job(&job.id).await.stages[0].shards_done, 1);
    harness.stop().await;
}

#[tokio::test]
async fn a_repeated_completion_gets_the_same_answer_and_changes_nothing() {
    let harness = Harness::start().await;
    let spec = spec(&harness, &["tense"]).await;
    let job = harness.submit(&spec, "").await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 1), |_| Act::Hold).await;
    let lease = worker.lease().await;
    let made = worker.make(&lease).await;
    assert!(worker.complete(&lease, made.clone()).await.unwrap().newly_committed);
    assert!(!worker.complete(&lease, made.clone()).await.unwrap().newly_committed);
    let mut forged = lease.clone();
    forged.fencing_token += 1;
    assert_eq!(worker.complete(&forged, made).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(harness.job(&job.id).await.stages[0].shards_done, 1);
    harness.stop().await;
}

#[tokio::test]
async fn a_restarted_coordinator_goes_on_and_a_worker_keeps_its_lease() {
    let harness = Harness::start().await;
    let spec = spec(&harness, &["tense"]).await;
    let job = harness.submit(&spec, "").await;
    let hold_training = |lease: &v1::Lease| match lease.stage.as_str() {
        "train/tense" => Act::Hold,
        _ => Act::Complete,
    };
    let worker = FakeWorker::connect(&harness.url, hello("one", 1), hold_training).await;
    let lease = worker.lease_of("train/tense").await;
    let activity = eventually("the heartbeat is seen", async || {
        let activity = harness.job(&job.id).await.progress.unwrap().activity;
        activity.contains("loss").then_some(activity)
    })
    .await;
    assert_eq!(activity, "training tense: update 12 of 40, loss 0.061");

    let harness = harness.restart().await;
    assert_eq!(harness.job(&job.id).await.state(), JobState::Running);
    let back = FakeWorker::connect_holding(&harness.url, hello("one", 1), vec![lease.clone()], always).await;
    // It has one slot and holds a lease: nothing else comes until that is done.
    eventually("the lease is known again", async || {
        let running = harness.job(&job.id).await.progress.unwrap();
        running.activity.contains("loss").then_some(())
    })
    .await;
    assert!(back.stages().is_empty());
    let made = back.make(&lease).await;
    assert!(back.complete(&lease, made).await.unwrap().newly_committed);
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:#?}");
    let commits = harness
        .log(&job.id)
        .await
        .iter()
        .filter(|line| line.contains("train/tense") && line.contains("committed"))
        .count();
    assert_eq!(commits, 1);
    harness.stop().await;
}

#[tokio::test]
async fn cancelling_takes_leases_back_and_is_final() {
    let harness = Harness::start().await;
    let spec = spec(&harness, &["tense"]).await;
    let job = harness.submit(&spec, "").await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 1), |_| Act::Hold).await;
    let lease = worker.lease().await;
    let cancelled = harness.cancel(&job.id).await;
    assert_eq!(cancelled.state(), JobState::Cancelled);
    eventually("the worker is told", async || worker.cancelled().contains(&lease.lease_id).then_some(()))
        .await;
    let made = worker.make(&lease).await;
    assert_eq!(worker.complete(&lease, made).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(harness.cancel(&job.id).await.state(), JobState::Cancelled, "a second time changes nothing");
    assert_eq!(harness.end_of(&job.id).await.state(), JobState::Cancelled);
    harness.stop().await;
}

#[tokio::test]
async fn a_subset_that_fails_is_set_aside_and_the_job_ends_partial() {
    let harness = Harness::start().await;
    let spec = spec(&harness, &["tense", "word_sorting"]).await;
    let job = harness.submit(&spec, "").await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 1), |lease| match lease.stage.as_str() {
        "train/tense" => Act::Fail(v1::FailureClass::Attempt, "loss is not a number"),
        "score/word_sorting" if lease.attempt < 3 => Act::Fail(v1::FailureClass::Attempt, "unlucky"),
        _ => Act::Complete,
    })
    .await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Partial, "{done:#?}");
    assert_eq!(done.message, "1 of 2 subsets have no result; first: `train/tense`: loss is not a number");
    assert_eq!(done.failures.len(), 1);
    assert_eq!((done.failures[0].stage.as_str(), done.failures[0].attempts), ("train/tense", 3));
    let states: Vec<(&str, StageState)> =
        done.stages.iter().map(|stage| (stage.name.as_str(), stage.state())).collect();
    assert!(states.contains(&("select/tense", StageState::Skipped)), "{states:?}");
    assert!(states.contains(&("select/word_sorting", StageState::Succeeded)), "{states:?}");
    assert_eq!(worker.stages().iter().filter(|stage| *stage == "train/tense").count(), 3);
    let files = harness.results(&job.id).await;
    assert!(files.contains_key("gen/word_sorting.json") && !files.contains_key("gen/tense.json"));
    harness.stop().await;
}

#[tokio::test]
async fn imported_generations_are_not_generated_again_and_need_no_likelihoods() {
    let harness = Harness::start().await;
    let mut spec = spec(&harness, &["tense"]).await;
    let subset = &mut spec.subsets[0];
    subset.generated = true;
    (subset.train_rows, subset.validation_rows) = (3, 3);
    let rows: String = (0..3)
        .map(|row| {
            format!(
                "{{\"dataset\":\"tense\",\"example_idx\":{row},\"instruction\":\"i{row}\",\"references\":[\"right\"],\
                 \"flan_samples\":{{\"sampling\":[{{\"response\":\"wrong\"}}],\"beam4\":[{{\"response\":\"right\"}}]}}}}\n"
            )
        })
        .collect();
    subset.train = Some(harness.upload(rows.as_bytes()).await);
    subset.validation = subset.train.clone();
    let job = harness.submit(&spec, "").await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 1), always).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:#?}");
    assert_eq!(worker.stages(), ["resolve", "train/tense", "score/tense"]);
    let files = harness.results(&job.id).await;
    assert_eq!(files["gen/tense_validation.jsonl"], rows.as_bytes());
    let result: serde_json::Value = serde_json::from_slice(&files["gen/tense.json"]).unwrap();
    // The first candidate in the order of the decodings, not of the file.
    assert_eq!(result["rougeL"], 1.0);
    assert!(result["baselines"].get("self_score_sum").is_none());
    harness.stop().await;
}

#[tokio::test]
async fn sessions_are_checked_and_workers_drain() {
    let harness = Harness::start().await;
    let mut old = hello("old", 1);
    old.protocol_version = 99;
    let refused = harness.try_session(old).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("99") && refused.message().contains('1'), "{refused}");

    let worker = FakeWorker::connect(&harness.url, hello("one", 3), always).await;
    let listed = harness.workers().await;
    assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].slots), (1, "one", 3));
    let drained = harness.drain(&listed[0].id).await.unwrap();
    assert_eq!(drained.state(), v1::WorkerState::Draining);
    eventually("the worker ends", async || worker.ended().then_some(())).await;
    drop(worker);
    eventually("it is gone", async || {
        (harness.workers().await[0].state() == v1::WorkerState::Lost).then_some(())
    })
    .await;
    assert_eq!(harness.drain("wrk_nobody").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(harness.score().await.unwrap_err().code(), Code::Unavailable, "nobody serves online calls");
    harness.stop().await;
}

#[tokio::test]
async fn health_metrics_and_reflection_answer() {
    let harness = Harness::start().await;
    assert!(harness.serving("").await);
    assert!(harness.serving("cappy.v1.JobService").await);
    let metrics = harness.http("/metrics").await;
    assert!(metrics.contains("cappy_jobs{state=\"queued\"} 0"), "{metrics}");
    assert!(harness.http("/readyz").await.contains("ready"));
    assert!(harness.reflects("cappy.v1.JobService").await);
    harness.stop().await;
}
