//! Generators that no worker loads: language models behind OpenAI-compatible HTTP endpoints.
//!
//! A row's decoding is one request (`protocol.rs`) for as many samples as the endpoint gives at a time, sent by a few threads
//! (`asking.rs`) through one conversation an endpoint (`conversation.rs`), which keeps the rate, waits when told to, and tries again. What
//! was answered is kept on disk (`answers.rs`), so that a shard that is tried again asks, and pays, only for what is missing.
//!
//! The key goes only to hosts that the worker's operator has allowed (`hosts.rs`), and is never written anywhere.

mod answers;
mod asking;
mod conversation;
mod hosts;
mod pacing;
mod protocol;

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cappy_plugin_abi::Control;
use cappy_proto::v1;
use sha2::{Digest as _, Sha256};

use crate::{
    compute::{Decodings, GenerationInput},
    execution::ExecutionError,
};
use answers::Answers;
pub use asking::AnsweredRow;
use asking::Asking;
use conversation::Conversation;
pub use hosts::AllowedHosts;
use pacing::Gate;

/// What answers of an endpoint say they were computed by.
pub const BACKEND: &str = "openai-compatible endpoint";

/// Requests to one endpoint at the same time.
pub const DEFAULT_CONCURRENCY: usize = 8;

/// For one answer.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// Tries of one request.
pub const DEFAULT_TRIES: u32 = 6;

/// Before the second try; it doubles with each further one.
pub const DEFAULT_FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The secret that endpoints know their customers by.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// `None` when it could not be sent: empty, or with characters that would split a header.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// How endpoints are asked.
#[derive(Clone, Debug)]
pub struct EndpointSettings {
    /// Hosts that may be asked at all.
    pub hosts: AllowedHosts,
    /// Sent to them; `None`: they are asked without.
    pub key: Option<Key>,
    /// Requests to one endpoint at the same time.
    pub concurrency: usize,
    /// For one answer.
    pub timeout: Duration,
    /// Tries of one request.
    pub tries: u32,
    /// Before the second try; it doubles with each further one.
    pub first_pause: Duration,
}

impl Default for EndpointSettings {
    fn default() -> Self {
        Self {
            hosts: AllowedHosts::default(),
            key: None,
            concurrency: DEFAULT_CONCURRENCY,
            timeout: DEFAULT_TIMEOUT,
            tries: DEFAULT_TRIES,
            first_pause: DEFAULT_FIRST_PAUSE,
        }
    }
}

/// The endpoints that a worker has been asked to ask.
pub struct Endpoints {
    settings: EndpointSettings,
    answers: Answers,
    /// By URL: whoever asks, together they keep its rate.
    gates: Mutex<HashMap<String, Arc<Gate>>>,
}

impl Endpoints {
    /// Answers are kept in `dir`.
    pub fn new(settings: EndpointSettings, dir: PathBuf) -> Self {
        Self { settings, answers: Answers::new(dir), gates: Mutex::default() }
    }

    /// Asks an endpoint whether it is there and takes the key; returns what stands for the model's content, which
    /// nobody knows.
    ///
    /// # Errors
    /// When the host is not allowed, the key is refused, or nobody answers.
    pub fn probe(&self, endpoint: &v1::Endpoint) -> Result<String, ExecutionError> {
        self.conversation(endpoint)?.probe()?;
        Ok(fingerprint(endpoint))
    }

    /// Answers every row; `done` is told each when all its decodings are there, in the order in which they come. A
    /// row that the endpoint refuses, or answers with nonsense again and again, has empty samples and says so.
    ///
    /// Likelihoods are not to be had. Beam search is not either.
    ///
    /// # Errors
    /// A decoding that endpoints do not have; a host that is not allowed; a refused key; an endpoint that does not
    /// answer, or refuses most rows. What was answered until then is kept.
    pub fn generate(
        &self,
        endpoint: &v1::Endpoint,
        input: GenerationInput<'_>,
        decodings: &Decodings,
        control: &dyn Control,
        done: &mut dyn FnMut(usize, AnsweredRow) -> Result<(), ExecutionError>,
    ) -> Result<(), ExecutionError> {
        protocol::check(decodings)?;
        let conversation = self.conversation(endpoint)?;
        Asking::new(Arc::new(conversation), self.answers.clone(), input, decodings).run(
            self.settings.concurrency,
            control,
            done,
        )
    }

    fn conversation(&self, endpoint: &v1::Endpoint) -> Result<Conversation, ExecutionError> {
        let authority = hosts::authority(&endpoint.url).map_err(|reason| {
            ExecutionError::permanent("invalid_argument", format!("the endpoint {reason}"))
        })?;
        if !self.settings.hosts.allows(&authority) {
            return Err(ExecutionError::permanent(
                "permission_denied",
                format!(
                    "the worker may not ask `{authority}`: its operator allows hosts with --endpoint-hosts"
                ),
            ));
        }
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|url, gate| url == &endpoint.url || Arc::strong_count(gate) > 1);
        let gate = gates
            .entry(endpoint.url.clone())
            .or_insert_with(|| Arc::new(Gate::new(self.settings.concurrency)));
        gate.limit(endpoint.requests_per_minute);
        Ok(Conversation::new(endpoint, &self.settings, Arc::clone(gate)))
    }
}

/// Stands for the content of a model that nobody but its owner knows: where it is and what it is called.
pub fn fingerprint(endpoint: &v1::Endpoint) -> String {
    hex::encode(Sha256::digest(format!("endpoint\n{}\n{}", endpoint.url, endpoint.model)))
}
