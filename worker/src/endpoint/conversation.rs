//! One endpoint's HTTP: a request, its answer, and what to do when there is none.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use cappy_plugin_abi::{Decoding, random};
use cappy_proto::v1;
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, StatusCode},
};

use super::{
    EndpointSettings, Key,
    pacing::Gate,
    protocol::{self, Api, LengthField, Reply},
};
use crate::execution::ExecutionError;

/// To connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest pause before another try, whatever the endpoint asks for.
const MAX_PAUSE: Duration = Duration::from_secs(120);

/// Longest answer that is read.
const MAX_BODY_BYTES: u64 = 16 << 20;

/// What is repeated of an endpoint's own words.
const MAX_REASON_CHARS: usize = 200;

/// How often a pause looks whether it is wanted no more.
const POLL: Duration = Duration::from_millis(50);

/// See the module.
pub struct Conversation {
    agent: Agent,
    api: Api,
    url: String,
    models_url: String,
    model: String,
    key: Option<Key>,
    gate: Arc<Gate>,
    tries: u32,
    first_pause: Duration,
    /// The endpoint refused the older name of the length limit.
    newer_length: AtomicBool,
    jitter: AtomicU64,
}

/// Why there is no reply.
#[derive(Debug)]
pub enum NoReply {
    /// Nobody wants it any more.
    Stopped,
    /// This request is refused, or its answer is nonsense; others may do better.
    Request(String),
    /// No request will do better.
    Endpoint(ExecutionError),
}

/// A try that failed.
enum Failed {
    Again {
        reason: String,
        pause: Option<Duration>,
    },
    /// With the newer name of the length limit it may do.
    OtherLength,
    Final(NoReply),
}

