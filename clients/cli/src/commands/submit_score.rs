//! `submit score`: every response of a file, scored as a job.

use std::path::PathBuf;

use cappy_proto::v1::{ScoreSpec, job_spec::Kind};
use clap::Args;

use super::{
    row_store::{self, RowStore},
    submit::Submission,
};
use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    defaults,
    failure::Outcome,
    line_input::{Fields, text},
    printer::Printer,
};

/// What `--help` says behind the options.
const HELP: &str = "\
     Rows have `instruction`, and `response` or `responses` (or `flan_samples`, as `submit generate` writes them). \
     They come back in a result file with `score` or `scores`: the raw logit of the regression head, near 0 for wrong \
     and near 1 for right. With --output ndjson (the default where stdout is no terminal) they are also printed.\n\
     \n\
     Examples:\n\
     \x20 cappy-client submit score --scorer cappy-large --input answers.jsonl.gz --results scored\n\
     \x20 zcat answers.jsonl.gz | cappy-client submit score --scorer demo --input - > scored.jsonl";

/// Arguments of `submit score`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub struct Score {
    /// Scorer: a directory, a hub id, a short name (cappy-large, demo) or the id of an adapted one (mdl_...);
    /// NAME#LABEL ranks by one label of several
    #[arg(long, default_value = "cappy-large", value_name = "MODEL")]
    scorer: String,
    /// Rows as JSON Lines (.jsonl, .jsonl.gz, .jsonl.zst; - for standard input)
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// Stop at the first bad row
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    submission: Submission,
}

impl Score {
    /// Uploads the rows, submits, follows.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let mut store = RowStore::new(&cluster, printer, self.strict);
        let input = store.rows(&self.input, check).await?;
        let bad = store.bad();
        let spec = ScoreSpec {
            scorer: self.scorer,
            input: Some(input),
            backend: global.backend_name(),
            dtype: global.dtype_name(),
            max_tokens: defaults::MAX_PAIR_TOKENS,
        };
        self.submission.hand_in(Kind::Score(spec), bad, cluster, global, printer).await
    }
}

fn check(fields: &Fields) -> Result<(), String> {
    text(fields, "instruction")?;
    if fields.contains_key("responses") || fields.contains_key("flan_samples") {
        return row_store::candidates(fields);
    }
    text(fields, "response").map(drop)
}
