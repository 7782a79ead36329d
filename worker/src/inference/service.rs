//! `InferenceService`: requests checked, answers put into messages.

use std::pin::Pin;

use cappy_plugin_abi::random::{fold, key_of};
use cappy_proto::v1::{self, inference_service_server::InferenceService};
use futures::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::{
    executor::{Answer, Executors, Generation, Likelihood, Target},
    status::invalid,
};
use crate::{
    compute::GeneratedRows,
    residency::Role,
    settings::{decodings, default_settings},
};

/// Requests of one stream that are worked on at the same time.
const STREAM_DEPTH: usize = 4;

/// The service.
#[derive(Clone)]
pub struct Inference {
    executors: Executors,
}

impl Inference {
    /// Runs calls on `executors`.
    pub fn new(executors: Executors) -> Self {
        Self { executors }
    }

    async fn score_one(&self, request: v1::ScoreRequest) -> Result<v1::ScoreResponse, Status> {
        let target = target("model", request.model, Role::Scorer, request.backend, request.dtype)?;
        let rows = request.rows.into_iter().map(|row| (row.instruction, row.responses)).collect();
        let answer = self.executors.score(target, rows).await?;
        let mut usage = usage(&answer);
        usage.input_tokens = answer.result.tokens;
        usage.truncated_rows = answer.result.truncated;
        let rows = answer.result.scores.into_iter().map(|scores| v1::ScoredRow { scores }).collect();
        Ok(v1::ScoreResponse { rows, usage: Some(usage) })
    }

    async fn generate_rows(
        &self,
        request: v1::GenerateRequest,
    ) -> Result<(Vec<String>, Answer<GeneratedRows>), Status> {
        let target = target("model", request.model, Role::Generator, request.backend, request.dtype)?;
        let settings = request.settings.unwrap_or_else(default_settings);
        let decodings = decodings(&settings).map_err(|failure| invalid("settings", failure.message))?;
        let namespace = key_of(&request.row_namespace);
        let rows = request.instructions.len();
        let names = decodings.names.clone();
        let input = Generation {
            row_keys: (request.first_row..).take(rows).map(|row| fold(namespace, row)).collect(),
            instructions: request.instructions,
            first_row: request.first_row,
            decodings,
            log_likelihood: request.log_likelihood,
        };
        Ok((names, self.executors.generate(target, input).await?))
    }

    async fn generate_one(&self, request: v1::GenerateRequest) -> Result<v1::GenerateResponse, Status> {
        let (names, answer) = self.generate_rows(request).await?;
        let usage = generation_usage(&answer);
        let sample = |sample: crate::compute::Sample| v1::Sample {
            response: sample.response,
            log_likelihood_sum: sample.log_likelihood.map(|(sum, _)| sum),
            log_likelihood_mean: sample.log_likelihood.map(|(_, mean)| mean),
        };
        let row = |row: Vec<Vec<_>>| v1::GeneratedRow {
            decodings: names
                .iter()
                .zip(row)
                .map(|(name, samples)| v1::DecodingSamples {
                    name: name.clone(),
                    samples: samples.into_iter().map(sample).collect(),
                })
                .collect(),
        };
        let rows = answer.result.rows.into_iter().map(row).collect();
        Ok(v1::GenerateResponse { rows, usage: Some(usage) })
    }

    async fn boost_all(&self, request: v1::BoostRequest) -> Result<v1::BoostResponse, Status> {
        let v1::BoostRequest { scorer, model, rows, settings, dtype, backend, .. } = request;
        target("scorer", scorer.clone(), Role::Scorer, String::new(), String::new())?;
        let mut usage = v1::Usage::default();
        let mut candidates: Vec<Vec<String>> = rows.iter().map(|row| row.responses.clone()).collect();
        if !model.is_empty() {
            let generate = v1::GenerateRequest {
                model,
                instructions: rows.iter().map(|row| row.instruction.clone()).collect(),
                settings,
                dtype: dtype.clone(),
                backend: backend.clone(),
                ..v1::GenerateRequest::default()
            };
            let (_, answer) = self.generate_rows(generate).await?;
            usage = generation_usage(&answer);
            for (list, generated) in candidates.iter_mut().zip(answer.result.rows) {
                list.extend(generated.into_iter().flatten().map(|sample| sample.response));
            }
        }
        if let Some(row) = candidates.iter().position(Vec::is_empty) {
            let reason = "there are no candidates: give responses, or a generator as `model`";
            return Err(invalid(&format!("rows[{row}].responses"), reason));
        }
        let score = v1::ScoreRequest {
            model: scorer,
            rows: rows
                .into_iter()
                .zip(&candidates)
                .map(|(row, responses)| v1::ScoreRow {
                    instruction: row.instruction,
                    responses: responses.clone(),
                })
                .collect(),
            dtype,
            backend,
        };
        let scored = self.score_one(score).await?;
        let cost = scored.usage.unwrap_or_default();
        let usage = v1::Usage {
            input_tokens: usage.input_tokens + cost.input_tokens,
            truncated_rows: usage.truncated_rows + cost.truncated_rows,
            queue_seconds: usage.queue_seconds + cost.queue_seconds,
            compute_seconds: usage.compute_seconds + cost.compute_seconds,
            output_tokens: usage.output_tokens,
            // The scorer decides, so it is the model that answered.
            model_fingerprint: cost.model_fingerprint,
            backend: cost.backend,
        };
        let rows = candidates
            .into_iter()
            .zip(scored.rows)
            .map(|(candidates, row)| v1::BoostedRow {
                best: best(&row.scores),
                candidates,
                scores: row.scores,
            })
            .collect();
        Ok(v1::BoostResponse { rows, usage: Some(usage) })
    }
}

