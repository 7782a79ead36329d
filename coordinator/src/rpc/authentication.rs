//! Who may call what. A token is checked before any service sees the call, on every service but `grpc.health.v1`, which
//! probes ask without one.
//!
//! No token, or an unknown one: UNAUTHENTICATED. A known one of another role: PERMISSION_DENIED.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::Either;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Status, body::Body, codegen::http};
use tower::{Layer, Service};

use crate::config::Tokens;

/// Called by workers alone.
const WORKERS: &str = "/cappy.v1.WorkerService/";
/// Called by clients and by workers.
const BOTH: [&str; 2] = ["/cappy.v1.ArtifactService/", "/cappy.v1.ClusterService/GetModel"];
/// Called by anybody.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Checks the token of every call.
#[derive(Clone, Debug)]
pub(super) struct Authentication(Option<Arc<Known>>);

/// Hashes of tokens: their comparison tells nothing about the tokens.
#[derive(Debug)]
struct Known {
    client: [u8; 32],
    worker: [u8; 32],
}

impl Authentication {
    /// Without tokens everybody may call everything.
    pub(super) fn new(tokens: Option<&Tokens>) -> Self {
        Self(tokens.map(|tokens| {
            let worker = tokens.worker.as_ref().unwrap_or(&tokens.client);
            Arc::new(Known { client: hash(&tokens.client), worker: hash(worker) })
        }))
    }

    fn check(&self, path: &str, headers: &http::HeaderMap) -> Result<(), Status> {
        let Some(known) = &self.0 else { return Ok(()) };
        if path.starts_with(OPEN) {
            return Ok(());
        }
        let token = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        let Some(token) = token else {
            return Err(Status::unauthenticated(
                "the call has no token; give one with --token or --token-file",
            ));
        };
        let token = hash(token);
        let (client, worker) = (token == known.client, token == known.worker);
        if !client && !worker {
            return Err(Status::unauthenticated("the token is not one that this coordinator knows"));
        }
        let allowed = if path.starts_with(WORKERS) {
            worker
        } else {
            client || BOTH.iter().any(|both| path.starts_with(both))
        };
        let whose = if worker { "a worker's" } else { "a client's" };
        if allowed {
            Ok(())
        } else {
            Err(Status::new(Code::PermissionDenied, format!("{whose} token does not allow this call")))
        }
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

impl<S> Layer<S> for Authentication {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authenticated { inner, authentication: self.clone() }
    }
}

/// Services behind the check.
#[derive(Clone, Debug)]
pub(super) struct Authenticated<S> {
    inner: S,
    authentication: Authentication,
}

impl<S, B> Service<http::Request<B>> for Authenticated<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<S::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        match self.authentication.check(request.uri().path(), request.headers()) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_needs_a_token_of_its_role() {
        let tokens = Tokens { client: "c1".into(), worker: Some("w1".into()) };
        let two = Authentication::new(Some(&tokens));
        let one = Authentication::new(Some(&Tokens { worker: None, ..tokens }));
        let open = Authentication::new(None);
        let code = |auth: &Authentication, path: &str, header: &str| {
            let mut headers = http::HeaderMap::new();
            if !header.is_empty() {
                headers.insert("authorization", header.parse().unwrap());
            }
            auth.check(path, &headers).err().map(|status| status.code())
        };
        let (jobs, artifacts) = ("/cappy.v1.JobService/GetJob", "/cappy.v1.ArtifactService/Upload");
        let (workers, model) = ("/cappy.v1.WorkerService/Session", "/cappy.v1.ClusterService/GetModel");
        let list = "/cappy.v1.ClusterService/ListWorkers";
        let (unauthenticated, denied) = (Some(Code::Unauthenticated), Some(Code::PermissionDenied));
        for path in
            [jobs, artifacts, workers, model, list, "/grpc.reflection.v1.ServerReflection/x", "/nothing"]
        {
            for header in ["", "Bearer", "Bearer ", "Bearer c2", "Basic c1", "c1", "Bearer c1 c1"] {
                assert_eq!(code(&two, path, header), unauthenticated, "{path} {header}");
            }
            assert_eq!(code(&open, path, ""), None);
            assert_eq!(code(&one, path, "bearer c1"), None);
        }
        for (path, client, worker) in [
            (jobs, None, denied),
            (list, None, denied),
            (artifacts, None, None),
            (model, None, None),
            (workers, denied, None),
            ("/cappy.v1.InferenceService/Score", None, denied),
        ] {
            assert_eq!(code(&two, path, "Bearer c1"), client, "{path}");
            assert_eq!(code(&two, path, "Bearer w1"), worker, "{path}");
        }
        assert_eq!(code(&two, "/grpc.health.v1.Health/Check", ""), None);
    }
}
