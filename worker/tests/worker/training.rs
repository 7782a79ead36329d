//! Fine-tuning on the echo backend: what a run reports, keeps and takes up again.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use cappy_plugin_abi::{
    Backend, Control, Descriptor, Failure, Generator, LoadRequest, ModelInfo, RaggedTokens, Scorer, Trainer,
};
use cappy_proto::v1::{self, shard_task::Task};
use cappy_worker::execution::Progress;
use serde_json::{Value, json};

use crate::support::{Bench, Done, echo, echo_score, engine, tokenizer};

pub fn examples(count: usize) -> Vec<Value> {
    (0..count)
        .map(|i| json!({ "instruction": format!("fig {i}"), "response": "pear", "label": (i % 3) as f64 / 2.0 }))
        .collect()
}

pub fn fine_tuning() -> v1::FineTuning {
    v1::FineTuning {
        learning_rate: 0.01,
        batch_size: 2,
        accumulate: 2,
        train_size: 48,
        warmup: 0.25,
        schedule: v1::Schedule::Corrected.into(),
        order: v1::RowOrder::Shuffled.into(),
        seed: 11111,
        ..v1::FineTuning::default()
    }
}

#[test]
fn a_run_that_broke_off_ends_as_one_that_did_not() {
    let mut bench = Bench::new(echo());
    let examples = bench.put(&examples(7));
    let scorer = bench.model("bert", 0.0);
    let task = Task::Train(v1::TrainTask {
        scorer,
        examples,
        settings: Some(fine_tuning()),
        ..v1::TrainTask::default()
    });
    let straight = bench.run(task.clone()).unwrap();
    let names: Vec<&str> = straight.outcome.outputs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json", "training.json"]);
    let report = &straight.lines("training.json")[0];
    assert_eq!(
        (&report["updates"], &report["rows"], &report["schedule"]),
        (&json!(12), &json!(48), &json!("corrected"))
    );
    let rates: Vec<f64> =
        report["learning_rates"].as_array().unwrap().iter().map(|rate| rate.as_f64().unwrap()).collect();
    assert_eq!((rates[0], rates[3], rates[11]), (0.0, 0.01, 0.01 * (1.0 - 8.0 / 9.0)));
    let losses: Vec<f64> =
        report["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 12);
    assert_ne!(losses[0], losses[11]);

    // A second engine on the same disk, as after a restart: its first attempt is cancelled in the middle.
    let stopping = Arc::new(Stopping { inner: echo(), after: 21, calls: Default::default() });
    let broken = Bench { engine: engine(bench.dir.path(), stopping), ..bench };
    let error = broken.run(task.clone()).err().expect("stops in update 6");
    assert!(error.cancelled(), "{error}");
    let resumed = Bench { engine: engine(broken.dir.path(), echo()), ..broken };
    let progress = Progress::default();
    let again = resumed.run_with(task, &progress).unwrap();
    assert_eq!(model_bytes(&again), model_bytes(&straight));
    assert_eq!(again.lines("training.json"), straight.lines("training.json"));
    assert_eq!(progress.get().0, 12);
    assert!(fs::read_dir(resumed.dir.path().join("checkpoints")).unwrap().next().is_none(), "cleaned up");
}

fn model_bytes(done: &Done) -> Vec<u8> {
    let (_, path) = done.outcome.outputs.iter().find(|(name, _)| name == "model.safetensors").unwrap();
    fs::read(path).unwrap()
}

/// A bias that climbs from 0 towards the train labels passes the optimum of the validation rows on its way.
fn validated(bench: &mut Bench, evaluate_every: u64, patience: u32) -> Task {
    let pair = |i: usize, bias: f32| {
        let (instruction, response) = (format!("fig {i}"), "pear");
        let label = echo_score(&tokenizer("bert"), &instruction, response, bias);
        json!({ "instruction": instruction, "response": response, "label": label })
    };
    let train: Vec<Value> = (0..8).map(|i| pair(i, 0.9)).collect();
    let validation: Vec<Value> = (8..13).map(|i| pair(i, 0.3)).collect();
    Task::Train(v1::TrainTask {
        scorer: bench.model("bert", 0.0),
        examples: bench.put(&train),
        validation: bench.put(&validation),
        settings: Some(v1::FineTuning {
            learning_rate: 0.07,
            train_size: 80,
            warmup: 0.0,
            evaluate_every,
            patience,
            ..fine_tuning()
        }),
    })
}

/// (update, loss) of each evaluation.
fn evaluations(report: &Value) -> Vec<(u64, f64)> {
    let all = report["evaluations"].as_array().unwrap().iter();
    all.map(|one| (one["update"].as_u64().unwrap(), one["loss"].as_f64().unwrap())).collect()
}

fn bias(done: &Done) -> f32 {
    let bytes = model_bytes(done);
    f32::from_le_bytes(bytes[bytes.len() - 4..].try_into().unwrap())
}

#[test]
fn the_best_evaluated_state_is_kept_and_patience_ends_the_run() {
    let mut bench = Bench::new(echo());
    let task = validated(&mut bench, 1, 3);
    let stopped = bench.run(task).unwrap();
    let report = &stopped.lines("training.json")[0];
    let seen = evaluations(report);
    let (best_update, best_loss) = *seen.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!((&report["best_update"], &report["stopped_early"]), (&best_update.into(), &true.into()));
    assert!((3..10).contains(&best_update), "{seen:?}");
    assert_eq!(seen.iter().map(|one| one.0).collect::<Vec<_>>(), (1..=best_update + 3).collect::<Vec<_>>());
    assert_eq!(report["updates"], best_update + 3);
    assert_eq!(report["losses"].as_array().unwrap().len() as u64, best_update + 3);
    assert_eq!(report["rows"], (best_update + 3) * 4);
    // The label is the score at a bias of 0.3, so the loss is the square of the distance from there.
    let error = f64::from(bias(&stopped)) - 0.3;
    assert!((error * error - best_loss).abs() < 1e-7, "{error} {best_loss}");
    // Scores and labels differ by a constant: they rank alike.
    assert_eq!(report["evaluations"][0]["spearman"], 1.0);

    // Without patience the run goes to its end; the last evaluation comes at the end whatever the interval.
    let task = validated(&mut bench, 8, 0);
    let whole = bench.run(task).unwrap();
    let report = &whole.lines("training.json")[0];
    assert_eq!(evaluations(report).iter().map(|one| one.0).collect::<Vec<_>>(), [8, 16, 20]);
    assert_eq!((&report["updates"], &report["stopped_early"]), (&20.into(), &false.into()));
    let without = |task| {
        let Task::Train(task) = task else { panic!() };
        Task::Train(v1::TrainTask { validation: Vec::new(), ..task })
    };
    let task = without(validated(&mut bench, 8, 3));
    let last = bench.run(task).unwrap();
    let report = &last.lines("training.json")[0];
    assert!(report.get("evaluations").is_none() && report.get("best_update").is_none(), "{report}");
    assert_ne!(bias(&last), bias(&whole));
}

/// Wherever it breaks off: before the best state, between the best state and the next checkpoint, and after it.
#[test]
fn a_validated_run_that_broke_off_ends_as_one_that_did_not() {
    let mut bench = Bench::new(echo());
    let task = validated(&mut bench, 1, 3);
    let straight = bench.run(task.clone()).unwrap();
    let updates = straight.lines("training.json")[0]["updates"].as_u64().unwrap();
    for update in 1..updates {
        let stopping = Arc::new(Stopping { inner: echo(), after: 2 * update + 1, calls: Default::default() });
        let broken = Bench { engine: engine(bench.dir.path(), stopping), ..bench };
        assert!(broken.run(task.clone()).is_err_and(|error| error.cancelled()));
        bench = Bench { engine: engine(broken.dir.path(), echo()), ..broken };
        let again = bench.run(task.clone()).unwrap();
        assert_eq!(model_bytes(&again), model_bytes(&straight), "stopped in update {}", update + 1);
        assert_eq!(again.lines("training.json"), straight.lines("training.json"));
    }
    assert!(fs::read_dir(bench.dir.path().join("checkpoints")).unwrap().next().is_none(), "cleaned up");
}

/// Is cancelled after so many micro-batches.
pub struct Stopping {
    pub inner: Arc<dyn Backend>,
    pub after: u64,
    pub calls: Arc<AtomicU64>,
}

struct StoppingTrainer(Box<dyn Trainer>, u64, Arc<AtomicU64>);

impl Trainer for StoppingTrainer {
    fn info(&self) -> ModelInfo {
        self.0.info()
    }
    fn accumulate(
        &mut self,
        batch: RaggedTokens<'_>,
        labels: &[f32],
        step: u64,
        control: &dyn Control,
    ) -> Result<f32, Failure> {
        if self.2.fetch_add(1, Ordering::Relaxed) == self.1 {
            return Err(Failure::cancelled("stopped"));
        }
        self.0.accumulate(batch, labels, step, control)
    }
    fn update(&mut self, learning_rate: f64) -> Result<f64, Failure> {
        self.0.update(learning_rate)
    }
    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        self.0.score(batch, control)
    }
    fn save_model(&mut self, dir: &str) -> Result<(), Failure> {
        self.0.save_model(dir)
    }
    fn save_checkpoint(&mut self, dir: &str) -> Result<(), Failure> {
        assert!(Path::new(dir).is_dir());
        self.0.save_checkpoint(dir)
    }
    fn load_checkpoint(&mut self, dir: &str) -> Result<(), Failure> {
        self.0.load_checkpoint(dir)
    }
}

impl Backend for Stopping {
    fn describe(&self) -> Descriptor {
        self.inner.describe()
    }
    fn load_scorer(&self, request: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
        self.inner.load_scorer(request)
    }
    fn load_generator(&self, request: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
        self.inner.load_generator(request)
    }
    fn load_trainer(&self, request: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
        let trainer = self.inner.load_trainer(request)?;
        Ok(Box::new(StoppingTrainer(trainer, self.after, Arc::clone(&self.calls))))
    }
}
