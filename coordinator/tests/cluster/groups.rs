//! Shards that several workers compute together.

use std::time::Duration;

use cappy_proto::v1::{self, JobState, job_spec::Kind};
use serde_json::{Value, json};

use crate::{
    fake_worker::{Act, FakeWorker, hello, rank},
    harness::{Harness, eventually, fine_tuning, generation},
};

/// Ranks agree, everything else is completed.
fn together(lease: &v1::Lease) -> Act {
    if lease.gang.is_some() { Act::Join("content") } else { Act::Complete }
}

/// Gangs are held, everything else is completed.
fn hold_gangs(lease: &v1::Lease) -> Act {
    if lease.gang.is_some() { Act::Hold } else { Act::Complete }
}

async fn generate(harness: &Harness, model: &str, rows: usize, model_shards: u32) -> Kind {
    let rows: Vec<Value> = (0..rows).map(|row| json!({ "instruction": format!("{model} {row}") })).collect();
    let rows = harness.rows("mine", &rows).await;
    Kind::Generate(v1::GenerateSpec {
        model: model.into(),
        files: vec![v1::GenerateFile { rows, log_likelihood: false }],
        generation: generation(),
        model_shards,
        ..Default::default()
    })
}

async fn adapt(harness: &Harness, data_parallel: u32) -> Kind {
    let rows: Vec<Value> =
        (0..40).map(|row| json!({"instruction": format!("i{row}"), "response": "r", "label": 0.5})).collect();
    Kind::Adapt(v1::AdaptSpec {
        scorer: "scorer".into(),
        train: harness.rows("mine", &rows).await,
        form: v1::ExampleForm::Labelled.into(),
        fine_tuning: fine_tuning(),
        data_parallel,
        ..Default::default()
    })
}

async fn activity(harness: &Harness, job: &v1::Job) -> String {
    harness.job(&job.id).await.progress.unwrap().activity
}

#[tokio::test]
async fn a_gang_waits_for_all_of_its_workers_and_commits_once() {
    let harness = Harness::start().await;
    let first = FakeWorker::connect(&harness.url, rank("first", 2), together).await;
    let job = harness.submit_kind(generate(&harness, "gen", 100, 2).await).await;
    let told = "waits for 2 workers with tensor-parallel; 1 is here: start another with --plugin-path DIR, where \
                libcappy_plugin_libtorch is";
    eventually("the job says for what it waits", async || {
        (activity(&harness, &job).await == told).then_some(())
    })
    .await;
    assert_eq!(first.stages(), ["resolve"]);
    // A worker without groups is of no use to it.
    let other = FakeWorker::connect(&harness.url, hello("other", 2), together).await;
    let second = FakeWorker::connect(&harness.url, rank("second", 2), together).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:#?}");
    assert!(other.stages().iter().all(|stage| stage == "resolve"));

    let (first, second) = (first.joined(), second.joined());
    assert_eq!((first.len(), second.len()), (4, 4), "four shards, each by both");
    for ((shard, one), (other_shard, two)) in first.iter().zip(&second) {
        assert_eq!(shard, other_shard, "one gang at a time");
        assert_eq!((one.rank + two.rank, one.world, two.world), (1, 2, 2));
        assert_eq!((&one.rendezvous, &one.group_id), (&two.rendezvous, &two.group_id));
    }
    let log = harness.log(&job.id).await;
    let count = |words: &str| log.iter().filter(|line| line.contains(words)).count();
    assert_eq!((count("leased to 2 workers together"), count("committed after")), (4, 5), "{log:#?}");
    harness.stop().await;
}

#[tokio::test]
async fn a_lost_rank_ends_the_gang_and_is_no_attempt() {
    let harness = Harness::start().await;
    let steady = FakeWorker::connect(&harness.url, rank("steady", 1), hold_gangs).await;
    let lost = FakeWorker::connect(&harness.url, rank("lost", 1), hold_gangs).await;
    let job = harness.submit_kind(adapt(&harness, 2).await).await;
    let (lease, _) = (steady.lease_of("train").await, lost.lease_of("train").await);
    assert_eq!(lease.gang.as_ref().map(|gang| (gang.kind(), gang.world)), Some((v1::GangKind::Data, 2)));
    drop(lost);
    eventually("the other is told", async || steady.cancelled().contains(&lease.lease_id).then_some(()))
        .await;
    let made = steady.make(&lease).await;
    assert!(steady.complete(&lease, made).await.is_err(), "what was taken back does not commit");
    drop(steady);

    // The lost one's successor knows how it died.
    let lost = v1::Hello { previous_end: "signal 11 (segmentation fault)".into(), ..rank("lost", 1) };
    let _workers = [
        FakeWorker::connect(&harness.url, rank("third", 1), together).await,
        FakeWorker::connect(&harness.url, lost, together).await,
    ];
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:#?}");
    let log = harness.log_of(&job.id, "train", "").await;
    assert!(log.iter().any(|line| line.contains("lease expired")), "{log:#?}");
    let died = "the process of worker `lost` died: signal 11 (segmentation fault)";
    assert!(log.iter().any(|line| line.contains(died)), "{log:#?}");
    assert!(
        log.iter().any(|line| line.contains("leased again to 2 workers together (attempt 1)")),
        "{log:#?}"
    );
    harness.stop().await;
}

