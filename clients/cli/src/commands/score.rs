//! `score`: raw logits of responses to an instruction.

use cappy_proto::v1::{ScoreRequest, ScoreRow};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    arguments::Global,
    cluster::{Cluster, Need, patiently},
    failure::Outcome,
    line_input::{Fields, Input, Plan, text, texts},
    printer::Printer,
};

/// Rows in one call.
const ROWS_PER_CALL: usize = 64;

/// Arguments of `score`.
///
/// Rows have `instruction` and `response`, or `responses`; they come back with `score` or `scores`: the raw logit of
/// the regression head, near 0 for wrong and near 1 for right.
#[derive(Debug, Args)]
pub struct Score {
    /// Scorer: a directory, a hub id or a short name (cappy-large, demo);
    /// NAME#LABEL ranks by one label of several
    #[arg(long, default_value = "cappy-large", value_name = "MODEL")]
    scorer: String,
    #[command(flatten)]
    input: Input,
    /// The instruction, instead of --input
    #[arg(long, requires = "response", value_name = "TEXT")]
    instruction: Option<String>,
    /// A response to it; may be given several times
    #[arg(long, requires = "instruction", value_name = "TEXT")]
    response: Vec<String>,
}

#[derive(Clone)]
struct Pair {
    row: ScoreRow,
    single: bool,
}

impl Score {
    /// Scores and prints.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let inline = inline(self.instruction.as_deref(), &self.response);
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let plan = Plan {
            rows_per_call: ROWS_PER_CALL,
            check,
            columns: &[("SCORE", "score"), ("RESPONSE", "response"), ("INSTRUCTION", "instruction")],
        };
        let call = async |pairs: Vec<Pair>, _| {
            let request = ScoreRequest {
                model: self.scorer.clone(),
                rows: pairs.iter().map(|pair| pair.row.clone()).collect(),
                dtype: global.dtype_name(),
                backend: global.backend_name(),
            };
            let answer = patiently(async || cluster.inference().score(request.clone()).await).await?;
            Ok(pairs.iter().zip(answer.rows).map(|(pair, row)| fields(pair.single, &row.scores)).collect())
        };
        let code = self.input.run(inline, plan, call, printer).await?;
        cluster.stop().await;
        Ok(code)
    }
}

/// A row for each response on the command line.
pub fn inline(instruction: Option<&str>, responses: &[String]) -> Vec<Fields> {
    let Some(instruction) = instruction else { return Vec::new() };
    let row = |response: &String| json!({ "instruction": instruction, "response": response });
    responses.iter().map(row).filter_map(|row| row.as_object().cloned()).collect()
}

fn check(fields: &Fields) -> Result<Pair, String> {
    let instruction = text(fields, "instruction")?;
    let single = !fields.contains_key("responses");
    let responses = if single { vec![text(fields, "response")?] } else { texts(fields, "responses")? };
    Ok(Pair { row: ScoreRow { instruction, responses }, single })
}

/// An f32 is printed as the f64 that equals it, as Python's `.item()` does, so no digit is lost.
fn fields(single: bool, scores: &[f32]) -> Fields {
    let mut fields = Fields::new();
    match scores {
        [score] if single => fields.insert("score".into(), Value::from(*score)),
        scores => fields.insert("scores".into(), scores.into()),
    };
    fields
}
