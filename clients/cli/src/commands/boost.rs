//! `boost`: the best of several responses, given or generated.

use std::cell::RefCell;

use cappy_eval::rouge::RougeScorer;
use cappy_proto::v1::{BoostRequest, BoostedRow, ScoreRow};
use clap::Args;
use serde_json::Value;

use crate::{
    arguments::Global,
    cluster::{Cluster, Need, patiently},
    defaults::{GenerationFlags, SEED},
    endpoint::EndpointFlags,
    failure::{Failure, Outcome},
    line_input::{Fields, Input, Plan, text, texts},
    printer::Printer,
};

/// Rows in one call.
const ROWS_PER_CALL: usize = 16;

/// Arguments of `boost`.
///
/// Rows have `instruction` and `responses` (or, with --model, only `instruction`); they come back with `scores`,
/// `best` (an index) and `response`; rows with `references` also with `rougeL` and `oracle_rougeL`.
#[derive(Debug, Args)]
pub struct Boost {
    /// Scorer: a directory, a hub id or a short name (cappy-large, demo);
    /// NAME#LABEL ranks by one label of several
    #[arg(long, default_value = "cappy-large", value_name = "MODEL")]
    scorer: String,
    /// Generator of candidates (as `generate --model`); a row's own `responses`, if it has any, stand before them
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    endpoint: EndpointFlags,
    #[command(flatten)]
    input: Input,
    /// The instruction, instead of --input
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,
    /// A candidate; may be given several times
    #[arg(long, requires = "instruction", value_name = "TEXT")]
    response: Vec<String>,
    #[command(flatten)]
    generation: GenerationFlags,
    /// Randomness key of generated candidates
    #[arg(long, default_value_t = SEED)]
    seed: u64,
}

#[derive(Clone)]
struct Candidates {
    row: ScoreRow,
    references: Option<Vec<String>>,
}

impl Boost {
    /// Chooses and prints.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let endpoint = self.endpoint.resolve(self.model.as_deref(), global)?;
        let settings = self.generation.settings_for(self.seed, endpoint.as_ref()).map_err(Failure::usage)?;
        let inline = self.inline();
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let plan = Plan {
            rows_per_call: ROWS_PER_CALL,
            check: if self.model.is_some() { check_generated } else { check_given },
            columns: &[("BEST", "response"), ("SCORES", "scores"), ("INSTRUCTION", "instruction")],
        };
        let generates = self.model.is_some();
        let rouge = RefCell::new(RougeScorer::new());
        let call = async |rows: Vec<Candidates>, _| {
            let request = BoostRequest {
                scorer: self.scorer.clone(),
                model: self.model.clone().unwrap_or_default(),
                rows: rows.iter().map(|row| row.row.clone()).collect(),
                settings: generates.then(|| settings.clone()),
                dtype: global.dtype_name(),
                backend: global.backend_name(),
                endpoint: endpoint.clone(),
            };
            let answer = patiently(async || cluster.inference().boost(request.clone()).await).await?;
            rows.iter()
                .zip(answer.rows)
                .map(|(row, boosted)| fields(row, boosted, &mut rouge.borrow_mut()))
                .collect()
        };
        let code = self.input.run(inline, plan, call, printer).await?;
        cluster.stop().await;
        Ok(code)
    }

    fn inline(&self) -> Vec<Fields> {
        let Some(instruction) = &self.instruction else { return Vec::new() };
        let mut fields = Fields::from_iter([("instruction".to_owned(), Value::from(instruction.as_str()))]);
        if !self.response.is_empty() {
            fields.insert("responses".into(), self.response.clone().into());
        }
        vec![fields]
    }
}

fn check_given(fields: &Fields) -> Result<Candidates, String> {
    let candidates = check_generated(fields)?;
    if candidates.row.responses.is_empty() {
        return Err("there are no `responses`; give some, or --model to generate them".into());
    }
    Ok(candidates)
}

fn check_generated(fields: &Fields) -> Result<Candidates, String> {
    let responses = if fields.contains_key("responses") { texts(fields, "responses")? } else { Vec::new() };
    let references = fields.contains_key("references").then(|| texts(fields, "references")).transpose()?;
    Ok(Candidates { row: ScoreRow { instruction: text(fields, "instruction")?, responses }, references })
}

fn fields(row: &Candidates, boosted: BoostedRow, rouge: &mut RougeScorer) -> Outcome<Fields> {
    let best = boosted.best as usize;
    let Some(response) = boosted.candidates.get(best) else {
        return Err(Failure::failed("the service chose a candidate that does not exist"));
    };
    let mut fields = Fields::new();
    // What `scores` and `best` count must be in the row.
    if row.row.responses != boosted.candidates {
        fields.insert("responses".into(), boosted.candidates.clone().into());
    }
    fields.insert("scores".into(), boosted.scores.as_slice().into());
    fields.insert("best".into(), best.into());
    fields.insert("response".into(), response.as_str().into());
    if let Some(references) = row.references.as_ref().filter(|references| !references.is_empty()) {
        let mut of = |text: &String| rouge.rouge_l(references, text).map_err(Failure::failed);
        let all = boosted.candidates.iter().map(&mut of).collect::<Outcome<Vec<f64>>>()?;
        fields.insert("rougeL".into(), all[best].into());
        fields.insert("oracle_rougeL".into(), all.iter().copied().fold(0.0, f64::max).into());
    }
    Ok(fields)
}
