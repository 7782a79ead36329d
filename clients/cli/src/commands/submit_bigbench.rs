//! `submit bigbench`: the whole pipeline for one generator.

use std::path::{Path, PathBuf};

use cappy_eval::{
    bigbench::{self, Split},
    rows::{GeneratedRow, JsonLines, JsonLinesWriter, JsonStyle, ReadError, Row},
};
use cappy_process::exit::Code;
use cappy_proto::v1::{
    Artifact, BigbenchSpec, BigbenchSubset, FineTuning, JobSpec, RowOrder, Schedule, job_spec::Kind,
};
use clap::{Args, ValueEnum};

use super::{demo_data, submit::Submission};
use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    defaults::{self, GenerationFlags},
    failure::{Context as _, Failure, Outcome},
    line_input::explain,
    printer::Printer,
    transfer,
};

/// Where benchmark data is looked for unless told otherwise; the seed's name for it.
const DEFAULT_DATA: &str = "bigbench_data";
/// Bad rows of one file that are named; more are only counted.
const NAMED_BAD_ROWS: u64 = 20;

/// Arguments of `submit bigbench`.
///
/// For each subset: the generator answers every row 17 times (or its answers are imported), ROUGE-L labels the train
/// answers, the scorer is fine-tuned on them and picks one answer of each validation row. The table compares its
/// choice with beam search, the sampling decodings, self-score and the oracle. Finished stages of earlier jobs with
/// the same inputs and settings are reused.
#[derive(Debug, Args)]
pub struct Bigbench {
    /// Generator: a directory, a hub id or a short name (flan-t5-{small,base,large,xl,xxl}, demo)
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Scorer: a directory, a hub id or a short name [default: cappy-large; with --model demo: demo]
    #[arg(long, value_name = "MODEL")]
    scorer: Option<String>,
    /// Benchmark data made by `data bigbench` [default: ./bigbench_data; with --model demo: the demo benchmark]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Only this subset; may be given several times
    #[arg(long = "subset", value_name = "NAME")]
    subsets: Vec<String>,
    /// Use these generations (DIR/<model>/<subset>_{train,validation}.jsonl) instead of generating
    #[arg(long, value_name = "DIR", conflicts_with_all = ["decodings", "num_samples"])]
    generations: Option<PathBuf>,
    #[command(flatten)]
    generation: GenerationFlags,
    #[command(flatten)]
    fine_tuning: FineTuningFlags,
    /// Randomness key of sampling, training-set construction, data order and dropout
    #[arg(long, default_value_t = defaults::SEED)]
    seed: u64,
    /// Stop if a data file has a bad row
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    submission: Submission,
}

/// How the scorer is fine-tuned; unset flags take the seed's values (with --model demo: the demo's own).
#[derive(Clone, Debug, Args)]
pub struct FineTuningFlags {
    /// Rows seen per subset: the training set is repeated or cut to this [default: 102400]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    train_size: Option<u64>,
    /// Peak learning rate [default: 2e-5]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    learning_rate: Option<f64>,
    /// Rows a micro-batch [default: 8]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Micro-batches an update [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    accumulate: Option<u32>,
    /// Share of the updates spent warming up [default: 0.1]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    warmup: Option<f64>,
    /// Learning rates as the seed's run had them (never decaying), or as it meant them (warm-up, then linear decay)
    #[arg(long, value_enum, value_name = "NAME")]
    schedule: Option<ScheduleName>,
    /// Dropout probability [default: 0.1]
    #[arg(long, value_name = "P", value_parser = share)]
    dropout: Option<f64>,
}

/// See [`FineTuningFlags::schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScheduleName {
    /// The default: reproduces the seed.
    Upstream,
    /// Warm-up, then linear decay to 0.
    Corrected,
}

impl Bigbench {
    /// Uploads the data, submits, follows.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let demo = self.model == cappy_demo::MODEL_NAME;
        let generation = self.generation.settings(self.seed).map_err(Failure::usage)?;
        let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
        let data = match &self.data {
            Some(data) => data.clone(),
            None if demo => demo_data::write(scratch.path())?,
            None if Path::new(DEFAULT_DATA).is_dir() => DEFAULT_DATA.into(),
            None => {
                return Err(Failure::usage(
                    "no benchmark data: give --data DIR, made by `cappy-client data bigbench --source \
                     bigbench-1.0.0.tar.gz --output DIR` (or try --model demo, which brings its own)",
                ));
            }
        };
        let folder =
            bigbench::inspect(&data, &self.subsets).map_err(|error| Failure::failed(explain(&error)))?;
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let mut upload =
            SubsetUpload { cluster: &cluster, scratch: scratch.path(), printer, bad: 0, strict: self.strict };
        let mut subsets = Vec::with_capacity(folder.subsets.len());
        for files in &folder.subsets {
            let subset = match &self.generations {
                None => upload.rows(files).await?,
                Some(generations) => upload.generations(generations, &self.model, &files.subset).await?,
            };
            subsets.push(subset);
        }
        let bad = upload.bad;
        let spec = JobSpec {
            kind: Some(Kind::Bigbench(BigbenchSpec {
                model: self.model.clone(),
                scorer: self.scorer.unwrap_or_else(|| if demo { self.model } else { "cappy-large".into() }),
                subsets,
                generation: Some(generation),
                fine_tuning: Some(self.fine_tuning.settings(demo, self.seed)),
                backend: global.backend_name(),
                dtype: global.dtype_name(),
                ..BigbenchSpec::default()
            })),
            priority: 0,
        };
        match self.submission.hand_in(spec, cluster, global, printer).await? {
            Code::Done if bad > 0 => {
                printer.warning(format!("{bad} bad rows of the data were left out"));
                Ok(Code::Partial)
            }
            code => Ok(code),
        }
    }
}

