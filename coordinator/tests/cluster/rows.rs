//! Rows that no worker can compute.

use cappy_proto::v1::{self, JobState, StageState, job_spec::Kind, shard_task::Task};
use serde_json::{Value, json};

use crate::{
    fake_worker::{Act, FakeWorker, hello},
    harness::{Harness, generation},
};

/// Fails every shard with one of these rows.
fn poisoned(stage: &'static str, bad: &'static [u64]) -> impl Fn(&v1::Lease) -> Act + Send + Sync {
    move |lease| {
        let rows = match lease.task.as_ref().unwrap().task.as_ref().unwrap() {
            Task::Score(task) => task.row_start..task.row_end,
            Task::Generate(task) => task.row_start..task.row_end,
            _ => 0..0,
        };
        match lease.stage == stage && bad.iter().any(|row| rows.contains(row)) {
            true => Act::Fail(v1::FailureClass::Permanent, "it cannot be computed"),
            false => Act::Complete,
        }
    }
}

fn asked(count: usize) -> Vec<Value> {
    (0..count)
        .map(|row| json!({"instruction": format!("i{row}"), "references": [format!("answer {row} 0")], "id": row}))
        .collect()
}

#[tokio::test]
async fn a_row_that_fails_everywhere_is_named_and_all_others_have_results() {
    let harness = Harness::start().await;
    let _worker = FakeWorker::connect(&harness.url, hello("one", 2), poisoned("generate", &[17, 99])).await;
    let spec = v1::BoostSpec {
        scorer: "scorer".into(),
        input: harness.rows("mine", &asked(150)).await,
        model: "tests/gen".into(),
        generation: generation(),
        ..Default::default()
    };
    let job = harness.submit_kind(Kind::Boost(spec)).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Partial, "{done:#?}");
    assert_eq!(done.message, "2 rows have no result; first: row 17 of `generate`: it cannot be computed");
    let lost: Vec<(&str, u64, u64)> = done
        .failures
        .iter()
        .map(|failure| (failure.stage.as_str(), failure.row_start, failure.row_end))
        .collect();
    assert_eq!(lost, [("generate", 17, 18), ("generate", 99, 100)]);
    assert!(done.stages.iter().all(|stage| stage.state() == StageState::Succeeded));
    let results = harness.results(&job.id).await;
    let ids: Vec<u64> = String::from_utf8_lossy(&results["mine.jsonl"])
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids, (0..150).filter(|row| ![17, 99].contains(row)).collect::<Vec<_>>());

    let shard = &done.failures[0].shard_id;
    let told = harness.log_of(&job.id, "", shard).await;
    assert!(told.iter().any(|line| line == "generate row 17 set aside; the others go on"), "{told:#?}");
    assert!(told.len() < harness.log_of(&job.id, "generate", "").await.len());
    assert!(harness.log_of(&job.id, "score", shard).await.is_empty());
    harness.stop().await;
}

#[tokio::test]
async fn where_no_row_can_be_spared_one_that_fails_fails_the_job() {
    let harness = Harness::start().await;
    let _worker = FakeWorker::connect(&harness.url, hello("one", 2), poisoned("score", &[3])).await;
    let rows: Vec<Value> = (0..10)
        .map(|row| {
            json!({"dataset_name": "CB", "template_name": "t", "example_idx": row, "instruction": "i",
                   "response": "r", "label": 1})
        })
        .collect();
    let input = harness.rows("mine", &rows).await;
    let spec = v1::PromptsourceSpec { scorer: "scorer".into(), input, ..Default::default() };
    let job = harness.submit_kind(Kind::Promptsource(spec)).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!((done.state(), done.message.as_str()), (JobState::Failed, "`score`: it cannot be computed"));
    harness.stop().await;
}
