//! Every kind of task on the echo backend, whose results are known in closed form: a pair's score is its bias plus
//! the mean id over the vocabulary, a generated response is its source, each token with probability 1/2.

use std::sync::Arc;

use cappy_plugin_abi::{
    Backend, Control, Descriptor, Failure, Generator, LoadRequest, ModelInfo, RaggedTokens, Scorer, Trainer,
};
use cappy_proto::v1::{self, shard_task::Task};
use cappy_worker::{execution::FailureClass, settings::default_settings};
use serde_json::{Value, json};

use crate::{
    support::{Bench, echo, echo_score, tokenizer},
    training::{examples, fine_tuning},
};

#[test]
fn scores_follow_the_rows_and_do_not_depend_on_the_slice() {
    let mut bench = Bench::new(echo());
    let long = "banana ".repeat(60);
    let rows: Vec<Value> = (0..9)
        .map(|i| {
            let instruction = format!("Sort the words: {}", "pear fig ".repeat(i));
            if i % 2 == 0 {
                json!({ "instruction": instruction, "responses": ["fig", "", "fig", long, "pear\u{0}"] })
            } else {
                json!({ "instruction": instruction, "flan_samples": {
                    "sampling": [{ "response": "orange" }, { "response": "fig" }],
                    "beam4": [{ "response": "apple" }],
                    "ignored": [{ "response": "none" }],
                } })
            }
        })
        .collect();
    let input = bench.put(&rows);
    let scorer = bench.model("roberta", 0.25);
    let decodings = vec!["beam4".to_owned(), "sampling".to_owned()];
    let task = |row_start, row_end| {
        Task::Score(v1::ScoreTask {
            scorer: scorer.clone(),
            input: input.clone(),
            row_start,
            row_end,
            decodings: decodings.clone(),
            max_tokens: 0,
            ..v1::ScoreTask::default()
        })
    };
    let whole = bench.run(task(0, 9)).unwrap();
    let lines = whole.lines("scores.jsonl");
    assert_eq!(whole.outcome.stats.rows, 9);
    assert_eq!(whole.outcome.stats.truncated_rows, 5, "the long response of every other row");
    let tokenizer = tokenizer("roberta");
    for (index, (line, row)) in lines.iter().zip(&rows).enumerate() {
        assert_eq!(line["row"], index);
        let responses: Vec<&str> = if index % 2 == 0 {
            vec!["fig", "", "fig", &long, "pear\u{0}"]
        } else {
            vec!["apple", "orange", "fig"]
        };
        let scores = line["scores"].as_array().unwrap();
        assert_eq!(scores.len(), responses.len());
        for (score, response) in scores.iter().zip(responses) {
            let expected = echo_score(&tokenizer, row["instruction"].as_str().unwrap(), response, 0.25);
            assert!(
                (score.as_f64().unwrap() as f32 - expected).abs() < 1e-6,
                "row {index}: {score} {expected}"
            );
        }
    }
    let parts: Vec<Value> = [(0, 4), (4, 5), (5, 9)]
        .iter()
        .flat_map(|&(a, b)| bench.run(task(a, b)).unwrap().lines("scores.jsonl"))
        .collect();
    assert_eq!(parts, lines);

    let Task::Score(score) = task(2, 6) else { panic!() };
    let carried = bench.run(Task::Score(v1::ScoreTask { carry_rows: true, ..score })).unwrap();
    for (carried, (row, line)) in carried.lines("rows.jsonl").iter().zip(rows.iter().zip(&lines).skip(2)) {
        let mut expected = row.clone();
        let scores: Vec<f64> =
            line["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect();
        expected["scores"] = scores.iter().map(|&score| f64::from(score as f32)).collect();
        assert_eq!(carried, &expected, "unknown fields stay, in their order");
    }
}

#[test]
fn a_single_response_gets_a_score_and_a_score_that_is_no_number_fails_the_shard() {
    let mut bench = Bench::new(echo());
    let rows = [
        json!({ "id": 7, "instruction": "a", "response": "fig", "weight": 0.1 }),
        json!({ "instruction": "b", "response": "pear", "score": "to be replaced" }),
    ];
    let input = bench.put(&rows);
    let task = |scorer| {
        Task::Score(v1::ScoreTask {
            scorer,
            input: input.clone(),
            row_end: 2,
            carry_rows: true,
            ..v1::ScoreTask::default()
        })
    };
    let scorer = bench.model("roberta", 0.5);
    let scored = bench.run(task(scorer)).unwrap().lines("rows.jsonl");
    for (row, scored) in rows.iter().zip(&scored) {
        let text = |field: &str| row[field].as_str().unwrap();
        let expected = echo_score(&tokenizer("roberta"), text("instruction"), text("response"), 0.5);
        assert!((scored["score"].as_f64().unwrap() as f32 - expected).abs() < 1e-6, "{scored}");
        assert_eq!((&scored["id"], &scored["weight"]), (&row["id"], &row["weight"]));
        assert!(scored.get("scores").is_none());
    }
    let broken = bench.model("roberta", f32::NAN);
    let error = bench.run(task(broken)).err().unwrap();
    assert_eq!((error.class, error.code), (FailureClass::Attempt, "not_finite"));
    assert!(error.message.contains("not finite"), "{error}");
}

#[test]
fn generations_keep_the_row_and_have_the_seeds_shape() {
    let mut bench = Bench::new(echo());
    let rows: Vec<Value> = ["fig pear", "", "Sort: fig", "word word word", "naïve café"]
        .iter()
        .enumerate()
        .map(|(i, text)| {
            json!({ "dataset": "d", "example_idx": i, "instruction": text, "references": ["r"], "weight": 0.1 })
        })
        .collect();
    let input = bench.put(&rows);
    let model = bench.model("t5", 0.0);
    let task = |row_start, row_end, log_likelihood| {
        Task::Generate(v1::GenerateTask {
            model: model.clone(),
            input: input.clone(),
            row_start,
            row_end,
            settings: Some(default_settings()),
            log_likelihood,
            row_namespace: "d/validation".into(),
        })
    };
    let whole = bench.run(task(0, 5, true)).unwrap();
    let lines = whole.lines("rows.jsonl");
    assert_eq!(lines.len(), 5);
    let tokenizer = tokenizer("t5");
    for (line, row) in lines.iter().zip(&rows) {
        let mut kept = line.clone();
        let samples = kept.as_object_mut().unwrap().shift_remove("flan_samples").unwrap();
        assert_eq!(&kept, row);
        let names: Vec<&String> = samples.as_object().unwrap().keys().collect();
        assert_eq!(names, ["beam4", "sampling", "temp0.9", "topk40", "topp0.95"]);
        assert_eq!(samples["beam4"].as_array().unwrap().len(), 1);
        assert_eq!(samples["topk40"].as_array().unwrap().len(), 4);
        let response = samples["temp0.9"][3]["response"].as_str().unwrap();
        let source =
            tokenizer.single(&tokenizer.side(row["instruction"].as_str().unwrap()).unwrap(), 64).unwrap();
        let again = tokenizer.single(&tokenizer.side(response).unwrap(), 64).unwrap();
        // Each token of the source was generated with probability 1/2. Where the text is tokenized as it was
        // generated, the likelihood is that of the path, or else a recomputed one, which has the same rule.
        let sum = samples["temp0.9"][3]["log_likelihood_sum"].as_f64().unwrap();
        let mean = samples["temp0.9"][3]["log_likelihood_mean"].as_f64().unwrap();
        assert!((mean * again.ids.len() as f64 - sum).abs() < 1e-9);
        if again.ids == source.ids {
            assert!((sum - again.ids.len() as f64 * 0.5_f64.ln()).abs() < 1e-5, "{row}: {sum}");
        }
    }
    let plain = bench.run(task(2, 4, false)).unwrap().lines("rows.jsonl");
    assert_eq!(
        plain[1]["flan_samples"]["beam4"][0]["response"],
        lines[3]["flan_samples"]["beam4"][0]["response"]
    );
    assert!(plain[1]["flan_samples"]["beam4"][0].get("log_likelihood_sum").is_none());
    let parts: Vec<Value> = [(0, 3), (3, 5)]
        .iter()
        .flat_map(|&(a, b)| bench.run(task(a, b, true)).unwrap().lines("rows.jsonl"))
        .collect();
    assert_eq!(parts, lines);
}

#[test]
fn what_is_wrong_is_named_and_sorted() {
    let mut bench = Bench::new(echo());
    let mut rows = examples(4);
    rows[2] = json!({ "instruction": "fig", "response": "pear", "label": "high" });
    let bad_label = bench.put(&rows);
    let good = bench.put(&examples(4));
    let scorer = bench.model("roberta", 0.0);
    let train = |scorer: &Option<v1::ModelRef>, examples: &[v1::Artifact], settings| {
        Task::Train(v1::TrainTask {
            scorer: scorer.clone(),
            examples: examples.to_vec(),
            settings: Some(settings),
            ..v1::TrainTask::default()
        })
    };
    let score = |scorer: Option<v1::ModelRef>| {
        Task::Score(v1::ScoreTask { scorer, input: good.clone(), row_end: 4, ..v1::ScoreTask::default() })
    };
    let named = |name: &str, fingerprint: &str| {
        let source = Some(v1::model_ref::Source::Name(name.to_owned()));
        Some(v1::ModelRef { source, fingerprint: fingerprint.to_owned() })
    };
    let bad_json = bench.store.put(bench.dir.path(), b"{\"instruction\": \"a\", \"responses\": []}\n{oops\n");
    let empty = bench.store.put(bench.dir.path(), b"\n");
    let damaged = {
        let mut model = scorer.clone();
        let Some(v1::model_ref::Source::Files(files)) = &mut model.as_mut().unwrap().source else { panic!() };
        let weights = bench.store.put(bench.dir.path(), b"not weights");
        files.files.iter_mut().find(|file| file.name == "model.safetensors").unwrap().artifact =
            Some(weights);
        model
    };
    let unknown_architecture = {
        let mut model = scorer.clone();
        let Some(v1::model_ref::Source::Files(files)) = &mut model.as_mut().unwrap().source else { panic!() };
        let config = bench.store.put(bench.dir.path(), b"{\"model_type\": \"mystery\"}");
        files.files.iter_mut().find(|file| file.name == "config.json").unwrap().artifact = Some(config);
        model
    };
    let missing = bench.dir.path().join("missing");
    let resolve = |name: &str| {
        let role = v1::ModelRole::Scorer.into();
        Task::ResolveModels(v1::ResolveModelsTask {
            models: vec![v1::ResolveModel { name: name.to_owned(), role, endpoint: None }],
        })
    };
    let wrong_rate = v1::FineTuning { learning_rate: f64::NAN, ..fine_tuning() };
    for (what, task, class, words) in [
        (
            "label",
            train(&scorer, &bad_label, fine_tuning()),
            FailureClass::Permanent,
            "row 2 of the input (from 0): `label`",
        ),
        ("no examples", train(&scorer, &[empty], fine_tuning()), FailureClass::Permanent, "no examples"),
        ("rate", train(&scorer, &good, wrong_rate), FailureClass::Permanent, "learning_rate"),
        (
            "json",
            Task::Score(v1::ScoreTask {
                scorer: scorer.clone(),
                input: vec![bad_json],
                row_end: 2,
                ..v1::ScoreTask::default()
            }),
            FailureClass::Permanent,
            "row 1 of the input (from 0): not JSON",
        ),
        (
            "too few rows",
            Task::Score(v1::ScoreTask {
                scorer,
                input: good.clone(),
                row_end: 9,
                ..v1::ScoreTask::default()
            }),
            FailureClass::Permanent,
            "has 4 rows",
        ),
        ("weights", score(damaged), FailureClass::Permanent, "safetensors"),
        ("architecture", score(unknown_architecture), FailureClass::Permanent, "mystery"),
        ("no model", score(None), FailureClass::Permanent, "names no model"),
        ("missing model", resolve(missing.to_str().unwrap()), FailureClass::Permanent, "missing"),
        ("missing name", score(named("./nowhere", "")), FailureClass::Permanent, "nowhere"),
    ] {
        let error = bench.run(task).err().unwrap_or_else(|| panic!("{what} is accepted"));
        assert_eq!(error.class, class, "{what}: {error}");
        assert!(error.message.contains(words), "{what}: {error}");
        assert!(!error.message.contains('\n'), "{what}: {error}");
    }
}

#[test]
fn a_batch_that_does_not_fit_is_halved_and_a_row_that_does_not_is_told() {
    for (fits, ok) in [(2, true), (0, false)] {
        let mut bench = Bench::new(Arc::new(Cramped { inner: echo(), fits }));
        let rows: Vec<Value> =
            (0..6).map(|i| json!({ "instruction": format!("fig {i}"), "response": "pear" })).collect();
        let input = bench.put(&rows);
        let scorer = bench.model("roberta", 0.5);
        let task = Task::Score(v1::ScoreTask { scorer, input, row_end: 6, ..v1::ScoreTask::default() });
        match bench.run(task) {
            Ok(done) => {
                assert!(ok);
                let tokenizer = tokenizer("roberta");
                for (i, line) in done.lines("scores.jsonl").iter().enumerate() {
                    let expected = echo_score(&tokenizer, &format!("fig {i}"), "pear", 0.5);
                    assert!((line["scores"][0].as_f64().unwrap() as f32 - expected).abs() < 1e-6);
                }
            }
            Err(error) => {
                assert_eq!((ok, error.code, error.class), (false, "out_of_memory", FailureClass::Attempt))
            }
        }
    }
}

/// Has memory for so many rows at once.
struct Cramped {
    inner: Arc<dyn Backend>,
    fits: usize,
}

struct CrampedScorer(Box<dyn Scorer>, usize);

impl Scorer for CrampedScorer {
    fn info(&self) -> ModelInfo {
        self.0.info()
    }
    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        if batch.rows() > self.1 {
            return Err(Failure::out_of_memory(format!("{} rows do not fit", batch.rows())));
        }
        self.0.score(batch, control)
    }
}

impl Backend for Cramped {
    fn describe(&self) -> Descriptor {
        self.inner.describe()
    }
    fn load_scorer(&self, request: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
        Ok(Box::new(CrampedScorer(self.inner.load_scorer(request)?, self.fits)))
    }
    fn load_generator(&self, request: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
        self.inner.load_generator(request)
    }
    fn load_trainer(&self, request: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
        self.inner.load_trainer(request)
    }
}
