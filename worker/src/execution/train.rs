//! Fine-tunes the scorer on labelled pairs: data order, batching and the schedule are decided here, the backend does
//! the numbers. With validation rows, the best state that was evaluated is what is kept. A run that broke off goes on
//! from its last checkpoint on this worker, bit for bit, evaluations and best state included.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use cappy_plugin_abi::{
    Control as _, Failure, GroupKind, TokenRows, Trainer, TrainerOptions,
    random::{fold, mix},
};
use cappy_proto::v1;
use serde::Serialize;

use super::{
    Attempt, ExecutionError, Outcome,
    examples::Examples,
    schedule::{Plan, Schedule, learning_rate},
    validation::{Evaluation, Validation, exhausted},
};
use crate::{
    checkpoint::{Checkpoints, Run, RunState},
    engine::{Choice, Engine},
    group::{Gang, Introduction, Seat},
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
    #[serde(flatten)]
    validation: Option<ValidationReport<'a>>,
}

/// Of a run with validation rows.
#[derive(Serialize)]
struct ValidationReport<'a> {
    evaluations: &'a [Evaluation],
    best_update: u64,
    stopped_early: bool,
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
    let mut examples = Examples::open(attempt.files(&task.examples)?)?;
    if examples.len() == 0 {
        return Err(ExecutionError::permanent("invalid_argument", "there are no examples to train on"));
    }
    let order = order_of(examples.len(), &settings);
    let plan = Plan::new(
        examples.len(),
        settings.train_size,
        settings.batch_size.into(),
        settings.accumulate.into(),
    );
    let schedule = Schedule::from(settings.schedule());
    let mut validation =
        Validation::open(attempt.files(&task.validation)?, settings.evaluate_every, plan.updates)?;

    attempt.progress.set(0, plan.updates, "loading the scorer");
    let model = engine.locate_scorer(task.scorer.as_ref(), attempt)?;
    let tokenizer = model.tokenizer()?;
    let _memory = engine.residency.reserve(model.weight_bytes * COPIES_OF_WEIGHTS, attempt.progress)?;
    let (ranks, seat) = match attempt.gang(GroupKind::Data)? {
        None => (None, None),
        Some(gang) => {
            let (ranks, seat) = Ranks::meet(engine, &model, (task, &settings), choice, attempt, gang)?;
            (Some(ranks), Some(seat))
        }
    };
    let leads = ranks.as_ref().is_none_or(|ranks| ranks.rank == 0);
    let options = TrainerOptions {
        dropout: settings.dropout,
        seed: settings.seed,
        micro_batches: if ranks.is_some() { plan.accumulate } else { 0 },
        ..TrainerOptions::default()
    };
    let (backend, mut trainer) = engine.load_trainer(&model, choice, options.clone(), seat)?;
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

    let (run, mut state) = match ranks {
        None => {
            let key = run_key(task, &settings, &model.fingerprint, &backend, 1);
            let run = engine.checkpoints.run(&key, attempt.scratch);
            let mut refused = false;
            let resumed = run.load(&mut |dir| trainer.load_checkpoint(dir).inspect_err(|_| refused = true));
            if resumed.is_none() && refused {
                // A checkpoint that was refused halfway may have left its mark.
                drop(trainer);
                (_, trainer) = engine.load_trainer(&model, choice, options, None)?;
            }
            (run, resumed.unwrap_or_default())
        }
        Some(ranks) => ranks.resume(trainer.as_mut())?,
    };
    if state.updates > 0 {
        tracing::info!(update = state.updates, "training goes on from a checkpoint");
    }
    let is_over = |state: &RunState| {
        state.updates >= plan.updates || (leads && exhausted(&state.evaluations, settings.patience))
    };
    while !is_over(&state) {
        let k = state.updates;
        let mut loss_sum = 0.0;
        for micro in (k * plan.accumulate)..((k + 1) * plan.accumulate) {
            let batch = micro_batch(&mut examples, &order, &plan, micro, &tokenizer, max_tokens)?;
            let loss = trainer.accumulate(batch.rows.view(), &batch.labels, micro, attempt.progress)?;
            if !loss.is_finite() {
                let message = format!("the loss of update {} is {loss}: lower the learning rate", k + 1);
                return Err(ExecutionError::attempt("not_finite", message));
            }
            loss_sum += f64::from(loss);
            state.tokens += batch.rows.tokens.len() as u64;
            state.truncated_rows += batch.truncated;
            if attempt.progress.cancelled() {
                return Err(Failure::cancelled("training was cancelled").into());
            }
        }
        let rate = learning_rate(schedule, settings.learning_rate, settings.warmup, &plan, k);
        trainer.update(rate)?;
        state.updates += 1;
        state.losses.push(loss_sum / plan.accumulate as f64);
        state.learning_rates.push(rate);
        let mut activity =
            format!("update {} of {}, loss {:.3}", state.updates, plan.updates, state.losses[k as usize]);
        if let Some(validation) = validation.as_mut().filter(|validation| validation.is_due(state.updates)) {
            let told = format!("evaluating after update {} of {}", state.updates, plan.updates);
            attempt.progress.set(state.updates, plan.updates, &told);
            let (trainer, budget) = (trainer.as_mut(), engine.budgets.score);
            let evaluation = validation.evaluate(
                state.updates,
                trainer,
                &tokenizer,
                max_tokens,
                budget,
                attempt.progress,
            )?;
            activity.push_str(&format!(", validation loss {:.3}", evaluation.loss));
            state.evaluations.push(evaluation);
            // The last state needs no copy: the trainer holds it.
            if state.best_update() == Some(state.updates) && !is_over(&state) {
                run.keep_best(state.updates, &mut |dir| trainer.save_model(dir))
                    .map_err(|error| ExecutionError::disk("keep the best state", &error))?;
            }
        }
        attempt.progress.set(state.updates, plan.updates, &activity);
        if !is_over(&state) {
            run.save_if_due(&state, &mut |dir| trainer.save_checkpoint(dir));
        }
    }

    if !leads {
        run.finish();
        return Ok(Outcome { follows: true, ..Outcome::default() });
    }
    attempt.progress.set(plan.updates, plan.updates, "writing the model");
    let rows = plan.micro_batch(state.updates * plan.accumulate - 1).end;
    let best_update = state.best_update();
    let report = TrainingReport {
        updates: state.updates,
        losses: &state.losses,
        learning_rates: &state.learning_rates,
        rows,
        examples: examples.len(),
        truncated_rows: state.truncated_rows,
        schedule,
        validation: best_update.map(|best_update| ValidationReport {
            evaluations: &state.evaluations,
            best_update,
            stopped_early: state.updates < plan.updates,
        }),
    };
    let best = best_update.filter(|&best| best != state.updates).map(|best| run.best(best));
    let outputs = write_outputs(attempt.scratch, &model, trainer.as_mut(), best.as_deref(), &report)?;
    run.finish();
    let stats = v1::ShardStats {
        rows,
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

/// The other ranks of a training run, met.
///
/// All ranks evaluate, keep their best states and write checkpoints: they are the same everywhere, so whichever rank is
/// lost, the others have what is needed to go on, and no rank waits long for another. Rank 0 alone decides that the run
/// ends early and hands the model in: the others go on until they are told, so that they need not come to the same
/// decision to the last bit.
struct Ranks<'a> {
    run: Checkpoints<'a>,
    rank: u32,
    /// What rank 0 goes on from.
    checkpoint: Option<(u64, String)>,
}

