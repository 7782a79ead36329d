//! One job of every kind but `bigbench`.

use crate::fake_worker::{Act, FakeWorker, hello};
use crate::harness::{Harness, fine_tuning, generation};
use cappy_proto::v1::{self, JobState, StageState, job_spec::Kind};
use serde_json::{Value, json};
use tonic::Code;

fn always(_: &v1::Lease) -> Act {
    Act::Complete
}

fn lines(content: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(content).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn asked(count: usize) -> Vec<Value> {
    (0..count)
        .map(|row| json!({"instruction": format!("i{row}"), "references": [format!("answer {row} 0")], "id": row}))
        .collect()
}

async fn done(harness: &Harness, kind: Kind) -> v1::Job {
    let job = harness.submit_kind(kind).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:#?}");
    done
}

#[tokio::test]
async fn generations_come_in_the_layout_that_bigbench_reads_and_are_made_once() {
    let harness = Harness::start().await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 2), always).await;
    let mut files = Vec::new();
    for (name, log_likelihood) in [("tense_train", false), ("tense_validation", true)] {
        files.push(v1::GenerateFile { rows: harness.rows(name, &asked(70)).await, log_likelihood });
    }
    let spec = v1::GenerateSpec {
        model: "tests/gen".into(),
        files: files.clone(),
        generation: generation(),
        ..Default::default()
    };
    let job = done(&harness, Kind::Generate(spec.clone())).await;
    assert_eq!((job.kind.as_str(), job.title.as_str()), ("generate", "tests/gen on 2 files"));
    let results = harness.results(&job.id).await;
    let rows = lines(&results["gen/tense_validation.jsonl"]);
    assert_eq!(rows.len(), 70);
    assert_eq!(rows[69]["id"], 69);
    assert!(rows[69]["flan_samples"]["beam4"][0]["log_likelihood_sum"].is_number());

    // The benchmark's own job finds these rows answered.
    let rows = |index: usize| files[index].rows.clone().unwrap();
    let bigbench = v1::BigbenchSpec {
        model: "tests/gen".into(),
        scorer: "scorer".into(),
        subsets: vec![v1::BigbenchSubset {
            name: "tense".into(),
            train: rows(0).artifact,
            validation: rows(1).artifact,
            train_rows: 70,
            validation_rows: 70,
            generated: false,
        }],
        generation: generation(),
        fine_tuning: fine_tuning(),
        ..Default::default()
    };
    // Its resolve stage looks at another list of models, which decides nothing.
    let job = done(&harness, Kind::Bigbench(bigbench)).await;
    for stage in job.stages.iter().filter(|stage| stage.kind == "generate") {
        assert_eq!(stage.state(), StageState::Reused, "{}", stage.name);
    }
    let again = done(&harness, Kind::Generate(spec)).await;
    assert_eq!(harness.results(&again.id).await, results);
    assert_eq!(worker.stages().iter().filter(|stage| stage.starts_with("generate/")).count(), 6);
    harness.stop().await;
}

#[tokio::test]
async fn scores_and_accuracies_carry_their_rows() {
    let harness = Harness::start().await;
    let _worker = FakeWorker::connect(&harness.url, hello("one", 2), always).await;
    let rows: Vec<Value> = (0..200)
        .map(|row| {
            json!({"dataset_name": "CB", "template_name": "t", "example_idx": row / 2, "instruction": "i",
                   "response": format!("r{}", row % 2), "label": u8::from((row / 2 + row) % 2 == 0)})
        })
        .collect();
    let input = harness.rows("mine", &rows).await;
    let spec = v1::ScoreSpec { scorer: "scorer".into(), input: input.clone(), ..Default::default() };
    let job = done(&harness, Kind::Score(spec)).await;
    let results = harness.results(&job.id).await;
    let scored = lines(&results["mine.jsonl"]);
    assert_eq!((results.len(), scored.len()), (1, 200));
    assert_eq!(scored[7], {
        let mut row = rows[7].clone();
        row["score"] = json!(rows[7]["label"].as_f64().unwrap());
        row
    });

    let spec = v1::PromptsourceSpec { scorer: "scorer".into(), input, ..Default::default() };
    let job = done(&harness, Kind::Promptsource(spec)).await;
    assert_eq!(job.stages[1].state(), StageState::Reused, "the same rows under the same scorer");
    let results = harness.results(&job.id).await;
    let report: Value = serde_json::from_slice(&results["report.json"]).unwrap();
    assert_eq!(report["average"], 1.0, "the fake scorer knows the labels");
    assert_eq!(report["datasets"][0]["groups"], 100);
    assert!(String::from_utf8_lossy(&results["report.txt"]).contains("CB"));
    harness.stop().await;
}

