//! What the artifact store keeps, and what happens when there is no room.

use std::{collections::HashSet, time::Duration};

use cappy_proto::v1::{self, JobState, job_spec::Kind};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tonic::Code;

use crate::{
    fake_worker::{Act, FakeWorker, hello},
    harness::{Harness, fine_tuning},
};

fn always(_: &v1::Lease) -> Act {
    Act::Complete
}

async fn scored(harness: &Harness, name: &str) -> v1::Job {
    let rows: Vec<Value> =
        (0..100).map(|row| json!({"instruction": format!("i{row}"), "response": "r", "label": 0})).collect();
    let input = harness.rows(name, &rows).await;
    let spec = v1::ScoreSpec { scorer: "scorer".into(), input, ..Default::default() };
    let job = harness.submit_kind(Kind::Score(spec)).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:#?}");
    done
}

#[tokio::test]
async fn a_removed_job_takes_along_what_no_other_holds() {
    let harness = Harness::start().await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 2), always).await;
    let first = scored(&harness, "mine").await;
    let stored = harness.stored().len();
    assert_eq!(stored, 3, "rows and two shards");
    // The same rows: everything is reused, and held by both.
    let second = scored(&harness, "again").await;
    assert_eq!(harness.stored().len(), stored);
    harness.delete(&first.id).await.unwrap();
    assert_eq!(harness.stored().len(), stored, "the second job holds them");
    assert_eq!(harness.results(&second.id).await.len(), 1);
    harness.delete(&second.id).await.unwrap();
    assert!(harness.stored().is_empty());
    let scores = worker.stages().len();
    scored(&harness, "mine").await;
    assert!(worker.stages().len() > scores + 1, "what is gone is computed again");

    let label = |row: u64| json!({"instruction": format!("i{row}"), "response": "r", "label": 1});
    let spec = v1::AdaptSpec {
        scorer: "scorer".into(),
        train: harness.rows("train", &(0..10).map(label).collect::<Vec<_>>()).await,
        form: v1::ExampleForm::Labelled.into(),
        fine_tuning: fine_tuning(),
        ..Default::default()
    };
    let before: HashSet<String> = harness.stored().into_iter().collect();
    let job = harness.submit_kind(Kind::Adapt(spec)).await;
    let model = harness.end_of(&job.id).await.model_id;
    assert_eq!(harness.delete(&job.id).await.unwrap(), [model]);
    let after: HashSet<String> = harness.stored().into_iter().collect();
    assert!(after.is_subset(&before), "the model's files went too");
    harness.stop().await;
}

#[tokio::test]
async fn a_file_that_a_crash_left_behind_goes_with_the_next_start() {
    let harness = Harness::start_with(|config| config.artifact_grace = Duration::ZERO).await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 2), always).await;
    let job = scored(&harness, "mine").await;
    drop(worker);
    let known = harness.stored().len();
    let orphan = "ab".repeat(32);
    std::fs::create_dir_all(harness.artifact_path("objects/ab")).unwrap();
    std::fs::write(harness.artifact_path("objects/ab").join(&orphan), "left behind").unwrap();
    let harness = harness.restart().await;
    crate::harness::eventually("it is gone", async || (!harness.stored().contains(&orphan)).then_some(()))
        .await;
    assert_eq!(harness.stored().len(), known);
    assert_eq!(harness.results(&job.id).await.len(), 1);
    harness.stop().await;
}

#[tokio::test]
async fn beyond_the_quota_uploads_are_refused_with_what_could_be_removed() {
    let harness = Harness::start_with(|config| config.disk_quota = Some(60_000)).await;
    let _worker = FakeWorker::connect(&harness.url, hello("one", 2), always).await;
    let job = scored(&harness, "mine").await;
    let large = vec![7; 50_000];
    let refused = harness.try_upload(&large).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused.message().contains(&job.id) && refused.message().contains("quota of 60.0 kB"),
        "{refused}"
    );
    harness.delete(&job.id).await.unwrap();
    harness.try_upload(&large).await.unwrap();
    let again = harness.try_upload(&[8; 50_000]).await.unwrap_err();
    assert!(again.message().contains("raise the quota"), "{again}");
    harness.stop().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn on_a_full_disk_nothing_is_acknowledged_and_it_goes_on_when_there_is_room() {
    let harness = Harness::start().await;
    let content = b"what is to be kept";
    let id = hex::encode(Sha256::digest(content));
    // A device on which every write fails for want of room takes the upload's place.
    let incoming = harness.artifact_path("incoming").join(&id);
    std::os::unix::fs::symlink("/dev/full", &incoming).unwrap();
    let refused = harness.try_upload(content).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("no space left"), "{refused}");
    assert!(harness.stored().is_empty());
    let spec = v1::ScoreSpec {
        scorer: "scorer".into(),
        input: Some(v1::RowFile {
            name: "mine".into(),
            artifact: Some(v1::Artifact { id, size_bytes: content.len() as u64 }),
            rows: 1,
        }),
        ..Default::default()
    };
    let spec = crate::harness::job_spec(Kind::Score(spec));
    let unknown = harness.try_submit_spec(spec.clone(), "").await.unwrap_err();
    assert_eq!(crate::harness::violations(&unknown), ["spec.score.input.artifact"]);
    std::fs::remove_file(incoming).unwrap();
    harness.try_upload(content).await.unwrap();
    harness.try_submit_spec(spec, "").await.unwrap();
    harness.stop().await;
}
