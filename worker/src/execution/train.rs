//! Fine-tunes the scorer on labelled pairs: data order, batching and the schedule are decided here, the backend does
//! the numbers. A run that broke off goes on from its last checkpoint on this worker, bit for bit.

use std::{fs, path::Path, time::Instant};

use cappy_plugin_abi::{
    Control as _, TokenRows, Trainer, TrainerOptions,
    random::{fold, mix},
};
use cappy_proto::v1;
use serde::Serialize;

use super::{
    Attempt, ExecutionError, Outcome,
    rows::{Place, RowFiles, RowReader, bad_row, parse, text},
    schedule::{Plan, Schedule, learning_rate},
};
use crate::{
    checkpoint::Run,
    engine::{Choice, Engine},
    models::LocalModel,
    tokenization::ModelTokenizer,
};

/// Of the seed, where the task says nothing.
const DEFAULT_BATCH: u32 = 8;
/// Of the seed, where the task says nothing.
const DEFAULT_ACCUMULATE: u32 = 16;
/// Of the seed, where the task says nothing.
const DEFAULT_MAX_TOKENS: u32 = 512;

/// Weights, gradients and two moments, all f32.
const COPIES_OF_WEIGHTS: u64 = 4;

/// Files of a model directory that the fine-tuned model has in common with the one it came from.
const SHARED_FILES: [&str; 4] =
    ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

/// Without times: the same run gives the same bytes on any machine. How long it took is in the shard's statistics.
#[derive(Serialize)]
struct TrainingReport<'a> {
    updates: u64,
    losses: &'a [f64],
    learning_rates: &'a [f64],
    rows: u64,
    examples: u64,
    truncated_rows: u64,
    schedule: Schedule,
}