#[tokio::test]
async fn boosting_chooses_among_given_and_among_generated_candidates() {
    let harness = Harness::start().await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 2), always).await;
    let rows: Vec<Value> = (0..70)
        .map(|row| json!({"instruction": format!("i{row}"), "responses": ["a", "b"], "references": ["a"]}))
        .collect();
    let spec = v1::BoostSpec {
        scorer: "scorer".into(),
        input: harness.rows("mine", &rows).await,
        ..Default::default()
    };
    let job = done(&harness, Kind::Boost(spec)).await;
    let results = harness.results(&job.id).await;
    let chosen = lines(&results["mine.jsonl"]);
    assert_eq!(
        chosen[69],
        json!({"instruction": "i69", "responses": ["a", "b"], "references": ["a"], "scores": [1.0, 0.5], "best": 0,
               "response": "a", "rougeL": 1.0, "oracle_rougeL": 1.0})
    );
    let summary: Value = serde_json::from_slice(&results["summary.json"]).unwrap();
    assert_eq!(
        (&summary["rows"], &summary["rougeL"], &summary["changed"]),
        (&json!(70), &json!(1.0), &json!(0))
    );

    let endpoint =
        v1::Endpoint { url: "http://127.0.0.1:1/v1".into(), model: "tiny".into(), ..Default::default() };
    let spec = v1::BoostSpec {
        scorer: "scorer".into(),
        input: harness.rows("asked", &asked(40)).await,
        model: "openai:tiny".into(),
        endpoint: Some(endpoint),
        generation: generation(),
        ..Default::default()
    };
    let job = done(&harness, Kind::Boost(spec)).await;
    let chosen = lines(&harness.results(&job.id).await["asked.jsonl"]);
    assert_eq!((&chosen[39]["response"], &chosen[39]["rougeL"]), (&json!("answer 39 0"), &json!(1.0)));
    assert_eq!(chosen[39]["scores"].as_array().unwrap().len(), 3);
    let paid = worker.stages().iter().filter(|stage| *stage == "generate").count();
    assert!(paid >= 40 / 16, "answers that are paid for come in small shards: {paid}");
    harness.stop().await;
}

fn labelled(count: usize) -> Vec<Value> {
    (0..count)
        .map(|row| json!({"instruction": format!("i{row}"), "response": "r", "label": (row % 2) as f64}))
        .collect()
}

#[tokio::test]
async fn an_adapted_scorer_is_a_model_that_other_jobs_name() {
    let harness = Harness::start().await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 2), always).await;
    let spec = v1::AdaptSpec {
        scorer: "scorer".into(),
        train: harness.rows("mine", &labelled(64)).await,
        validation: harness.rows("held", &labelled(10)).await,
        form: v1::ExampleForm::Labelled.into(),
        fine_tuning: fine_tuning(),
        ..Default::default()
    };
    let job = done(&harness, Kind::Adapt(spec.clone())).await;
    let id = job.model_id.clone();
    assert!(id.starts_with("mdl_"), "{job:#?}");
    let results = harness.results(&job.id).await;
    let mut names: Vec<&str> = results.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["report.json", "training.json"]);
    let report: Value = serde_json::from_slice(&results["report.json"]).unwrap();
    assert_eq!((&report["updates"], &report["last_loss"]), (&json!(2), &json!(0.25)));
    assert_eq!((&report["train"]["examples"], &report["validation"]["examples"]), (&json!(64), &json!(10)));
    assert_eq!(report["evaluations"][0]["rows"], 10);
    assert_eq!(report["settings"]["scorer_fingerprint"], "fp-scorer-1");

    let listed = harness.models().await;
    assert_eq!(
        (listed.len(), listed[0].id.as_str(), listed[0].job_id.as_str()),
        (1, id.as_str(), job.id.as_str())
    );
    assert_eq!(listed[0].title, "scorer adapted on mine");
    let model = harness.model(&id[..id.len() - 2]).await.unwrap();
    assert_eq!(model.files.unwrap().files[0].name, "model.safetensors");
    assert_eq!(model.model.unwrap().fingerprint, report["fingerprint"]);
    assert_eq!(harness.model("mdl_nothing").await.unwrap_err().code(), Code::NotFound);

    // The same again is the same model.
    let again = done(&harness, Kind::Adapt(spec.clone())).await;
    assert_eq!((again.model_id.as_str(), harness.models().await.len()), (id.as_str(), 1));

    // Named as a scorer, by a prefix, it is not searched for and comes as files; adapted further, it is another.
    let score = |scorer: &str, input| v1::ScoreSpec { scorer: scorer.into(), input, ..Default::default() };
    let input = harness.rows("in", &labelled(5)).await;
    let scored = done(&harness, Kind::Score(score(&id[..id.len() - 1], input.clone()))).await;
    assert_eq!(scored.stages.len(), 1);
    let Some(Kind::Score(stored)) = scored.spec.unwrap().kind else { panic!() };
    assert_eq!(stored.scorer, id, "the prefix is completed");
    let further = done(&harness, Kind::Adapt(v1::AdaptSpec { scorer: id.clone(), ..spec })).await;
    assert_ne!(further.model_id, id);
    assert_eq!(worker.stages().iter().filter(|stage| *stage == "train").count(), 2);

    let unknown = crate::harness::job_spec(Kind::Score(score("mdl_nothing", input)));
    let refused = harness.try_submit_spec(unknown, "").await.unwrap_err();
    assert_eq!(crate::harness::violations(&refused), ["spec.score.scorer"]);

    // A model goes with the last job that made it, and whoever removes that is told.
    assert!(harness.delete(&job.id).await.unwrap().is_empty());
    assert_eq!(harness.delete(&again.id).await.unwrap(), std::slice::from_ref(&id));
    assert_eq!(harness.model(&id).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(harness.models().await.len(), 1);
    harness.stop().await;
}

