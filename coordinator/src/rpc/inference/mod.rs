//! `InferenceService` on the coordinator: a router with no state beyond membership. Each call goes to the worker that
//! will answer it soonest (`route.rs`); deadline, trace and metadata go with it. A worker that dies before it has
//! answered, or has no room, is passed over for another; a stream goes on elsewhere from its first unanswered row
//! (`relay.rs`).

mod relay;
mod route;

use cappy_proto::v1;
use tonic::{Request, Response, Status, Streaming};

use crate::context::Context;
use relay::{Relay, relay};
use route::{Call, Router};

#[derive(Clone)]
pub(super) struct Inference {
    router: Router,
}

impl Inference {
    pub(super) fn new(context: Context) -> Self {
        Self { router: Router::new(context) }
    }
}

impl Call for v1::ScoreRequest {
    fn backend(&self) -> &str {
        &self.backend
    }
    fn models(&self) -> [&str; 2] {
        [&self.model, ""]
    }
    fn rows(&self) -> usize {
        self.rows.iter().map(|row| row.responses.len()).sum()
    }
}

impl Call for v1::GenerateRequest {
    fn backend(&self) -> &str {
        &self.backend
    }
    fn models(&self) -> [&str; 2] {
        [&self.model, ""]
    }
    fn rows(&self) -> usize {
        self.instructions.len().saturating_mul(route::ROWS_PER_GENERATION)
    }
}

impl Call for v1::LogLikelihoodRequest {
    fn backend(&self) -> &str {
        &self.backend
    }
    fn models(&self) -> [&str; 2] {
        [&self.model, ""]
    }
    fn rows(&self) -> usize {
        self.rows.len()
    }
}

impl Call for v1::BoostRequest {
    fn backend(&self) -> &str {
        &self.backend
    }
    fn models(&self) -> [&str; 2] {
        [&self.scorer, &self.model]
    }
    fn rows(&self) -> usize {
        let given: usize = self.rows.iter().map(|row| row.responses.len()).sum();
        let generates = !self.model.is_empty() || self.endpoint.is_some();
        given + if generates { self.rows.len().saturating_mul(route::ROWS_PER_GENERATION) } else { 0 }
    }
}

#[tonic::async_trait]
impl v1::inference_service_server::InferenceService for Inference {
    async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        let answer = self.router.call(request, async |client, request| client.score(request).await);
        let (answer, [model, _]) = answer.await?;
        self.router.learn(&model, answer.usage.as_ref());
        Ok(Response::new(answer))
    }

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> Result<Response<v1::GenerateResponse>, Status> {
        let answer = self.router.call(request, async |client, request| client.generate(request).await);
        let (answer, [model, _]) = answer.await?;
        self.router.learn(&model, answer.usage.as_ref());
        Ok(Response::new(answer))
    }

    async fn log_likelihood(
        &self,
        request: Request<v1::LogLikelihoodRequest>,
    ) -> Result<Response<v1::LogLikelihoodResponse>, Status> {
        let answer = self.router.call(request, async |client, request| client.log_likelihood(request).await);
        let (answer, [model, _]) = answer.await?;
        self.router.learn(&model, answer.usage.as_ref());
        Ok(Response::new(answer))
    }

    async fn boost(&self, request: Request<v1::BoostRequest>) -> Result<Response<v1::BoostResponse>, Status> {
        let answer = self.router.call(request, async |client, request| client.boost(request).await);
        let (answer, [scorer, _]) = answer.await?;
        self.router.learn(&scorer, answer.usage.as_ref());
        Ok(Response::new(answer))
    }

    type ScoreStreamStream = Relay<v1::ScoreStreamResponse>;

    async fn score_stream(
        &self,
        request: Request<Streaming<v1::ScoreStreamRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        relay(self.router.clone(), request)
    }

    type GenerateStreamStream = Relay<v1::GenerateStreamResponse>;

    async fn generate_stream(
        &self,
        request: Request<Streaming<v1::GenerateStreamRequest>>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        relay(self.router.clone(), request)
    }
}