pub fn run(
    engine: &Engine,
    task: &v1::TrainTask,
    choice: Choice<'_>,
    attempt: &Attempt<'_>,
) -> Result<Outcome, ExecutionError> {
    let started = Instant::now();
    let settings = checked(task.settings.unwrap_or_default())?;
    attempt.progress.set(0, 0, "reading the examples");
    let mut examples = Examples::open(attempt.files(&task.examples)?, &settings)?;
    let plan = Plan::new(
        examples.places.len() as u64,
        settings.train_size,
        settings.batch_size.into(),
        settings.accumulate.into(),
    );
    let schedule = Schedule::from(settings.schedule());

    attempt.progress.set(0, plan.updates, "loading the scorer");
    let model = engine.locate_scorer(task.scorer.as_ref(), attempt)?;
    let tokenizer = model.tokenizer()?;
    let _memory = engine.residency.reserve(model.weight_bytes * COPIES_OF_WEIGHTS, attempt.progress)?;
    let options =
        TrainerOptions { dropout: settings.dropout, seed: settings.seed, ..TrainerOptions::default() };
    let (backend, mut trainer) = engine.load_trainer(&model, choice, &options)?;
    let info = trainer.info();
    if info.labels != 1 {
        let message =
            format!("a scorer with one label is needed; `{}` has {}", info.architecture, info.labels);
        return Err(ExecutionError::permanent("unsupported", message));
    }
    let max_tokens = match info.max_tokens {
        0 => settings.max_tokens,
        most => settings.max_tokens.min(most),
    } as usize;

    let run = engine.checkpoints.run(&run_key(task, &settings, &model.fingerprint, &backend));
    let mut refused = false;
    let resumed = run.load(&mut |dir| trainer.load_checkpoint(dir).inspect_err(|_| refused = true));
    if let Some(state) = &resumed {
        tracing::info!(update = state.updates, "training goes on from a checkpoint");
    } else if refused {
        // A checkpoint that was refused halfway may have left its mark.
        drop(trainer);
        (_, trainer) = engine.load_trainer(&model, choice, &options)?;
    }
    let mut state = resumed.unwrap_or_default();
    while state.updates < plan.updates {
        let k = state.updates;
        let mut loss_sum = 0.0;
        for micro in (k * plan.accumulate)..((k + 1) * plan.accumulate) {
            let batch = examples.batch(&plan, micro, &tokenizer, max_tokens)?;
            let loss = trainer.accumulate(batch.rows.view(), &batch.labels, micro, attempt.progress)?;
            if !loss.is_finite() {
                let message = format!("the loss of update {} is {loss}: lower the learning rate", k + 1);
                return Err(ExecutionError::attempt("not_finite", message));
            }
            loss_sum += f64::from(loss);
            state.tokens += batch.rows.tokens.len() as u64;
            state.truncated_rows += batch.truncated;
            if attempt.progress.cancelled() {
                return Err(cappy_plugin_abi::Failure::cancelled("training was cancelled").into());
            }
        }
        let rate = learning_rate(schedule, settings.learning_rate, settings.warmup, &plan, k);
        trainer.update(rate)?;
        state.updates += 1;
        state.losses.push(loss_sum / plan.accumulate as f64);
        state.learning_rates.push(rate);
        let loss = state.losses[k as usize];
        attempt.progress.set(
            state.updates,
            plan.updates,
            &format!("update {} of {}, loss {loss:.3}", state.updates, plan.updates),
        );
        if state.updates < plan.updates {
            run.save_if_due(&state, &mut |dir| trainer.save_checkpoint(dir));
        }
    }

    attempt.progress.set(plan.updates, plan.updates, "writing the model");
    let report = TrainingReport {
        updates: plan.updates,
        losses: &state.losses,
        learning_rates: &state.learning_rates,
        rows: plan.rows,
        examples: examples.places.len() as u64,
        truncated_rows: state.truncated_rows,
        schedule,
    };
    let outputs = write_outputs(attempt.scratch, &model, trainer.as_mut(), &report)?;
    run.finish();
    let stats = v1::ShardStats {
        rows: plan.rows,
        tokens: state.tokens,
        truncated_rows: state.truncated_rows,
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok(Outcome { outputs, stats, ..Outcome::default() })
}

fn checked(mut settings: v1::FineTuning) -> Result<v1::FineTuning, ExecutionError> {
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    settings.batch_size = or(settings.batch_size, DEFAULT_BATCH);
    settings.accumulate = or(settings.accumulate, DEFAULT_ACCUMULATE);
    settings.max_tokens = or(settings.max_tokens, DEFAULT_MAX_TOKENS);
    let wrong = |what: &str| Err(ExecutionError::permanent("invalid_argument", what));
    if !(settings.learning_rate.is_finite() && settings.learning_rate >= 0.0) {
        return wrong("`fine_tuning.learning_rate` must be 0 or greater");
    }
    if !(0.0..=1.0).contains(&settings.warmup) {
        return wrong("`fine_tuning.warmup` must be 0 to 1");
    }
    if !(0.0..1.0).contains(&settings.dropout) {
        return wrong("`fine_tuning.dropout` must be at least 0 and below 1");
    }
    Ok(settings)
}

/// What must be equal for a checkpoint to be of the same run.
fn run_key(task: &v1::TrainTask, settings: &v1::FineTuning, fingerprint: &str, backend: &str) -> Run {
    let ids: Vec<&str> = task.examples.iter().map(|artifact| artifact.id.as_str()).collect();
    Run::of(&[fingerprint, backend, &ids.join(","), &format!("{settings:?}")])
}

fn write_outputs(
    scratch: &Path,
    model: &LocalModel,
    trainer: &mut dyn Trainer,
    report: &TrainingReport<'_>,
) -> Result<Vec<(String, std::path::PathBuf)>, ExecutionError> {
    let written = |error| ExecutionError::disk("write the fine-tuned model", &error);
    let dir = scratch.join("model");
    fs::create_dir(&dir).map_err(written)?;
    trainer.save_model(&dir.to_string_lossy())?;
    for name in SHARED_FILES {
        let source = model.dir.join(name);
        if source.exists() {
            fs::copy(source, dir.join(name)).map_err(written)?;
        }
    }
    fs::write(dir.join("training.json"), serde_json::to_vec(report).map_err(|error| written(error.into()))?)
        .map_err(written)?;
    let mut outputs = Vec::new();
    for entry in fs::read_dir(&dir).map_err(written)? {
        let entry = entry.map_err(written)?;
        outputs.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    outputs.sort();
    Ok(outputs)
}

/// The labelled pairs, read from disk as they are needed: memory holds their places only.
struct Examples {
    files: RowFiles,
    places: Vec<Place>,
    /// Index of the example at each place, for messages.
    indices: Vec<u64>,
}

struct Batch {
    rows: TokenRows,
    labels: Vec<f32>,
    truncated: u64,
}

impl Examples {
    /// Checks every row, so that a wrong one is told before hours of training.
    fn open(paths: Vec<std::path::PathBuf>, settings: &v1::FineTuning) -> Result<Self, ExecutionError> {
        let files = RowFiles::open(&paths)?;
        let mut reader = RowReader::new(paths);
        let mut places = Vec::new();
        while let Some((index, place, line)) = reader.next_line()? {
            read_example(index, &line)?;
            places.push(place);
        }
        if places.is_empty() {
            return Err(ExecutionError::permanent("invalid_argument", "there are no examples to train on"));
        }
        let mut indices: Vec<u64> = (0..places.len() as u64).collect();
        if settings.order() == v1::RowOrder::Shuffled {
            indices.sort_by_cached_key(|&index| fold(mix(settings.seed), index));
            places = indices.iter().map(|&index| places[index as usize]).collect();
        }
        Ok(Self { files, places, indices })
    }

    fn batch(
        &mut self,
        plan: &Plan,
        micro: u64,
        tokenizer: &ModelTokenizer,
        max_tokens: usize,
    ) -> Result<Batch, ExecutionError> {
        let examples = self.places.len() as u64;
        let mut batch = Batch { rows: TokenRows::new(), labels: Vec::new(), truncated: 0 };
        for position in plan.micro_batch(micro) {
            let at = (position % examples) as usize;
            let index = self.indices[at];
            let (instruction, response, label) = read_example(index, &self.files.line(self.places[at])?)?;
            let row = tokenizer
                .side(&instruction)
                .and_then(|first| tokenizer.pair(&first, &tokenizer.side(&response)?, max_tokens))
                .map_err(|error| bad_row(index, error))?;
            // Each example counts once, however often it comes round.
            batch.truncated += u64::from(row.truncated && position < examples);
            batch.rows.push(&row.ids);
            batch.rows.type_ids.extend_from_slice(&row.type_ids);
            batch.labels.push(label);
        }
        Ok(batch)
    }
}

fn read_example(index: u64, line: &[u8]) -> Result<(String, String, f32), ExecutionError> {
    let row = parse(index, line)?;
    let label = match row.get("label").map(serde_json::Value::as_f64) {
        Some(Some(label)) if (label as f32).is_finite() => label as f32,
        Some(_) => return Err(bad_row(index, "`label` is not a number")),
        None => return Err(bad_row(index, "`label` is missing")),
    };
    let [instruction, response] =
        ["instruction", "response"].map(|field| text(index, &row, field).map(str::to_owned));
    Ok((instruction?, response?, label))
}