#[tokio::test]
async fn own_rows_with_references_are_answered_labelled_and_learned_from() {
    let harness = Harness::start().await;
    let worker = FakeWorker::connect(&harness.url, hello("one", 2), always).await;
    let spec = v1::AdaptSpec {
        scorer: "scorer".into(),
        train: harness.rows("mine", &asked(40)).await,
        validation: harness.rows("held", &asked(10)).await,
        form: v1::ExampleForm::References.into(),
        model: "tests/gen".into(),
        generation: generation(),
        fine_tuning: fine_tuning(),
        ..Default::default()
    };
    let job = done(&harness, Kind::Adapt(spec)).await;
    let report: Value = serde_json::from_slice(&harness.results(&job.id).await["report.json"]).unwrap();
    // Three candidates a row, of which two are the reference.
    assert_eq!((&report["train"]["references"], &report["train"]["candidates"]), (&json!(40), &json!(40)));
    assert_eq!(report["validation"]["candidates"], 10);
    assert_eq!(report["settings"]["model"], "tests/gen");
    assert_eq!(worker.stages().iter().filter(|stage| stage.starts_with("generate/")).count(), 3);
    harness.stop().await;
}

#[tokio::test]
async fn bad_labels_fail_the_job_and_name_the_row() {
    let harness = Harness::start().await;
    let _worker = FakeWorker::connect(&harness.url, hello("one", 2), always).await;
    let mut rows = labelled(20);
    rows[13]["label"] = json!(1.5);
    let spec = v1::AdaptSpec {
        scorer: "scorer".into(),
        train: harness.rows("mine", &rows).await,
        form: v1::ExampleForm::Labelled.into(),
        fine_tuning: fine_tuning(),
        ..Default::default()
    };
    let job = harness.submit_kind(Kind::Adapt(spec)).await;
    let done = harness.end_of(&job.id).await;
    assert_eq!(done.state(), JobState::Failed);
    assert_eq!(done.message, "`label/train`: mine.jsonl: row 13 (from 0): label 1.5 is not between 0 and 1");
    harness.stop().await;
}

#[tokio::test]
async fn a_pretraining_mixes_examples_with_answers_of_several_generators() {
    let harness = Harness::start().await;
    let _worker = FakeWorker::connect(&harness.url, hello("one", 2), always).await;
    let spec = v1::PretrainSpec {
        scorer: "scorer".into(),
        examples: harness.rows("mix", &labelled(100)).await,
        prompts: harness.rows("asked", &asked(40)).await,
        models: vec!["tests/bart0".into(), "tests/t0".into()],
        generation: generation(),
        validation: harness.rows("held", &labelled(10)).await,
        fine_tuning: fine_tuning(),
        ..Default::default()
    };
    let job = done(&harness, Kind::Pretrain(spec)).await;
    assert!(job.model_id.starts_with("mdl_"));
    let report: Value = serde_json::from_slice(&harness.results(&job.id).await["report.json"]).unwrap();
    // The fake generators answer alike: 40 rows x (2 different answers of 3) x 2, each once.
    let counts = &report["train"];
    assert_eq!((&counts["rows"], &counts["candidates"]), (&json!(100), &json!(240)));
    assert_eq!((&counts["examples"], &counts["duplicates"]), (&json!(180), &json!(160)));
    assert_eq!(job.stages.iter().filter(|stage| stage.kind == "generate").count(), 2);
    harness.stop().await;
}