impl<'a> Ranks<'a> {
    fn meet(
        engine: &'a Engine,
        model: &LocalModel,
        (task, settings): (&v1::TrainTask, &v1::FineTuning),
        choice: Choice<'_>,
        attempt: &Attempt<'_>,
        gang: Gang<'_>,
    ) -> Result<(Self, Seat), ExecutionError> {
        let (name, label) = engine.group_trainer(model, choice)?;
        let key = run_key(task, settings, &model.fingerprint, &label, gang.world);
        let run = engine.checkpoints.run(&key, attempt.scratch);
        let newest = run.newest().map(|state| Ok((state.updates, serde_json::to_string(&state)?)));
        let checkpoint = newest.transpose().map_err(|error: serde_json::Error| {
            ExecutionError::internal(format!("cannot write a run's state: {error}"))
        })?;
        attempt.progress.say("meeting the other workers");
        let met = gang.meet.meet(&Introduction {
            model_fingerprint: model.fingerprint.clone(),
            backend: name,
            checkpoint,
            resident: None,
        })?;
        Ok((Self { run, rank: met.seat.rank(), checkpoint: met.checkpoint }, met.seat))
    }

    /// Rank 0 loads its checkpoint; the others get the state with the first micro-batch.
    fn resume(self, trainer: &mut dyn Trainer) -> Result<(Checkpoints<'a>, RunState), ExecutionError> {
        let Some((updates, state)) = self.checkpoint else { return Ok((self.run, RunState::default())) };
        let state: RunState = serde_json::from_str(&state)
            .map_err(|error| ExecutionError::internal(format!("rank 0's state cannot be read: {error}")))?;
        if self.rank == 0 {
            let loaded = self.run.load_agreed(updates, &mut |dir| trainer.load_checkpoint(dir));
            // The next attempt does without it.
            loaded.map_err(|failure| ExecutionError::infrastructure("checkpoint", failure.message))?;
        }
        Ok((self.run, state))
    }
}