impl Conversation {
    pub fn new(endpoint: &v1::Endpoint, settings: &EndpointSettings, gate: Arc<Gate>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Whoever is redirected to was not allowed.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(settings.timeout))
            .user_agent(concat!("cappy/", env!("CARGO_PKG_VERSION")))
            .build();
        let (api, url) = protocol::request_url(&endpoint.url);
        Self {
            agent: Agent::new_with_config(config),
            api,
            url,
            models_url: protocol::models_url(&endpoint.url),
            model: endpoint.model.clone(),
            key: settings.key.clone(),
            gate,
            tries: settings.tries.max(1),
            first_pause: settings.first_pause,
            newer_length: AtomicBool::new(false),
            jitter: AtomicU64::new(SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64)),
        }
    }

    /// Where requests go, and for which model: part of what answers depend on.
    pub fn target(&self) -> [&str; 2] {
        [&self.url, &self.model]
    }

    /// Asks whether the endpoint is there and takes the key; costs nothing.
    pub fn probe(&self) -> Result<(), ExecutionError> {
        let stop = AtomicBool::new(false);
        let listed = self.persistently(&stop, || {
            let request = self.agent.get(&self.models_url);
            let sent = match &self.key {
                Some(key) => request.header("authorization", format!("Bearer {}", key.text())).call(),
                None => request.call(),
            };
            let response = sent.map_err(|error| again(&error))?;
            match response.status() {
                // Not every server has the list.
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                    Ok(())
                }
                status if status.is_success() => Ok(()),
                _ => Err(self.refusal(response)),
            }
        });
        match listed {
            Ok(()) | Err(NoReply::Stopped) => Ok(()),
            Err(NoReply::Endpoint(error)) => Err(error),
            Err(NoReply::Request(reason)) => Err(ExecutionError::permanent(
                "bad_model",
                format!("the endpoint refuses to list its models: {reason}"),
            )),
        }
    }

    /// Asks for samples; the endpoint may give fewer.
    pub fn ask(
        &self,
        prompt: &str,
        decoding: &Decoding,
        samples: u32,
        seed: u64,
        stop: &AtomicBool,
    ) -> Result<Reply, NoReply> {
        self.persistently(stop, || {
            let length = match self.newer_length.load(Ordering::Relaxed) {
                false => LengthField::MaxTokens,
                true => LengthField::MaxCompletionTokens,
            };
            let body = protocol::body(self.api, length, &self.model, prompt, decoding, samples, seed);
            let mut request = self.agent.post(&self.url).header("content-type", "application/json");
            if let Some(key) = &self.key {
                request = request.header("authorization", format!("Bearer {}", key.text()));
            }
            let mut response = request.send(body.to_string()).map_err(|error| again(&error))?;
            if !response.status().is_success() {
                return Err(self.refusal(response));
            }
            let answer = response.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec();
            let answer = match answer {
                Ok(answer) => answer,
                Err(ureq::Error::BodyExceedsLimit(bytes)) => {
                    let reason = format!("an answer of more than {bytes} bytes");
                    return Err(Failed::Final(NoReply::Request(reason)));
                }
                Err(error) => return Err(again(&error)),
            };
            protocol::read(self.api, &answer).map_err(|reason| Failed::Final(NoReply::Request(reason)))
        })
    }

    /// Tries until there is a reply, with pauses that grow, and as long as the endpoint asks for.
    fn persistently<T>(
        &self,
        stop: &AtomicBool,
        mut attempt: impl FnMut() -> Result<T, Failed>,
    ) -> Result<T, NoReply> {
        let mut tried = 0;
        loop {
            let Some(inside) = self.gate.enter(stop) else { return Err(NoReply::Stopped) };
            let result = attempt();
            drop(inside);
            let (reason, pause) = match result {
                Ok(reply) => return Ok(reply),
                Err(Failed::Final(why)) => return Err(why),
                Err(Failed::OtherLength) => {
                    self.newer_length.store(true, Ordering::Relaxed);
                    continue;
                }
                Err(Failed::Again { reason, pause }) => (reason, pause),
            };
            tried += 1;
            if tried >= self.tries {
                let message = format!("the endpoint does not answer: {reason}, {tried} times");
                return Err(NoReply::Endpoint(ExecutionError::attempt("unavailable", message)));
            }
            tracing::warn!(reason, tried, "an endpoint did not answer, trying again");
            match pause {
                // It wants to be left alone by everybody.
                Some(pause) => self.gate.pause(pause.min(MAX_PAUSE)),
                None => self.sleep(self.first_pause.saturating_mul(1 << (tried - 1).min(10)), stop),
            }
        }
    }

    /// Half to all of a pause, so that those who failed together do not come back together.
    fn sleep(&self, pause: Duration, stop: &AtomicBool) {
        let share = 0.5 + 0.5 * random::uniform(self.jitter.fetch_add(1, Ordering::Relaxed));
        let end = std::time::Instant::now() + pause.min(MAX_PAUSE).mul_f64(share);
        while !stop.load(Ordering::Relaxed) {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(POLL));
        }
    }

    /// What an error status means.
    fn refusal(&self, mut response: Response<Body>) -> Failed {
        let status = response.status();
        let pause = retry_after(response.headers());
        let body = response.body_mut().with_config().limit(MAX_BODY_BYTES).read_to_vec().unwrap_or_default();
        let reason = self.reason(status, &body);
        let endpoint = |code, message: String| {
            Failed::Final(NoReply::Endpoint(ExecutionError::permanent(code, message)))
        };
        match status.as_u16() {
            401 | 403 => endpoint(
                "permission_denied",
                format!("the endpoint refuses the key ({status}): set OPENAI_API_KEY where the worker runs"),
            ),
            404 => endpoint("not_found", format!("the endpoint has no such model or address: {reason}")),
            // Nothing is left to pay with, which waiting does not change.
            429 if reason.contains("insufficient_quota") => endpoint("permission_denied", reason),
            400 if reason.contains("max_completion_tokens") && !self.newer_length.load(Ordering::Relaxed) => {
                Failed::OtherLength
            }
            408 | 409 | 425 | 429 | 500..=599 => Failed::Again { reason, pause },
            300..=399 => {
                endpoint("not_found", format!("the endpoint is somewhere else ({status}): give its own URL"))
            }
            _ => Failed::Final(NoReply::Request(reason)),
        }
    }

    /// The endpoint's own words, without the key should they repeat it.
    fn reason(&self, status: StatusCode, body: &[u8]) -> String {
        let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |path| value.pointer(path).and_then(serde_json::Value::as_str);
        let words = [text("/error/code"), text("/error/message").or(text("/message")).or(text("/detail"))];
        let mut words = words.into_iter().flatten().collect::<Vec<_>>().join(": ");
        if let Some(key) = &self.key {
            words = words.replace(key.text(), "***");
        }
        let words: String =
            words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON_CHARS).collect();
        if words.is_empty() { status.to_string() } else { format!("{status}: {words}") }
    }
}

/// No answer came over the wire.
fn again(error: &ureq::Error) -> Failed {
    let reason = match error {
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        // The rest may name addresses of the worker's own network.
        ureq::Error::HostNotFound => "the host is not known".to_owned(),
        ureq::Error::ConnectionFailed | ureq::Error::Io(_) => "the connection broke".to_owned(),
        ureq::Error::Protocol(_) => "the answer is not HTTP".to_owned(),
        _ => "the request could not be sent".to_owned(),
    };
    tracing::debug!(%error, "an endpoint could not be asked");
    Failed::Again { reason, pause: None }
}

/// `Retry-After`, in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_says_when_to_come_again() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(retry_after(&HeaderMap::new()), None);
        assert_eq!(of("2"), Some(Duration::from_secs(2)));
        assert_eq!(of("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(of("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO), "long ago");
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(30));
        assert!(of(&soon).is_some_and(|pause| pause > Duration::from_secs(20)));
        for wrong in ["-1", "soon", "nan", "1e300"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