#[tokio::test]
async fn ranks_with_other_models_are_refused_before_any_work() {
    let harness = Harness::start_with(|config| config.max_attempts = 1).await;
    let with = |content: &'static str| {
        move |lease: &v1::Lease| if lease.gang.is_some() { Act::Join(content) } else { Act::Complete }
    };
    let _one = FakeWorker::connect(&harness.url, rank("one", 1), with("aaaa")).await;
    let _two = FakeWorker::connect(&harness.url, rank("two", 1), with("bbbb")).await;
    let job = harness.submit_kind(adapt(&harness, 2).await).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Failed, "{done:#?}");
    let told = &done.failures[0].message;
    assert!(["`one`", "aaaa", "`two`", "bbbb"].iter().all(|word| told.contains(word)), "{told}");
    harness.stop().await;
}

#[tokio::test]
async fn a_rank_that_does_not_come_is_named_and_the_gang_tried_again() {
    let harness = Harness::start_with(|config| config.group_timeout = Duration::from_millis(50)).await;
    let _here = FakeWorker::connect(&harness.url, rank("here", 1), together).await;
    let absent = FakeWorker::connect(&harness.url, rank("absent", 1), hold_gangs).await;
    let job = harness.submit_kind(adapt(&harness, 2).await).await;
    eventually("it is told who is missing", async || {
        let log = harness.log_of(&job.id, "train", "").await;
        log.iter().any(|line| line.contains("1 of 2 workers did not come within 0 s: absent")).then_some(())
    })
    .await;
    drop(absent);
    let _prompt = FakeWorker::connect(&harness.url, rank("prompt", 1), together).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:#?}");
    harness.stop().await;
}

#[tokio::test]
async fn two_gangs_and_small_shards_share_the_workers_and_all_end() {
    let harness = Harness::start().await;
    let workers = [
        FakeWorker::connect(&harness.url, rank("a", 1), together).await,
        FakeWorker::connect(&harness.url, rank("b", 1), together).await,
        FakeWorker::connect(&harness.url, rank("c", 2), together).await,
    ];
    let small: Vec<Value> =
        (0..2000).map(|row| json!({"instruction": format!("s {row}"), "response": "r"})).collect();
    let input = harness.rows("small", &small).await;
    let score = Kind::Score(v1::ScoreSpec { scorer: "scorer".into(), input, ..Default::default() });
    let jobs = [
        harness.submit_kind(score).await,
        harness.submit_kind(generate(&harness, "one", 200, 2).await).await,
        harness.submit_kind(generate(&harness, "two", 200, 3).await).await,
        harness.submit_kind(adapt(&harness, 2).await).await,
    ];
    for job in &jobs {
        let done = harness.end_of(&job.id).await;
        assert_eq!(done.state(), JobState::Succeeded, "{done:#?}");
    }
    assert!(workers.iter().all(|worker| !worker.joined().is_empty()));
    harness.stop().await;
}

#[tokio::test]
async fn a_model_too_large_for_one_worker_is_split_and_the_reason_shown() {
    const GIB: u64 = 1 << 30;
    let harness = Harness::start().await;
    let with_memory = |name: &str, gib: u64| v1::Hello { memory_bytes: gib * GIB, ..rank(name, 1) };
    let workers = [
        FakeWorker::connect(&harness.url, with_memory("a", 40), together).await,
        FakeWorker::connect(&harness.url, with_memory("b", 40), together).await,
        FakeWorker::connect(&harness.url, with_memory("c", 40), together).await,
        FakeWorker::connect(&harness.url, with_memory("small", 20), together).await,
    ];
    let stage = async |job: &v1::Job| {
        let done = harness.end_of(&job.id).await;
        (done.state(), done.stages[1].message.clone())
    };
    let large = harness.submit_kind(generate(&harness, "6heads-90gib", 40, 0).await).await;
    assert_eq!(
        stage(&large).await,
        (
            JobState::Succeeded,
            "6heads-90gib needs 90.0 GiB in f32, the largest worker has room for 40.0 GiB: split over 3"
                .into()
        )
    );
    let ranks = workers.each_ref().map(|worker| worker.joined().len());
    assert_eq!((ranks[3], ranks[0], ranks[0]), (0, ranks[1], ranks[2]), "a third does not fit the small one");

    let fits = harness.submit_kind(generate(&harness, "6heads-40gib", 40, 0).await).await;
    assert_eq!(stage(&fits).await, (JobState::Succeeded, String::new()));
    let (state, message) =
        stage(&harness.submit_kind(generate(&harness, "6heads-9gib", 40, 4).await).await).await;
    assert_eq!(state, JobState::Failed);
    assert!(message.contains("6 attention heads, which 4 shards do not divide"), "{message}");
    let jobs = harness.list().await;
    assert!(jobs[0].message.contains("which 4 shards do not divide"), "{}", jobs[0].message);
    let (state, message) =
        stage(&harness.submit_kind(generate(&harness, "2heads-90gib", 40, 0).await).await).await;
    assert_eq!(state, JobState::Failed);
    assert!(message.contains("even over 2 workers each would need 45.0 GiB"), "{message}");

    // The split is no part of what is computed: another one takes over the same rows.
    let again = harness.submit_kind(generate(&harness, "6heads-90gib", 40, 3).await).await;
    let done = harness.end_of(&again.id).await;
    assert_eq!(done.stages[1].state(), v1::StageState::Reused);
    harness.stop().await;
}