impl FineTuningFlags {
    /// As the wire has it.
    pub fn settings(&self, demo: bool, seed: u64) -> FineTuning {
        let own = demo.then_some(cappy_demo::DEMO_SETTINGS);
        let schedule = self.schedule.unwrap_or(match own {
            Some(own) if own.schedule == "corrected" => ScheduleName::Corrected,
            _ => ScheduleName::Upstream,
        });
        FineTuning {
            learning_rate: self
                .learning_rate
                .unwrap_or(own.map_or(defaults::LEARNING_RATE, |own| own.learning_rate)),
            batch_size: self.batch_size.unwrap_or(own.map_or(defaults::BATCH_SIZE, |own| own.batch_size)),
            accumulate: self.accumulate.unwrap_or(own.map_or(defaults::ACCUMULATE, |own| own.accumulate)),
            train_size: self.train_size.unwrap_or(own.map_or(defaults::TRAIN_SIZE, |own| own.train_size)),
            warmup: self.warmup.unwrap_or(own.map_or(defaults::WARMUP, |own| own.warmup)),
            schedule: match schedule {
                ScheduleName::Upstream => Schedule::Upstream,
                ScheduleName::Corrected => Schedule::Corrected,
            }
            .into(),
            dropout: self.dropout.unwrap_or(own.map_or(defaults::DROPOUT, |own| own.dropout)),
            order: RowOrder::Shuffled.into(),
            seed,
            max_tokens: defaults::MAX_PAIR_TOKENS,
            ..FineTuning::default()
        }
    }
}

struct SubsetUpload<'a> {
    cluster: &'a Cluster,
    scratch: &'a Path,
    printer: &'a Printer,
    bad: u64,
    strict: bool,
}

impl SubsetUpload<'_> {
    async fn rows(&mut self, files: &bigbench::SubsetFiles) -> Outcome<BigbenchSubset> {
        let (train, train_rows) = self.file::<Row>(&files.train, |_| Ok(())).await?;
        let (validation, validation_rows) = self.file::<Row>(&files.validation, |_| Ok(())).await?;
        Ok(BigbenchSubset {
            name: files.subset.clone(),
            train: Some(train),
            validation: Some(validation),
            train_rows,
            validation_rows,
            generated: false,
        })
    }

    async fn generations(
        &mut self,
        generations: &Path,
        model: &str,
        subset: &str,
    ) -> Outcome<BigbenchSubset> {
        let own = generations.join(model.rsplit('/').next().unwrap_or(model));
        let folder = if own.is_dir() { own } else { generations.to_owned() };
        let path = |split| {
            bigbench::split_file(&folder, subset, split).ok_or_else(|| {
                Failure::failed(format!("`{}` has no generations {subset}_{split}.jsonl", folder.display()))
            })
        };
        let answered = |row: &GeneratedRow| match row.candidates().next() {
            Some(_) => Ok(()),
            None => Err("`flan_samples` holds no candidate".to_owned()),
        };
        let (train, train_rows) = self.file(&path(Split::Train)?, answered).await?;
        let (validation, validation_rows) = self.file(&path(Split::Validation)?, answered).await?;
        Ok(BigbenchSubset {
            name: subset.to_owned(),
            train: Some(train),
            validation: Some(validation),
            train_rows,
            validation_rows,
            generated: true,
        })
    }

    /// Stores the good rows of a file: the file itself when all are good and it is not packed.
    async fn file<T: serde::de::DeserializeOwned + serde::Serialize>(
        &mut self,
        path: &Path,
        check: impl Fn(&T) -> Result<(), String>,
    ) -> Outcome<(Artifact, u64)> {
        let copy = self.scratch.join("rows.jsonl");
        let mut writer =
            JsonLinesWriter::create(&copy, JsonStyle::Python).context("cannot write temporary rows")?;
        let mut bad = 0;
        for row in JsonLines::<T>::open(path).map_err(|error| Failure::failed(explain(&error)))? {
            let told = match row {
                Ok(row) => match check(&row.value) {
                    Ok(()) => {
                        writer.write(&row.value).context("cannot write temporary rows")?;
                        continue;
                    }
                    Err(reason) => format!("{}:{}: {reason}", path.display(), row.line),
                },
                Err(ReadError::Bad(line)) => line.to_string(),
                Err(error) => return Err(Failure::failed(explain(&error))),
            };
            if self.strict {
                return Err(Failure::failed(told));
            }
            bad += 1;
            if bad <= NAMED_BAD_ROWS {
                self.printer.warning(told);
            }
        }
        if bad > NAMED_BAD_ROWS {
            self.printer.warning(format!("{}: {bad} bad rows in all", path.display()));
        }
        self.bad += bad;
        let rows = writer.finish().context("cannot write temporary rows")?;
        if rows == 0 {
            return Err(Failure::failed(format!("`{}` has no rows", path.display())));
        }
        let plain = bad == 0 && path.extension().is_some_and(|extension| extension == "jsonl");
        Ok((transfer::upload(self.cluster, if plain { path } else { &copy }).await?, rows))
    }
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x: &f64| x.is_finite() && *x > 0.0)
        .ok_or_else(|| "expected a number above 0".into())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x| (0.0..=1.0).contains(x))
        .ok_or_else(|| "expected a number from 0 to 1".into())
}
