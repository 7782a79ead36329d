//! Several jobs on one cluster.

use std::time::Duration;

use cappy_proto::v1::{self, JobState, StageState, job_spec::Kind};
use serde_json::{Value, json};

use crate::{
    fake_worker::{Act, FakeWorker, hello},
    harness::{Harness, eventually},
};

async fn score(harness: &Harness, name: &str, count: usize) -> Kind {
    let rows: Vec<Value> = (0..count)
        .map(|row| json!({"instruction": format!("{name} {row}"), "response": "r", "label": 0}))
        .collect();
    let input = harness.rows(name, &rows).await;
    Kind::Score(v1::ScoreSpec { scorer: "scorer".into(), input, ..Default::default() })
}

/// Models are found at once, everything else is held.
fn hold(lease: &v1::Lease) -> Act {
    if lease.stage == "resolve" { Act::Complete } else { Act::Hold }
}

fn always(_: &v1::Lease) -> Act {
    Act::Complete
}

async fn finish(worker: &FakeWorker, lease: &v1::Lease) {
    let made = worker.make(lease).await;
    worker.complete(lease, made).await.unwrap();
    worker.forget(lease);
}

#[tokio::test]
async fn two_jobs_share_the_slots_and_a_paused_one_frees_its_own() {
    let harness = Harness::start().await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 2), hold).await;
    let first = harness.submit_kind(score(&harness, "first", 200).await).await;
    eventually("the first job has both slots", async || {
        (worker.held().iter().filter(|lease| lease.job_id == first.id).count() == 2).then_some(())
    })
    .await;
    let second = harness.submit_kind(score(&harness, "second", 200).await).await;
    let of =
        |job: &v1::Job| worker.held().into_iter().filter(|lease| lease.job_id == job.id).collect::<Vec<_>>();
    finish(&worker, &of(&first)[0]).await;
    eventually("one slot each", async || (of(&first).len() == 1 && of(&second).len() == 1).then_some(()))
        .await;

    let lease = of(&first).remove(0);
    assert_eq!(harness.pause(&first.id).await.state(), JobState::Paused);
    eventually("the worker is told", async || worker.cancelled().contains(&lease.lease_id).then_some(()))
        .await;
    eventually("the second job has both slots", async || (of(&second).len() == 2).then_some(())).await;
    let made = worker.make(&lease).await;
    assert!(worker.complete(&lease, made).await.is_err(), "what was taken back does not commit");
    assert_eq!(harness.job(&first.id).await.progress.unwrap().activity, "paused");

    harness.resume(&first.id).await;
    finish(&worker, &of(&second)[0]).await;
    eventually("the first job goes on", async || (!of(&first).is_empty()).then_some(())).await;
    let lease = of(&first).remove(0);
    assert_eq!(lease.attempt, 1, "being paused is no attempt");
    drop(worker);
    let _steady = FakeWorker::connect(&harness.url, hello("two", 2), always).await;
    for job in [&first, &second] {
        assert_eq!(harness.end_of(&job.id).await.state(), JobState::Succeeded);
    }
    harness.stop().await;
}

#[tokio::test]
async fn the_more_urgent_job_goes_first() {
    let harness = Harness::start().await;
    let early = harness.submit_kind(score(&harness, "early", 200).await).await;
    let urgent = harness.submit_urgent(score(&harness, "urgent", 200).await, 5).await;
    let idle = harness.submit_urgent(score(&harness, "idle", 200).await, -5).await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 1), always).await;
    for job in [&urgent, &early, &idle] {
        assert_eq!(harness.end_of(&job.id).await.state(), JobState::Succeeded);
    }
    let order = worker.jobs();
    let last = |job: &v1::Job| order.iter().rposition(|taken| *taken == job.id).unwrap();
    let first = |job: &v1::Job| order.iter().position(|taken| *taken == job.id).unwrap();
    // Where a stage has just ended, the slot is not kept idle for the next one.
    assert!(last(&urgent) < last(&early) && last(&early) < last(&idle), "{order:?}");
    assert_eq!(first(&urgent), 0);
    harness.stop().await;
}

#[tokio::test]
async fn two_jobs_that_need_the_same_stage_at_once_compute_it_once() {
    let harness = Harness::start().await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 8), hold).await;
    let kind = score(&harness, "same", 200).await;
    let first = harness.submit_kind(kind.clone()).await;
    eventually("all shards are taken", async || (worker.held().len() == 4).then_some(())).await;
    let second = harness.submit_kind(kind).await;
    let told = format!("waits for job {}, which computes the same", first.id);
    eventually("the second waits", async || {
        let job = harness.job(&second.id).await;
        (job.stages[1].message == told && job.progress.unwrap().activity == told).then_some(())
    })
    .await;
    for lease in worker.held() {
        finish(&worker, &lease).await;
    }
    for (job, state) in [(&first, StageState::Succeeded), (&second, StageState::Reused)] {
        let done = harness.end_of(&job.id).await;
        assert_eq!((done.state(), done.stages[1].state()), (JobState::Succeeded, state));
    }
    assert_eq!(worker.stages().iter().filter(|stage| *stage == "score").count(), 4);
    assert_eq!(harness.results(&first.id).await, harness.results(&second.id).await);

    // If the first is cancelled, the second does it itself.
    let kind = score(&harness, "other", 200).await;
    let first = harness.submit_kind(kind.clone()).await;
    eventually("all shards are taken", async || (worker.held().len() == 4).then_some(())).await;
    let second = harness.submit_kind(kind).await;
    eventually("the second waits", async || {
        harness.job(&second.id).await.stages[1].message.starts_with("waits for").then_some(())
    })
    .await;
    harness.cancel(&first.id).await;
    eventually("the second has the shards", async || {
        let held = worker.held();
        (held.len() == 4 && held.iter().all(|lease| lease.job_id == second.id)).then_some(())
    })
    .await;
    harness.stop().await;
}

#[tokio::test]
async fn a_lagging_last_shard_is_tried_by_an_idle_worker_too() {
    let harness = Harness::start_with(|config| config.speculate_after = Duration::ZERO).await;
    let slow = FakeWorker::connect(&harness.url, hello("slow", 1), hold).await;
    let job = harness.submit_kind(score(&harness, "mine", 200).await).await;
    let lease = slow.lease_of("score").await;
    let fast = FakeWorker::connect(&harness.url, hello("fast", 1), always).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:#?}");
    assert_eq!(
        fast.stages().iter().filter(|stage| *stage == "score").count(),
        4,
        "all four, the slow one's too"
    );
    eventually("the slow one is told", async || slow.cancelled().contains(&lease.lease_id).then_some(()))
        .await;
    let made = slow.make(&lease).await;
    assert!(slow.complete(&lease, made).await.is_err());
    assert_eq!(done.stages[1].shards_done, 4);
    let log = harness.log_of(&job.id, "score", &lease.shard_id).await;
    assert!(log.iter().any(|line| line.contains("it lags")), "{log:#?}");
    harness.stop().await;
}
