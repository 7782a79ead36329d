//! `generate`: responses of a generator, in the seed's shape.

use cappy_proto::v1::{GenerateRequest, GeneratedRow, Sample};
use clap::Args;
use serde_json::{Map, Value};

use crate::{
    arguments::Global,
    cluster::{Cluster, Need, patiently},
    defaults::{GenerationFlags, SEED},
    endpoint::EndpointFlags,
    failure::{Failure, Outcome},
    line_input::{Fields, Input, Plan, text},
    printer::Printer,
};

/// Rows in one call.
const ROWS_PER_CALL: usize = 16;

/// Arguments of `generate`.
///
/// Rows have `instruction`; they come back with `flan_samples`: by decoding, a list of `{"response", ...}`.
#[derive(Debug, Args)]
pub struct Generate {
    /// Generator: a directory, a hub id, a short name (flan-t5-small ... flan-t5-xxl, demo), or openai:NAME
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    endpoint: EndpointFlags,
    #[command(flatten)]
    input: Input,
    /// The instruction, instead of --input; may be given several times
    #[arg(long, value_name = "TEXT")]
    instruction: Vec<String>,
    #[command(flatten)]
    generation: GenerationFlags,
    /// Add each response's log-likelihood, sum and mean
    #[arg(long)]
    log_likelihood: bool,
    /// Randomness key: the same key gives the same text for the same instruction
    #[arg(long, default_value_t = SEED)]
    seed: u64,
}

impl Generate {
    /// Generates and prints.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let endpoint = self.endpoint.resolve(Some(&self.model), global)?;
        let settings = self.generation.settings_for(self.seed, endpoint.as_ref()).map_err(Failure::usage)?;
        let row = |text: &String| Fields::from_iter([("instruction".to_owned(), Value::from(text.as_str()))]);
        let inline = self.instruction.iter().map(row).collect();
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let plan = Plan {
            rows_per_call: ROWS_PER_CALL,
            check: |fields| text(fields, "instruction"),
            columns: &[("INSTRUCTION", "instruction"), ("RESPONSES", "flan_samples")],
        };
        let call = async |instructions: Vec<String>, first_row| {
            let request = GenerateRequest {
                model: self.model.clone(),
                instructions,
                settings: Some(settings.clone()),
                log_likelihood: self.log_likelihood,
                dtype: global.dtype_name(),
                backend: global.backend_name(),
                // A row's own text keys its randomness: the same alone, in any file, and in a job.
                row_namespace: String::new(),
                first_row,
                endpoint: endpoint.clone(),
            };
            let answer = patiently(async || cluster.inference().generate(request.clone()).await).await?;
            Ok(answer.rows.into_iter().map(fields).collect())
        };
        let code = self.input.run(inline, plan, call, printer).await?;
        cluster.stop().await;
        Ok(code)
    }
}

fn fields(row: GeneratedRow) -> Fields {
    let samples: Map<String, Value> = row
        .decodings
        .into_iter()
        .map(|decoding| (decoding.name, decoding.samples.into_iter().map(sample).collect()))
        .collect();
    Fields::from_iter([("flan_samples".to_owned(), Value::from(samples))])
}

fn sample(sample: Sample) -> Value {
    let mut fields = Fields::from_iter([("response".to_owned(), Value::from(sample.response))]);
    if let Some(sum) = sample.log_likelihood_sum {
        fields.insert("log_likelihood_sum".into(), Value::from(sum));
    }
    if let Some(mean) = sample.log_likelihood_mean {
        fields.insert("log_likelihood_mean".into(), Value::from(mean));
    }
    Value::from(fields)
}
