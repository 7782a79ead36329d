//! `submit pretrain`: a scorer, trained on a mixture that a recipe describes.

use std::path::{Path, PathBuf};

use cappy_demo::Settings;
use cappy_eval::pretraining::{Mixture, Note, Recipe, SourceCounts, Training};
use cappy_proto::v1::{FineTuning, PretrainSpec, RowFile, job_spec::Kind};
use clap::Args;

use super::{
    fine_tuning::{SEED_SETTINGS, schedule_named},
    row_store,
    submit::Submission,
};
use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    defaults::GenerationFlags,
    failure::{Context as _, Failure, Outcome},
    groups::DataParallel,
    line_input::explain,
    printer::Printer,
    transfer,
};

/// What of a source cannot be used is named this often; more is only counted.
const NAMED_BAD: u64 = 20;

/// What `--help` says behind the options.
const HELP: &str = "\
     A recipe (TOML) names datasets with their PromptSource templates, files of labelled rows, generators, and how to \
     train. Ground truth is 1, wrong choices and answers to other questions are 0, answers of the generators are as \
     right as their ROUGE-L with the ground truth says. The mixture is made on this machine, the same from the same \
     recipe and sources, and the scorer trained on the cluster; a run that broke off goes on from its checkpoint. The \
     result is a new model, mdl_..., as of `submit adapt`.\n\
     \n\
     recipes/small.toml is a recipe that runs in a minute, recipes/cappy.toml the paper's mixture as far as it is \
     documented.\n\
     \n\
     Examples:\n\
     \x20 cappy-client submit pretrain --recipe recipes/small.toml\n\
     \x20 cappy-client submit pretrain --recipe recipes/small.toml --mixture mixture --detach";

/// Arguments of `submit pretrain`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub struct Pretrain {
    /// What to mix and how to train
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// Scorer to start from, instead of the recipe's: a directory, a hub id, a short name or an adapted one (mdl_...)
    #[arg(long, value_name = "MODEL")]
    scorer: Option<String>,
    /// Keep the mixture's files in this folder [default: they are made in a temporary one]
    #[arg(long, value_name = "DIR")]
    mixture: Option<PathBuf>,
    /// Do not train if anything of the sources cannot be used
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    parallel: DataParallel,
    #[command(flatten)]
    submission: Submission,
}

impl Pretrain {
    /// Makes the mixture, uploads it, submits, follows.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let recipe =
            Recipe::read(&self.recipe).map_err(|error| Failure::failed(one_line(&explain(&error))))?;
        let scorer = self.scorer.or_else(|| recipe.scorer.clone()).ok_or_else(|| {
            Failure::usage("which scorer to start from? give --scorer MODEL, or `scorer` in the recipe")
        })?;
        let fine_tuning = fine_tuning(&recipe.training, recipe.seed)
            .map_err(|reason| Failure::usage(format!("{}: [training]: {reason}", self.recipe.display())))?;
        let prompts = &recipe.prompts;
        let generation = GenerationFlags::of(prompts.decodings.clone(), prompts.num_samples)
            .settings(recipe.seed)
            .map_err(|reason| Failure::usage(format!("{}: [prompts]: {reason}", self.recipe.display())))?;
        let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
        let folder = self.mixture.unwrap_or_else(|| scratch.path().to_owned());
        let mixture = mix(recipe.clone(), folder, self.strict, printer).await?;
        printer.note(format!(
            "mixture: {} examples, {} held out, {} prompts; {} duplicates left out",
            mixture.example_rows, mixture.validation_rows, mixture.prompt_rows, mixture.duplicates
        ));

        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let data_parallel = self.parallel.on(&cluster)?;
        let name = row_store::name_of(Path::new(&recipe.name));
        let examples = stored(&cluster, &name, &mixture.examples, mixture.example_rows, printer).await?;
        let validation = match &mixture.validation {
            None => None,
            Some(path) => Some(stored(&cluster, "validation", path, mixture.validation_rows, printer).await?),
        };
        let prompts = match &mixture.prompts {
            None => None,
            Some(path) => Some(stored(&cluster, "prompts", path, mixture.prompt_rows, printer).await?),
        };
        let spec = PretrainSpec {
            scorer,
            examples: Some(examples),
            models: if prompts.is_some() { recipe.prompts.models } else { Vec::new() },
            generation: prompts.is_some().then_some(generation),
            prompts,
            validation,
            fine_tuning: Some(fine_tuning),
            backend: global.backend_name(),
            dtype: global.dtype_name(),
            data_parallel,
        };
        self.submission.hand_in(Kind::Pretrain(spec), mixture.bad, cluster, global, printer).await
    }
}

/// A TOML error draws the place that it names; here the words are enough.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.lines().filter(|line| !line.contains(" |")).map(str::trim_end).collect();
    words.join(": ")
}

