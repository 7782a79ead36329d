//! Answers of an endpoint, for online calls.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cappy_plugin_abi::Control;
use cappy_proto::v1;
use futures::{StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use super::{
    calls::{Answers, Questions},
    status::{busy, invalid},
};
use crate::{
    compute::GenerationInput,
    endpoint::{self, AnsweredRow},
    engine::Engine,
    execution::ExecutionError,
};

/// Calls that ask endpoints at the same time; each has a few threads.
pub const MAX_CALLS: usize = 32;

/// When another try is worth while.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Too many ask endpoints already.
pub fn full() -> Status {
    busy("too many calls ask endpoints", RETRY_AFTER)
}

/// Asks; rows come in their order.
///
/// # Errors
/// In the stream: with the row that the endpoint has no answer to, or why there are none.
pub fn answers(
    engine: Arc<Engine>,
    endpoint: v1::Endpoint,
    questions: Questions,
    call: OwnedSemaphorePermit,
) -> Answers {
    let (send, receive) = mpsc::channel(1);
    let gone = Gone(Arc::default());
    let control = Gone(Arc::clone(&gone.0));
    let fingerprint = endpoint::fingerprint(&endpoint);
    tokio::task::spawn_blocking(move || {
        let _call = call;
        let input = GenerationInput {
            instructions: &questions.instructions,
            row_keys: &questions.row_keys,
            first_row: 0,
            log_likelihood: false,
        };
        let mut waiting = BTreeMap::new();
        let mut next = 0;
        let mut done = |row: usize, answered: AnsweredRow| {
            waiting.insert(row, answered);
            while let Some(answered) = waiting.remove(&next) {
                // A caller that is gone is noticed through the control.
                let _ = send.blocking_send(Ok((next, answered)));
                next += 1;
            }
            Ok(())
        };
        let asked = engine.endpoints.generate(&endpoint, input, &questions.decodings, &control, &mut done);
        if let Err(error) = asked {
            let _ = send.blocking_send(Err(error));
        }
    });
    // The stream holds `gone`: dropped, it ends the asking.
    let state = (receive, gone);
    let rows = stream::unfold(state, move |(mut receive, gone)| {
        let fingerprint = fingerprint.clone();
        async move {
            let row = receive.recv().await?;
            Some((
                row.map_err(refused).and_then(|(index, row)| finished(index, row, fingerprint)),
                (receive, gone),
            ))
        }
    });
    rows.boxed()
}

fn finished(
    index: usize,
    answered: AnsweredRow,
    fingerprint: String,
) -> Result<(crate::compute::GeneratedRow, v1::Usage), Status> {
    if let Some((decoding, reason)) = answered.failures.first() {
        let reason = format!("the endpoint has no usable answer (decoding `{decoding}`): {reason}");
        return Err(invalid(&format!("instructions[{index}]"), reason));
    }
    let usage = v1::Usage {
        model_fingerprint: fingerprint,
        input_tokens: answered.input_tokens,
        output_tokens: answered.row.tokens,
        backend: endpoint::BACKEND.to_owned(),
        ..v1::Usage::default()
    };
    Ok((answered.row, usage))
}

fn refused(error: ExecutionError) -> Status {
    if error.code == "invalid_argument" {
        return invalid("endpoint", error.message);
    }
    error.into()
}

/// Set when it is dropped: nobody reads the answers any more.
struct Gone(Arc<AtomicBool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Control for Gone {
    fn cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
    fn progress(&self, _done: u64, _total: u64) {}
}
