//! `submit bigbench`: the whole pipeline for one generator.

use std::path::{Path, PathBuf};

use cappy_eval::{
    bigbench::{self, Split},
    rows::{GeneratedRow, Row},
};
use cappy_proto::v1::{BigbenchSpec, BigbenchSubset, FineTuning, job_spec::Kind};
use clap::Args;

use super::{
    demo_data,
    fine_tuning::{FineTuningFlags, SEED_SETTINGS},
    row_store::RowStore,
    submit::Submission,
};
use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    defaults::{self, GenerationFlags},
    endpoint::EndpointFlags,
    failure::{Context as _, Failure, Outcome},
    groups::{DataParallel, ModelShards},
    line_input::explain,
    printer::Printer,
};

/// Where benchmark data is looked for unless told otherwise; the seed's name for it.
const DEFAULT_DATA: &str = "bigbench_data";

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
    endpoint: EndpointFlags,
    #[command(flatten)]
    generation: GenerationFlags,
    /// Rows seen per subset: the training set is repeated or cut to this [default: 102400; the demo's: 1536]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    train_size: Option<u64>,
    #[command(flatten)]
    fine_tuning: FineTuningFlags,
    /// Randomness key of sampling, training-set construction, data order and dropout
    #[arg(long, default_value_t = defaults::SEED)]
    seed: u64,
    /// Stop if a data file has a bad row
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    shards: ModelShards,
    #[command(flatten)]
    parallel: DataParallel,
    #[command(flatten)]
    submission: Submission,
}

impl Bigbench {
    /// Uploads the data, submits, follows.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let demo = self.model == cappy_demo::MODEL_NAME;
        let endpoint = self.endpoint.resolve(Some(&self.model), global)?;
        let generation =
            self.generation.settings_for(self.seed, endpoint.as_ref()).map_err(Failure::usage)?;
        let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
        let data = benchmark_data(self.data.as_deref(), demo, scratch.path())?;
        let folder =
            bigbench::inspect(&data, &self.subsets).map_err(|error| Failure::failed(explain(&error)))?;
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let (model_shards, data_parallel) = (self.shards.on(&cluster)?, self.parallel.on(&cluster)?);
        let mut store = RowStore::new(&cluster, printer, self.strict);
        let mut subsets = Vec::with_capacity(folder.subsets.len());
        for files in &folder.subsets {
            let subset = match &self.generations {
                None => stored_rows(&mut store, files).await?,
                Some(generations) => {
                    stored_generations(&mut store, generations, &self.model, &files.subset).await?
                }
            };
            subsets.push(subset);
        }
        let bad = store.bad();
        let unset = if demo { cappy_demo::DEMO_SETTINGS } else { SEED_SETTINGS };
        let fine_tuning = FineTuning {
            train_size: self.train_size.unwrap_or(unset.train_size),
            ..self.fine_tuning.settings(&unset, self.seed)
        };
        let spec = BigbenchSpec {
            model: self.model.clone(),
            scorer: self.scorer.unwrap_or_else(|| if demo { self.model } else { "cappy-large".into() }),
            subsets,
            generation: Some(generation),
            fine_tuning: Some(fine_tuning),
            backend: global.backend_name(),
            dtype: global.dtype_name(),
            endpoint,
            model_shards,
            data_parallel,
        };
        self.submission.hand_in(Kind::Bigbench(spec), bad, cluster, global, printer).await
    }
}

/// The benchmark's data folder: the one given, the demo's (written below `scratch`), or the seed's name for it here.
///
/// # Errors
/// When there is none.
pub fn benchmark_data(given: Option<&Path>, demo: bool, scratch: &Path) -> Outcome<PathBuf> {
    match given {
        Some(data) => Ok(data.to_owned()),
        None if demo => demo_data::write(scratch),
        None if Path::new(DEFAULT_DATA).is_dir() => Ok(DEFAULT_DATA.into()),
        None => Err(Failure::usage(
            "no benchmark data: give --data DIR, made by `cappy-client data bigbench --source \
             bigbench-1.0.0.tar.gz --output DIR` (or try --model demo, which brings its own)",
        )),
    }
}

async fn stored_rows(store: &mut RowStore<'_>, files: &bigbench::SubsetFiles) -> Outcome<BigbenchSubset> {
    let (train, train_rows) = store.file::<Row>(&files.train, |_| Ok(())).await?;
    let (validation, validation_rows) = store.file::<Row>(&files.validation, |_| Ok(())).await?;
    Ok(BigbenchSubset {
        name: files.subset.clone(),
        train: Some(train),
        validation: Some(validation),
        train_rows,
        validation_rows,
        generated: false,
    })
}

async fn stored_generations(
    store: &mut RowStore<'_>,
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
    let (train, train_rows) = store.file(&path(Split::Train)?, answered).await?;
    let (validation, validation_rows) = store.file(&path(Split::Validation)?, answered).await?;
    Ok(BigbenchSubset {
        name: subset.to_owned(),
        train: Some(train),
        validation: Some(validation),
        train_rows,
        validation_rows,
        generated: true,
    })
}
