//! All decodings of a slice of rows, in the seed's `flan_samples` shape.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Write as _},
    sync::Arc,
};

use cappy_plugin_abi::{Control, Generator, GroupKind};
use cappy_proto::v1;
use serde_json::{Map, Value};

use super::{
    Attempt, ExecutionError, Outcome,
    rows::{RowReader, text},
};
use crate::{
    compute::{self, Decodings, GeneratedRows, GenerationInput, Sample},
    engine::{Choice, Engine},
    residency::Resident,
    settings::decodings,
};

/// Rows that are tokenized and sorted together.
const WINDOW_ROWS: usize = 256;

pub fn run(
    engine: &Engine,
    task: &v1::GenerateTask,
    choice: Choice<'_>,
    attempt: &Attempt<'_>,
) -> Result<Outcome, ExecutionError> {
    let total = task.row_end.saturating_sub(task.row_start);
    let settings = task.settings.as_ref().ok_or_else(|| {
        ExecutionError::permanent("invalid_argument", "the task has no generation settings")
    })?;
    let decodings = decodings(settings)?;
    attempt.progress.set(0, total, "loading the generator");
    let gang = attempt.gang(GroupKind::Tensor)?;
    let (source, rank) = match gang {
        None => (Source::of(engine, task.model.as_ref(), choice, attempt)?, 0),
        Some(gang) => {
            let (place, slice) = engine.generator_slice(task.model.as_ref(), choice, attempt, gang)?;
            (Source::Model(slice), place.rank)
        }
    };
    attempt.progress.set(0, total, "generating");
    let made = answer(engine, task, &decodings, &source, attempt);
    if made.is_err() && gang.is_some() {
        // The ranks may stand at different places now: none of them goes on with what it has in memory.
        engine.residency.forget_slices();
    }
    Ok(Outcome { follows: rank > 0, ..made? })
}

/// The rows of the shard with their answers.
fn answer(
    engine: &Engine,
    task: &v1::GenerateTask,
    decodings: &Decodings,
    source: &Source,
    attempt: &Attempt<'_>,
) -> Result<Outcome, ExecutionError> {
    let total = task.row_end.saturating_sub(task.row_start);

    let path = attempt.scratch.join("rows.jsonl");
    let written = |error| ExecutionError::disk("write the generated rows", &error);
    let mut output = BufWriter::new(File::create(&path).map_err(written)?);
    let mut reader = RowReader::from_row(attempt.files(&task.input)?, task.row_start, &engine.row_index)?;
    let mut stats = v1::ShardStats::default();
    while stats.rows < total {
        let (first_row, mut rows) = reader.window(WINDOW_ROWS, task.row_end)?;
        let instructions: Vec<String> = (first_row..)
            .zip(&rows)
            .map(|(index, row)| text(index, row, "instruction").map(str::to_owned))
            .collect::<Result<_, _>>()?;
        let row_keys = compute::row_keys(&task.row_namespace, first_row, &instructions);
        let window = attempt.progress.window(stats.rows, rows.len() as u64, total);
        let input = GenerationInput {
            instructions: &instructions,
            row_keys: &row_keys,
            first_row,
            log_likelihood: task.log_likelihood,
        };
        let (generated, failures) = source.generate(engine, input, decodings, &window)?;
        for (index, (row, samples)) in rows.iter_mut().zip(&generated.rows).enumerate() {
            row.insert("flan_samples".to_owned(), flan_samples(decodings, samples));
            if let Some(failures) = failures.get(&index) {
                row.insert("endpoint_failures".to_owned(), failures.clone());
            }
            serde_json::to_writer(&mut output, row).map_err(|error| written(error.into()))?;
            output.write_all(b"\n").map_err(written)?;
        }
        stats.rows += rows.len() as u64;
        stats.tokens += generated.input_tokens + generated.output_tokens;
        stats.truncated_rows += generated.truncated;
    }
    output.flush().map_err(written)?;
    Ok(Outcome { outputs: vec![("rows.jsonl".to_owned(), path)], stats, ..Outcome::default() })
}

/// Who answers.
enum Source {
    Model(Arc<Resident<dyn Generator>>),
    Endpoint(v1::Endpoint),
}

impl Source {
    fn of(
        engine: &Engine,
        model: Option<&v1::ModelRef>,
        choice: Choice<'_>,
        attempt: &Attempt<'_>,
    ) -> Result<Self, ExecutionError> {
        match model.and_then(|model| model.source.as_ref()) {
            Some(v1::model_ref::Source::Endpoint(endpoint)) => Ok(Self::Endpoint(endpoint.clone())),
            _ => Ok(Self::Model(engine.generator(model, choice, attempt)?)),
        }
    }

    /// The answers, and by row the decodings that an endpoint had no usable answer for, with the reasons.
    fn generate(
        &self,
        engine: &Engine,
        input: GenerationInput<'_>,
        decodings: &Decodings,
        control: &dyn Control,
    ) -> Result<(GeneratedRows, HashMap<usize, Value>), ExecutionError> {
        let endpoint = match self {
            Self::Model(generator) => {
                let budget = engine.budgets.generate;
                let rows = compute::generate(generator, input, decodings, budget, control)?;
                return Ok((rows, HashMap::new()));
            }
            Self::Endpoint(endpoint) => endpoint,
        };
        let mut rows =
            GeneratedRows { rows: vec![Vec::new(); input.instructions.len()], ..GeneratedRows::default() };
        let mut failures = HashMap::new();
        engine.endpoints.generate(endpoint, input, decodings, control, &mut |row, answered| {
            rows.input_tokens += answered.input_tokens;
            rows.output_tokens += answered.row.tokens;
            rows.rows[row] = answered.row.samples;
            if !answered.failures.is_empty() {
                let reasons = answered.failures.into_iter().map(|(name, reason)| (name, reason.into()));
                failures.insert(row, Value::Object(reasons.collect()));
            }
            Ok(())
        })?;
        Ok((rows, failures))
    }
}

fn flan_samples(decodings: &Decodings, samples: &[Vec<Sample>]) -> Value {
    let sample = |sample: &Sample| {
        let mut object = Map::new();
        object.insert("response".to_owned(), sample.response.as_str().into());
        if let Some((sum, mean)) = sample.log_likelihood {
            object.insert("log_likelihood_sum".to_owned(), sum.into());
            object.insert("log_likelihood_mean".to_owned(), mean.into());
        }
        Value::Object(object)
    };
    let lists = samples.iter().map(|samples| Value::Array(samples.iter().map(sample).collect()));
    Value::Object(decodings.names.iter().cloned().zip(lists).collect())
}
