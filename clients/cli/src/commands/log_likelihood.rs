//! `log-likelihood`: how probable responses are under a generator.

use cappy_proto::v1::{LogLikelihoodRequest, LogLikelihoodRow};
use clap::Args;
use serde_json::Value;

use super::score::inline;
use crate::{
    arguments::Global,
    cluster::{Cluster, Need, patiently},
    defaults,
    failure::Outcome,
    line_input::{Fields, Input, Plan, text},
    printer::Printer,
};

/// Rows in one call.
const ROWS_PER_CALL: usize = 64;

/// Arguments of `log-likelihood`.
///
/// Rows have `instruction` and `response`; they come back with `log_likelihood_sum` (nats over the response's tokens,
/// the end token included) and `log_likelihood_mean` (that sum over their count).
#[derive(Debug, Args)]
pub struct LogLikelihood {
    /// Generator: a directory, a hub id or a short name (flan-t5-small ... flan-t5-xxl, demo)
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    input: Input,
    /// The instruction, instead of --input
    #[arg(long, requires = "response", value_name = "TEXT")]
    instruction: Option<String>,
    /// A response to it; may be given several times
    #[arg(long, requires = "instruction", value_name = "TEXT")]
    response: Vec<String>,
}

impl LogLikelihood {
    /// Computes and prints.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let inline = inline(self.instruction.as_deref(), &self.response);
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let plan = Plan {
            rows_per_call: ROWS_PER_CALL,
            check,
            columns: &[
                ("SUM", "log_likelihood_sum"),
                ("MEAN", "log_likelihood_mean"),
                ("RESPONSE", "response"),
            ],
        };
        let call = async |rows: Vec<LogLikelihoodRow>, _| {
            let request = LogLikelihoodRequest {
                model: self.model.clone(),
                rows,
                dtype: global.dtype_name(),
                backend: global.backend_name(),
                max_source_tokens: defaults::MAX_SOURCE_TOKENS,
                max_target_tokens: defaults::MAX_TARGET_TOKENS,
            };
            let answer =
                patiently(async || cluster.inference().log_likelihood(request.clone()).await).await?;
            let fields = |row: &cappy_proto::v1::LogLikelihood| {
                Fields::from_iter([
                    ("log_likelihood_sum".to_owned(), Value::from(row.sum)),
                    ("log_likelihood_mean".to_owned(), Value::from(row.mean)),
                ])
            };
            Ok(answer.rows.iter().map(fields).collect())
        };
        let code = self.input.run(inline, plan, call, printer).await?;
        cluster.stop().await;
        Ok(code)
    }
}

fn check(fields: &Fields) -> Result<LogLikelihoodRow, String> {
    Ok(LogLikelihoodRow { instruction: text(fields, "instruction")?, response: text(fields, "response")? })
}