/// Makes the mixture in `folder`, telling what each source gave.
async fn mix(recipe: Recipe, folder: PathBuf, strict: bool, printer: &Printer) -> Outcome<Mixture> {
    let printer = *printer;
    let mixing = move || {
        let mut bad = 0;
        let mut first = None;
        let made = recipe.write(&folder, &mut |note| match note {
            Note::Source(counts) => printer.note(source_line(counts)),
            Note::Bad(line) => {
                bad += 1;
                if bad <= NAMED_BAD {
                    printer.warning(&line);
                }
                first.get_or_insert_with(|| line.to_string());
            }
        });
        let mixture = made.map_err(|error| Failure::failed(explain(&error)))?;
        match first {
            Some(first) if strict => Err(Failure::failed(first)),
            _ => Ok(mixture),
        }
    };
    // Rendering computes and reads for long.
    tokio::task::spawn_blocking(mixing).await.map_err(Failure::failed)?
}

fn source_line(counts: &SourceCounts) -> String {
    let parts = [
        (counts.right, "right"),
        (counts.wrong_choices, "wrong choices"),
        (counts.mismatched, "mismatched"),
        (counts.labelled, "labelled"),
        (counts.prompts, "prompts"),
        (counts.bad, "unusable"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    format!("  {}: {}", counts.source, parts.collect::<Vec<_>>().join(", "))
}

async fn stored(
    cluster: &Cluster,
    name: &str,
    path: &Path,
    rows: u64,
    printer: &Printer,
) -> Outcome<RowFile> {
    let artifact = transfer::upload(cluster, path, name, printer).await?;
    Ok(RowFile { name: name.to_owned(), artifact: Some(artifact), rows })
}

/// What the recipe leaves out is the seed's; each example is seen once unless it says how many updates.
fn fine_tuning(training: &Training, seed: u64) -> Result<FineTuning, String> {
    let share = |name: &str, value: f64| match (0.0..=1.0).contains(&value) {
        true => Ok(value),
        false => Err(format!("{name} is {value}, not in [0, 1]")),
    };
    let at_least_one = |name: &str, value: u32| match value {
        0 => Err(format!("{name} must be at least 1")),
        value => Ok(value),
    };
    let Settings { learning_rate, batch_size, accumulate, warmup, dropout, schedule, .. } = SEED_SETTINGS;
    let learning_rate = training.learning_rate.unwrap_or(learning_rate);
    if !(learning_rate.is_finite() && learning_rate > 0.0) {
        return Err(format!("learning_rate is {learning_rate}, not a number above 0"));
    }
    let batch_size = at_least_one("batch_size", training.batch_size.unwrap_or(batch_size))?;
    let accumulate = at_least_one("accumulate", training.accumulate.unwrap_or(accumulate))?;
    let updates = training.updates.map(|updates| at_least_one("updates", updates)).transpose()?;
    let schedule = training.schedule.as_deref().unwrap_or(schedule);
    Ok(FineTuning {
        learning_rate,
        batch_size,
        accumulate,
        train_size: updates
            .map_or(0, |updates| u64::from(updates) * u64::from(batch_size) * u64::from(accumulate)),
        warmup: share("warmup", training.warmup.unwrap_or(warmup))?,
        schedule: schedule_named(schedule)
            .ok_or_else(|| format!("schedule is `{schedule}`, neither upstream nor corrected"))?
            .into(),
        dropout: share("dropout", training.dropout.unwrap_or(dropout))?,
        // The mixture is shuffled already, by a key of its own.
        order: cappy_proto::v1::RowOrder::Shuffled.into(),
        seed,
        max_tokens: crate::defaults::MAX_PAIR_TOKENS,
        evaluate_every: training.evaluate_every.unwrap_or(0).into(),
        patience: training.patience.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_error_is_one_line() {
        let error = Recipe::parse("r.toml", "flavour = 7\n", PathBuf::new()).unwrap_err();
        let told = one_line(&explain(&error));
        assert!(told.starts_with("r.toml is not a recipe: ") && told.contains("line 1"), "{told}");
        assert!(told.contains("unknown field `flavour`") && !told.contains(['\n', '|']), "{told}");
    }

    #[test]
    fn what_a_recipe_says_of_training_is_checked() {
        let seed = fine_tuning(&Training::default(), 3).unwrap();
        assert_eq!((seed.batch_size, seed.accumulate, seed.train_size, seed.seed), (8, 16, 0, 3));
        let own = Training {
            updates: Some(10),
            batch_size: Some(4),
            accumulate: Some(2),
            schedule: Some("corrected".into()),
            ..Training::default()
        };
        let own = fine_tuning(&own, 3).unwrap();
        assert_eq!((own.train_size, own.schedule()), (80, cappy_proto::v1::Schedule::Corrected));
        for (training, words) in [
            (Training { learning_rate: Some(f64::NAN), ..Training::default() }, "learning_rate"),
            (Training { batch_size: Some(0), ..Training::default() }, "batch_size"),
            (Training { dropout: Some(1.5), ..Training::default() }, "dropout"),
            (Training { schedule: Some("cosine".into()), ..Training::default() }, "`cosine`"),
            (Training { updates: Some(0), ..Training::default() }, "updates"),
        ] {
            assert!(fine_tuning(&training, 3).unwrap_err().contains(words), "{training:?}");
        }
    }
}