/// Index of the highest score; the first wins ties.
fn best(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = index;
        }
    }
    best as u32
}

fn target(field: &str, model: String, role: Role, backend: String, dtype: String) -> Result<Target, Status> {
    if model.is_empty() {
        return Err(invalid(field, "name a directory, a hub id or a short name"));
    }
    Ok(Target { model, role, backend, dtype })
}

fn usage<T>(answer: &Answer<T>) -> v1::Usage {
    v1::Usage {
        model_fingerprint: answer.fingerprint.clone(),
        queue_seconds: answer.queued.as_secs_f64(),
        compute_seconds: answer.computed.as_secs_f64(),
        backend: answer.backend.clone(),
        ..v1::Usage::default()
    }
}

fn generation_usage(answer: &Answer<GeneratedRows>) -> v1::Usage {
    v1::Usage {
        input_tokens: answer.result.input_tokens,
        output_tokens: answer.result.output_tokens,
        truncated_rows: answer.result.truncated,
        ..usage(answer)
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl InferenceService for Inference {
    type ScoreStreamStream = Answers<v1::ScoreStreamResponse>;
    type GenerateStreamStream = Answers<v1::GenerateStreamResponse>;

    async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        self.score_one(request.into_inner()).await.map(Response::new)
    }

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<v1::GenerateResponse>, Status> {
        self.generate_one(request.into_inner()).await.map(Response::new)
    }

    async fn log_likelihood(
        &self,
        request: Request<v1::LogLikelihoodRequest>,
    ) -> Result<Response<v1::LogLikelihoodResponse>, Status> {
        let request = request.into_inner();
        let target = target("model", request.model, Role::Generator, request.backend, request.dtype)?;
        let input = Likelihood {
            rows: request.rows.into_iter().map(|row| (row.instruction, row.response)).collect(),
            max_source_tokens: request.max_source_tokens,
            max_target_tokens: request.max_target_tokens,
        };
        let answer = self.executors.log_likelihood(target, input).await?;
        let usage = v1::Usage {
            input_tokens: answer.result.input_tokens,
            output_tokens: answer.result.output_tokens,
            truncated_rows: answer.result.truncated,
            ..usage(&answer)
        };
        let rows =
            answer.result.rows.into_iter().map(|(sum, mean)| v1::LogLikelihood { sum, mean }).collect();
        Ok(Response::new(v1::LogLikelihoodResponse { rows, usage: Some(usage) }))
    }

    async fn boost(&self, request: Request<v1::BoostRequest>) -> Result<Response<v1::BoostResponse>, Status> {
        self.boost_all(request.into_inner()).await.map(Response::new)
    }

    async fn score_stream(
        &self,
        request: Request<Streaming<v1::ScoreStreamRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        let this = self.clone();
        let answers = request.into_inner().map(move |message| {
            let this = this.clone();
            async move {
                let request = message?.request.ok_or_else(|| invalid("request", "is missing"))?;
                Ok(v1::ScoreStreamResponse { response: Some(this.score_one(request).await?) })
            }
        });
        Ok(Response::new(Box::pin(answers.buffered(STREAM_DEPTH))))
    }

    async fn generate_stream(
        &self,
        request: Request<Streaming<v1::GenerateStreamRequest>>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let this = self.clone();
        let answers = request.into_inner().map(move |message| {
            let this = this.clone();
            async move {
                let request = message?.request.ok_or_else(|| invalid("request", "is missing"))?;
                Ok(v1::GenerateStreamResponse { response: Some(this.generate_one(request).await?) })
            }
        });
        Ok(Response::new(Box::pin(answers.buffered(STREAM_DEPTH))))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_of_equals_is_best() {
        for (scores, expected) in
            [(vec![0.5], 0), (vec![0.1, 0.9, 0.9], 1), (vec![-1.0, -2.0], 0), (vec![0.0, -0.0], 0)]
        {
            assert_eq!(super::best(&scores), expected, "{scores:?}");
        }
    }
}
