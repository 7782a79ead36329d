//! `submit boost`: the best candidate of every row of a file.

use std::path::PathBuf;

use cappy_proto::v1::{BoostSpec, job_spec::Kind};
use clap::Args;

use super::{
    row_store::{self, RowStore},
    submit::Submission,
};
use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    defaults::{self, GenerationFlags},
    endpoint::EndpointFlags,
    failure::{Failure, Outcome},
    line_input::{Fields, text, texts},
    printer::Printer,
};

/// What `--help` says behind the options.
const HELP: &str = "\
     Rows have `instruction` and their candidates in `responses` (or `flan_samples`); with --model they need only \
     `instruction`. They come back in a result file with `scores`, `best` (an index; the first wins ties) and \
     `response`; rows with `references` also with `rougeL` and `oracle_rougeL`. The summary compares the choice with \
     the first candidate and with the oracle, over the rows that have references. With --output ndjson (the default \
     where stdout is no terminal) the rows are printed.\n\
     \n\
     Examples:\n\
     \x20 cappy-client submit boost --scorer mdl_01j... --input candidates.jsonl --results boosted\n\
     \x20 cappy-client submit boost --scorer cappy-large --model flan-t5-base --input questions.jsonl";

/// Arguments of `submit boost`.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub struct Boost {
    /// Scorer: a directory, a hub id, a short name (cappy-large, demo) or the id of an adapted one (mdl_...);
    /// NAME#LABEL ranks by one label of several
    #[arg(long, default_value = "cappy-large", value_name = "MODEL")]
    scorer: String,
    /// Rows as JSON Lines (.jsonl, .jsonl.gz, .jsonl.zst; - for standard input)
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// Generator of the candidates, instead of the rows' own: a directory, a hub id, a short name, or openai:NAME
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    endpoint: EndpointFlags,
    #[command(flatten)]
    generation: GenerationFlags,
    /// Randomness key of generated candidates
    #[arg(long, default_value_t = defaults::SEED)]
    seed: u64,
    /// Stop at the first bad row
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    submission: Submission,
}

impl Boost {
    /// Uploads the rows, submits, follows.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let endpoint = self.endpoint.resolve(self.model.as_deref(), global)?;
        let generation =
            self.generation.settings_for(self.seed, endpoint.as_ref()).map_err(Failure::usage)?;
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let mut store = RowStore::new(&cluster, printer, self.strict);
        let generated = self.model.is_some();
        let input = store.rows(&self.input, |fields| check(fields, generated)).await?;
        let bad = store.bad();
        let spec = BoostSpec {
            scorer: self.scorer,
            input: Some(input),
            model: self.model.unwrap_or_default(),
            endpoint,
            generation: generated.then_some(generation),
            backend: global.backend_name(),
            dtype: global.dtype_name(),
            max_tokens: defaults::MAX_PAIR_TOKENS,
        };
        self.submission.hand_in(Kind::Boost(spec), bad, cluster, global, printer).await
    }
}

fn check(fields: &Fields, generated: bool) -> Result<(), String> {
    text(fields, "instruction")?;
    if fields.contains_key("references") {
        texts(fields, "references")?;
    }
    if generated {
        return Ok(());
    }
    let bare = !fields.contains_key("responses") && !fields.contains_key("flan_samples");
    if bare {
        Err("there are no `responses`; give some, or --model to generate them".into())
    } else {
        row_store::candidates(fields)
    }
}
