//! `submit promptsource`: zero-shot accuracy on prompted classification tasks.

use std::path::PathBuf;

use cappy_eval::promptsource::PromptRow;
use cappy_proto::v1::{PromptsourceSpec, job_spec::Kind};
use clap::Args;
use serde::Deserialize as _;
use serde_json::Value;

use super::{row_store::RowStore, submit::Submission};
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
     Rows are the seed's: `dataset_name`, `template_name`, `example_idx`, `instruction`, `response`, `label`. Of the \
     responses to one example under one template the one with the highest score is the answer (the first wins ties); \
     it is right if its label is 1. `data promptsource` makes such rows from templates and datasets. The result is \
     the accuracy of each dataset and their mean, beside the published ones.\n\
     \n\
     Examples:\n\
     \x20 cappy-client submit promptsource --data held_out.jsonl --scorer cappy-large";

/// Arguments of `submit promptsource`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub struct Promptsource {
    /// Rows as JSON Lines (.jsonl, .jsonl.gz, .jsonl.zst; - for standard input)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Scorer: a directory, a hub id, a short name (cappy-large, demo) or the id of an adapted one (mdl_...);
    /// NAME#LABEL ranks by one label of several
    #[arg(long, default_value = "cappy-large", value_name = "MODEL")]
    scorer: String,
    /// Stop at the first bad row
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    submission: Submission,
}

impl Promptsource {
    /// Uploads the rows, submits, follows.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let mut store = RowStore::new(&cluster, printer, self.strict);
        let input = store.rows(&self.data, check).await?;
        let bad = store.bad();
        let spec = PromptsourceSpec {
            scorer: self.scorer,
            input: Some(input),
            backend: global.backend_name(),
            dtype: global.dtype_name(),
            max_tokens: defaults::MAX_PAIR_TOKENS,
        };
        self.submission.hand_in(Kind::Promptsource(spec), bad, cluster, global, printer).await
    }
}

fn check(fields: &Fields) -> Result<(), String> {
    text(fields, "instruction")?;
    PromptRow::deserialize(Value::Object(fields.clone())).map(drop).map_err(|error| error.to_string())
}