/// What must be equal for a checkpoint to be of the same run.
fn run_key(
    task: &v1::TrainTask,
    settings: &v1::FineTuning,
    fingerprint: &str,
    backend: &str,
    world: u32,
) -> Run {
    let ids = |artifacts: &[v1::Artifact]| {
        artifacts.iter().map(|artifact| artifact.id.as_str()).collect::<Vec<_>>().join(",")
    };
    let (examples, validation, settings) =
        (ids(&task.examples), ids(&task.validation), format!("{settings:?}"));
    let ranks = format!("{world} ranks");
    let mut parts = vec![fingerprint, backend, &examples, &validation, &settings];
    if world > 1 {
        parts.push(&ranks);
    }
    Run::of(&parts)
}

/// The trainer's weights, or those of an earlier state where `best` has them.
fn write_outputs(
    scratch: &Path,
    model: &LocalModel,
    trainer: &mut dyn Trainer,
    best: Option<&Path>,
    report: &TrainingReport<'_>,
) -> Result<Vec<(String, PathBuf)>, ExecutionError> {
    let written = |error| ExecutionError::disk("write the fine-tuned model", &error);
    let dir = scratch.join("model");
    fs::create_dir(&dir).map_err(written)?;
    match best {
        None => trainer.save_model(&dir.to_string_lossy())?,
        Some(best) => {
            for entry in fs::read_dir(best).map_err(written)? {
                let entry = entry.map_err(written)?;
                let target = dir.join(entry.file_name());
                fs::hard_link(entry.path(), &target)
                    .or_else(|_| fs::copy(entry.path(), &target).map(drop))
                    .map_err(written)?;
            }
        }
    }
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

/// Examples in the order in which they are trained on.
fn order_of(examples: u64, settings: &v1::FineTuning) -> Vec<u64> {
    let mut order: Vec<u64> = (0..examples).collect();
    if settings.order() == v1::RowOrder::Shuffled {
        order.sort_by_cached_key(|&index| fold(mix(settings.seed), index));
    }
    order
}

struct MicroBatch {
    rows: TokenRows,
    labels: Vec<f32>,
    truncated: u64,
}

fn micro_batch(
    examples: &mut Examples,
    order: &[u64],
    plan: &Plan,
    micro: u64,
    tokenizer: &ModelTokenizer,
    max_tokens: usize,
) -> Result<MicroBatch, ExecutionError> {
    let mut batch = MicroBatch { rows: TokenRows::new(), labels: Vec::new(), truncated: 0 };
    for position in plan.micro_batch(micro) {
        let index = order[(position % examples.len()) as usize];
        let (row, label) = examples.encoded(index, tokenizer, max_tokens)?;
        // Each example counts once, however often it comes round.
        batch.truncated += u64::from(row.truncated && position < examples.len());
        batch.rows.push(&row.ids);
        batch.rows.type_ids.extend_from_slice(&row.type_ids);
        batch.labels.push(label);
    }
    Ok(batch)
}
