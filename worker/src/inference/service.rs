//! `InferenceService`: requests checked, answers put into messages.

use std::{pin::Pin, time::Duration};

use cappy_plugin_abi::Failure;
use cappy_proto::{
    timeout,
    v1::{self, inference_service_server::InferenceService},
};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tonic::{Extensions, Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{
    admission,
    calls::{Answers, Calls, Manner, Questions},
    checks,
    status::invalid,
};
use crate::{
    compute::{GeneratedRow, Sample, row_keys},
    settings::{decodings, default_settings, endpoint_settings},
};

/// Requests of one stream that are worked on at the same time.
const STREAM_DEPTH: usize = 8;

/// The service.
#[derive(Clone)]
pub struct Inference {
    calls: Calls,
}

/// What a generation gave, all rows of it.
struct Generated {
    /// Names of the decodings.
    names: Vec<String>,
    rows: Vec<GeneratedRow>,
    usage: v1::Usage,
}

impl Inference {
    /// Answers with `calls`.
    pub fn new(calls: Calls) -> Self {
        Self { calls }
    }

    async fn score_rows(
        &self,
        request: v1::ScoreRequest,
        manner: Manner,
    ) -> Result<v1::ScoreResponse, Status> {
        let named = checks::named("model", &request.model, &request.backend, &request.dtype)?;
        checks::score_rows(&request.rows, true)?;
        let rows = request.rows.into_iter().map(|row| (row.instruction, row.responses)).collect();
        let (scores, usage) = self.calls.score(named, rows, manner).await?;
        let rows = scores.into_iter().map(|scores| v1::ScoredRow { scores }).collect();
        Ok(v1::ScoreResponse { rows, usage: Some(usage) })
    }

    /// Names of the decodings, and the rows to come.
    async fn answers(
        &self,
        request: v1::GenerateRequest,
        manner: Manner,
    ) -> Result<(Vec<String>, Answers), Status> {
        let named = match &request.endpoint {
            Some(_) if request.log_likelihood => {
                return Err(invalid("log_likelihood", "is not available at an endpoint"));
            }
            Some(_) => None,
            None => Some(checks::named("model", &request.model, &request.backend, &request.dtype)?),
        };
        checks::instructions(&request.instructions)?;
        let defaults = if named.is_some() { default_settings } else { endpoint_settings };
        let settings = request.settings.unwrap_or_else(defaults);
        let wrong = |failure: Failure| invalid("settings", failure.message);
        let decodings = decodings(&settings).map_err(wrong)?;
        let names = decodings.names.clone();
        let questions = Questions {
            row_keys: row_keys(&request.row_namespace, request.first_row, &request.instructions),
            instructions: request.instructions,
            decodings,
            log_likelihood: request.log_likelihood,
        };
        let answers = match (named, request.endpoint) {
            (Some(named), _) => self.calls.generate(named, questions, manner).await?,
            (None, endpoint) => self.calls.ask(endpoint.unwrap_or_default(), questions, manner).await?,
        };
        Ok((names, answers))
    }

    async fn generate_rows(&self, request: v1::GenerateRequest, manner: Manner) -> Result<Generated, Status> {
        let (names, mut answers) = self.answers(request, manner).await?;
        let mut usage = v1::Usage::default();
        let mut rows = Vec::new();
        while let Some((row, cost)) = answers.try_next().await? {
            usage = v1::Usage {
                input_tokens: usage.input_tokens + cost.input_tokens,
                output_tokens: usage.output_tokens + cost.output_tokens,
                truncated_rows: usage.truncated_rows + cost.truncated_rows,
                queue_seconds: if rows.is_empty() {
                    cost.queue_seconds
                } else {
                    usage.queue_seconds.min(cost.queue_seconds)
                },
                compute_seconds: usage.compute_seconds + cost.compute_seconds,
                ..cost
            };
            rows.push(row);
        }
        Ok(Generated { names, rows, usage })
    }

    /// A message a row, each as soon as it and all before it are done.
    async fn generate_stream_rows(
        self,
        request: Result<v1::GenerateStreamRequest, Status>,
    ) -> Messages<v1::GenerateStreamResponse> {
        let answers = async {
            let request = request?.request.ok_or_else(|| invalid("request", "is missing"))?;
            self.answers(request, Manner::STREAMED).await
        };
        match answers.await {
            Err(status) => Box::pin(stream::once(async { Err(status) })),
            Ok((names, answers)) => Box::pin(answers.map_ok(move |(row, usage)| {
                let rows = vec![message(&names, row)];
                v1::GenerateStreamResponse {
                    response: Some(v1::GenerateResponse { rows, usage: Some(usage) }),
                }
            })),
        }
    }

    async fn judge(&self, request: v1::LogLikelihoodRequest) -> Result<v1::LogLikelihoodResponse, Status> {
        let named = checks::named("model", &request.model, &request.backend, &request.dtype)?;
        checks::likelihood_rows(&request.rows)?;
        let rows = request.rows.into_iter().map(|row| (row.instruction, row.response)).collect();
        let limits = (request.max_source_tokens, request.max_target_tokens);
        let (rows, usage) = self.calls.log_likelihood(named, rows, limits.0, limits.1, Manner::UNARY).await?;
        let rows = rows.into_iter().map(|(sum, mean)| v1::LogLikelihood { sum, mean }).collect();
        Ok(v1::LogLikelihoodResponse { rows, usage: Some(usage) })
    }

    async fn boost_rows(&self, request: v1::BoostRequest) -> Result<v1::BoostResponse, Status> {
        let v1::BoostRequest { scorer, model, rows, settings, dtype, backend, endpoint } = request;
        checks::named("scorer", &scorer, &backend, &dtype)?;
        checks::score_rows(&rows, false)?;
        let generates = !model.is_empty() || endpoint.is_some();
        if !generates && let Some(row) = rows.iter().position(|row| row.responses.is_empty()) {
            let reason = "there are no candidates: give responses, or a generator as `model`";
            return Err(invalid(&format!("rows[{row}].responses"), reason));
        }
        let mut usage = v1::Usage::default();
        let mut candidates: Vec<Vec<String>> = rows.iter().map(|row| row.responses.clone()).collect();
        if generates {
            let generate = v1::GenerateRequest {
                model,
                instructions: rows.iter().map(|row| row.instruction.clone()).collect(),
                settings,
                dtype: dtype.clone(),
                backend: backend.clone(),
                endpoint,
                ..v1::GenerateRequest::default()
            };
            let generated = self.generate_rows(generate, Manner::UNARY).await?;
            usage = generated.usage;
            for (list, row) in candidates.iter_mut().zip(generated.rows) {
                list.extend(row.samples.into_iter().flatten().map(|sample| sample.response));
            }
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
        let scored = self.score_rows(score, Manner::UNARY).await?;
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

fn message(names: &[String], row: GeneratedRow) -> v1::GeneratedRow {
    let sample = |sample: Sample| v1::Sample {
        response: sample.response,
        log_likelihood_sum: sample.log_likelihood.map(|(sum, _)| sum),
        log_likelihood_mean: sample.log_likelihood.map(|(_, mean)| mean),
    };
    let decodings = names.iter().zip(row.samples).map(|(name, samples)| v1::DecodingSamples {
        name: name.clone(),
        samples: samples.into_iter().map(sample).collect(),
    });
    v1::GeneratedRow { decodings: decodings.collect() }
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

/// Answers a call within its deadline, and tells the log what it took.
async fn unary<I, T>(
    method: &'static str,
    request: Request<I>,
    work: impl AsyncFnOnce(I) -> Result<T, Status>,
) -> Result<Response<T>, Status> {
    let (metadata, mut extensions, message) = request.into_parts();
    // Held until the answer is there.
    let _place = admission::place(&mut extensions);
    let started = std::time::Instant::now();
    let result = match timeout(&metadata) {
        None => work(message).await,
        Some(time) => tokio::time::timeout(time, work(message)).await.unwrap_or_else(|_| Err(late(time))),
    };
    let code = result.as_ref().err().map_or(tonic::Code::Ok, Status::code);
    let seconds = started.elapsed().as_secs_f64();
    tracing::debug!(method, ?code, seconds, trace = trace(&metadata), "answered");
    result.map(Response::new)
}

fn late(time: Duration) -> Status {
    Status::deadline_exceeded(format!("not done within the deadline of {} ms", time.as_millis()))
}

/// The caller's trace (W3C), for the log.
fn trace(metadata: &MetadataMap) -> &str {
    metadata.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default()
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Messages until the deadline, from a call that keeps its place while they come; after an error none.
fn streamed<T: Send + 'static>(
    metadata: &MetadataMap,
    mut extensions: Extensions,
    messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Response<Messages<T>> {
    let place = admission::place(&mut extensions);
    let deadline = timeout(metadata).map(|time| (tokio::time::Instant::now() + time, time));
    let state = Some((Box::pin(messages), place));
    let messages = stream::unfold(state, move |state| async move {
        let (mut messages, place) = state?;
        let message = match deadline {
            None => messages.next().await?,
            Some((at, time)) => tokio::time::timeout_at(at, messages.next())
                .await
                .unwrap_or_else(|_| Some(Err(late(time))))?,
        };
        let state = message.is_ok().then_some((messages, place));
        Some((message, state))
    });
    Response::new(Box::pin(messages))
}

#[tonic::async_trait]
impl InferenceService for Inference {
    type ScoreStreamStream = Messages<v1::ScoreStreamResponse>;
    type GenerateStreamStream = Messages<v1::GenerateStreamResponse>;

    async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        unary("Score", request, async |message| self.score_rows(message, Manner::UNARY).await).await
    }

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<v1::GenerateResponse>, Status> {
        unary("Generate", request, async |request| {
            let generated = self.generate_rows(request, Manner::UNARY).await?;
            let rows = generated.rows.into_iter().map(|row| message(&generated.names, row)).collect();
            Ok(v1::GenerateResponse { rows, usage: Some(generated.usage) })
        })
        .await
    }

    async fn log_likelihood(
        &self,
        request: Request<v1::LogLikelihoodRequest>,
    ) -> Result<Response<v1::LogLikelihoodResponse>, Status> {
        unary("LogLikelihood", request, async |message| self.judge(message).await).await
    }

    async fn boost(&self, request: Request<v1::BoostRequest>) -> Result<Response<v1::BoostResponse>, Status> {
        unary("Boost", request, async |message| self.boost_rows(message).await).await
    }

    async fn score_stream(
        &self,
        request: Request<Streaming<v1::ScoreStreamRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        let this = self.clone();
        let (metadata, extensions, messages) = request.into_parts();
        let answers = messages.map(move |message| {
            let this = this.clone();
            async move {
                let request = message?.request.ok_or_else(|| invalid("request", "is missing"))?;
                let response = this.score_rows(request, Manner::STREAMED).await?;
                Ok(v1::ScoreStreamResponse { response: Some(response) })
            }
        });
        Ok(streamed(&metadata, extensions, answers.buffered(STREAM_DEPTH)))
    }

    async fn generate_stream(
        &self,
        request: Request<Streaming<v1::GenerateStreamRequest>>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let this = self.clone();
        let (metadata, extensions, messages) = request.into_parts();
        let answers = messages.map(move |message| this.clone().generate_stream_rows(message));
        Ok(streamed(&metadata, extensions, answers.buffered(STREAM_DEPTH).flatten()))
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
