//! `submit generate`: a generator answers a benchmark folder, or a file of rows.

use std::path::{Path, PathBuf};

use cappy_eval::{bigbench, rows::Row};
use cappy_proto::v1::{GenerateFile, GenerateSpec, RowFile, job_spec::Kind};
use clap::Args;

use super::{row_store::RowStore, submit::Submission, submit_bigbench::benchmark_data};
use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    defaults::{self, GenerationFlags},
    endpoint::EndpointFlags,
    failure::{Context as _, Failure, Outcome},
    groups::ModelShards,
    line_input::{explain, text},
    printer::Printer,
};

/// What `--help` says behind the options.
const HELP: &str = "\
     --data is a benchmark folder (as `data bigbench` writes it) or a file of rows with `instruction`. Rows come back \
     with `flan_samples`: by decoding, a list of `{\"response\", \"log_likelihood_sum\"?, \"log_likelihood_mean\"?}`.\n\
     \n\
     A folder gives the seed's layout, DIR/<model>/<subset>_{train,validation}.jsonl, with likelihoods on validation \
     rows; `submit bigbench --generations DIR` and the seed's scripts read it. A file gives <model>/<name>.jsonl, and \
     with --output ndjson (the default where stdout is no terminal) its rows are printed, too. What an earlier job \
     has generated with the same rows and settings is not generated again.\n\
     \n\
     Examples:\n\
     \x20 cappy-client submit generate --model flan-t5-xxl --data bigbench_data --results bigbench_flan_gens\n\
     \x20 cappy-client submit generate --model flan-t5-small --data questions.jsonl --decoding beam4 --log-likelihood\n\
     \x20 cappy-client submit generate --model openai:NAME --endpoint https://api.openai.com/v1 --data \
     questions.jsonl";

/// Arguments of `submit generate`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub struct Generate {
    /// Generator: a directory, a hub id, a short name (flan-t5-{small,base,large,xl,xxl}, demo), or openai:NAME
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Benchmark folder or file of rows [default: ./bigbench_data; with --model demo: the demo benchmark]
    #[arg(long, value_name = "DIR|FILE")]
    data: Option<PathBuf>,
    /// Only this subset of a folder; may be given several times
    #[arg(long = "subset", value_name = "NAME")]
    subsets: Vec<String>,
    #[command(flatten)]
    endpoint: EndpointFlags,
    #[command(flatten)]
    generation: GenerationFlags,
    /// Log-likelihoods on every row, not only on a folder's validation rows
    #[arg(long)]
    log_likelihood: bool,
    /// Randomness key: the same key gives the same text
    #[arg(long, default_value_t = defaults::SEED)]
    seed: u64,
    /// Stop at the first bad row
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    shards: ModelShards,
    #[command(flatten)]
    submission: Submission,
}

impl Generate {
    /// Uploads the rows, submits, follows.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let endpoint = self.endpoint.resolve(Some(&self.model), global)?;
        let generation =
            self.generation.settings_for(self.seed, endpoint.as_ref()).map_err(Failure::usage)?;
        let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
        let demo = self.model == cappy_demo::MODEL_NAME;
        let data = benchmark_data(self.data.as_deref(), demo, scratch.path())?;
        let folder = data.is_dir().then(|| bigbench::inspect(&data, &self.subsets)).transpose();
        let folder = folder.map_err(|error| Failure::failed(explain(&error)))?;
        if folder.is_none() && !self.subsets.is_empty() {
            return Err(Failure::usage("--subset needs a benchmark folder as --data, not a file"));
        }
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let model_shards = self.shards.on(&cluster)?;
        let mut store = RowStore::new(&cluster, printer, self.strict);
        let mut files = Vec::new();
        match folder {
            None => {
                let rows = store.rows(&data, |fields| text(fields, "instruction").map(drop)).await?;
                files.push(GenerateFile { rows: Some(rows), log_likelihood: self.log_likelihood });
            }
            Some(folder) => {
                for subset in &folder.subsets {
                    for (split, path, likelihood) in
                        [("train", &subset.train, false), ("validation", &subset.validation, true)]
                    {
                        let rows = split_rows(&mut store, path, &subset.subset, split).await?;
                        let log_likelihood = likelihood || self.log_likelihood;
                        files.push(GenerateFile { rows: Some(rows), log_likelihood });
                    }
                }
            }
        }
        let bad = store.bad();
        let spec = GenerateSpec {
            model: self.model,
            endpoint,
            files,
            generation: Some(generation),
            backend: global.backend_name(),
            dtype: global.dtype_name(),
            model_shards,
        };
        self.submission.hand_in(Kind::Generate(spec), bad, cluster, global, printer).await
    }
}

/// Rows of the benchmark, stored as `submit bigbench` stores them: what either generates, the other finds.
async fn split_rows(store: &mut RowStore<'_>, path: &Path, subset: &str, split: &str) -> Outcome<RowFile> {
    let (artifact, rows) = store.file::<Row>(path, |_| Ok(())).await?;
    Ok(RowFile { name: format!("{subset}_{split}"), artifact: Some(artifact), rows })
}
