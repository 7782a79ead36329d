//! All decodings of all rows, asked by a few threads: what is kept is not asked again, what comes is kept at once.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use cappy_plugin_abi::{Control, Method, random};

use super::{
    answers::{Answers, Kept, Name},
    conversation::{Conversation, NoReply},
};
use crate::{
    compute::{Decodings, GeneratedRow, GenerationInput, Sample},
    execution::ExecutionError,
};

/// Requests for the same samples that were answered with nonsense, before these stay empty.
const NONSENSE_TRIES: u32 = 3;

/// How often it is looked whether the work was cancelled.
const POLL: Duration = Duration::from_millis(50);

/// A row's answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnsweredRow {
    /// The samples; their tokens as the endpoint counted.
    pub row: GeneratedRow,
    /// Of the prompts, as the endpoint counted.
    pub input_tokens: u64,
    /// Decodings whose samples are empty because the endpoint refused the request or answered with nonsense, and why.
    pub failures: Vec<(String, String)>,
}

/// One row and decoding.
#[derive(Clone, Copy)]
struct Task {
    row: usize,
    decoding: usize,
}

/// What came of it.
struct Done {
    kept: Kept,
    failure: Option<String>,
}

/// See the module.
pub struct Asking {
    conversation: Arc<Conversation>,
    answers: Answers,
    prompts: Vec<String>,
    keys: Vec<u64>,
    decodings: Decodings,
    tasks: Mutex<VecDeque<Task>>,
    stop: AtomicBool,
}

impl Asking {
    pub fn new(
        conversation: Arc<Conversation>,
        answers: Answers,
        input: GenerationInput<'_>,
        decodings: &Decodings,
    ) -> Self {
        let all = (0..input.instructions.len())
            .flat_map(|row| (0..decodings.settings.len()).map(move |decoding| Task { row, decoding }));
        Self {
            tasks: Mutex::new(all.collect()),
            conversation,
            answers,
            prompts: input.instructions.to_vec(),
            keys: input.row_keys.to_vec(),
            decodings: decodings.clone(),
            stop: AtomicBool::new(false),
        }
    }

    /// Runs to the end, or until it is cancelled or cannot go on; requests that are under way then are not waited for,
    /// and what they bring is kept.
    pub fn run(
        self,
        threads: usize,
        control: &dyn Control,
        done: &mut dyn FnMut(usize, AnsweredRow) -> Result<(), ExecutionError>,
    ) -> Result<(), ExecutionError> {
        let (rows, decodings) = (self.prompts.len(), self.decodings.settings.len());
        let names = self.decodings.names.clone();
        let this = Arc::new(self);
        let (send, receive) = mpsc::channel();
        for _ in 0..threads.clamp(1, rows * decodings + 1) {
            let (this, send) = (Arc::clone(&this), send.clone());
            thread::Builder::new()
                .name("cappy-endpoint".to_owned())
                .spawn(move || this.work(&send))
                .map_err(|error| ExecutionError::disk("start a thread", &error))?;
        }
        drop(send);
        // However this ends, the threads take no more tasks.
        let _stop = Stop(&this.stop);
        let mut open: Vec<Vec<Option<Done>>> =
            (0..rows).map(|_| (0..decodings).map(|_| None).collect()).collect();
        let (mut finished, mut refused) = (0_usize, Vec::new());
        while finished < rows {
            if control.cancelled() {
                return Err(ExecutionError::from(cappy_plugin_abi::Failure::cancelled("cancelled")));
            }
            let (task, result): (Task, Result<Done, ExecutionError>) = match receive.recv_timeout(POLL) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ExecutionError::internal(
                        "asking the endpoint met a defect; the worker's log tells more",
                    ));
                }
            };
            open[task.row][task.decoding] = Some(result?);
            if open[task.row].iter().any(Option::is_none) {
                continue;
            }
            finished += 1;
            let row = assemble(&names, std::mem::take(&mut open[task.row]).into_iter().flatten());
            if let Some((name, reason)) = row.failures.first() {
                refused.push(format!("decoding `{name}`: {reason}"));
            }
            done(task.row, row)?;
            control.progress(finished as u64, rows as u64);
        }
        // A few bad rows are survived; when there is hardly a good one, something else is wrong.
        if refused.len() > rows / 2 && rows > 1 {
            let message = format!(
                "the endpoint has no usable answer to {} of {rows} rows: {}",
                refused.len(),
                refused[0]
            );
            return Err(ExecutionError::attempt("invalid_argument", message));
        }
        if !refused.is_empty() {
            tracing::warn!(
                rows = refused.len(),
                first = refused[0],
                "an endpoint had no usable answer to some rows"
            );
        }
        Ok(())
    }

    fn work(&self, send: &mpsc::Sender<(Task, Result<Done, ExecutionError>)>) {
        while !self.stop.load(Ordering::Relaxed) {
            let task = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(task) = task else { return };
            let Some(result) = self.answer(task).transpose() else { return };
            if result.is_err() {
                // Nothing more is asked, and paid for, in vain.
                self.stop.store(true, Ordering::Relaxed);
            }
            if send.send((task, result)).is_err() {
                return;
            }
        }
    }

    /// All samples of a row and decoding; `None` when nobody wants them any more.
    fn answer(&self, task: Task) -> Result<Option<Done>, ExecutionError> {
        let decoding = &self.decodings.settings[task.decoding];
        let wanted = decoding.num_samples as usize;
        let prompt = &self.prompts[task.row];
        let key =
            random::fold(random::fold(random::mix(self.decodings.seed), self.keys[task.row]), decoding.key);
        let [url, model] = self.conversation.target();
        let settings = match decoding.method {
            Method::Sample { temperature, top_k, top_p } => {
                format!(
                    "temperature {temperature} top_k {top_k} top_p {top_p} tokens {}",
                    decoding.max_length
                )
            }
            Method::Beam { .. } => unreachable!("beam search was refused before"),
        };
        let name = Name::of(&[url, model, prompt, &settings, &key.to_string()]);
        let mut kept = self.answers.read(&name);
        let mut nonsense = 0;
        let mut failure = None;
        while kept.texts.len() < wanted {
            let missing = (wanted - kept.texts.len()) as u32;
            // Another try for the same samples is another draw.
            let seed = random::fold(random::fold(key, kept.texts.len() as u64), u64::from(nonsense));
            match self.conversation.ask(prompt, decoding, missing, seed, &self.stop) {
                Ok(reply) => {
                    kept.texts.extend(reply.texts.into_iter().take(missing as usize));
                    kept.input_tokens += reply.input_tokens;
                    kept.output_tokens += reply.output_tokens;
                    self.answers.write(&name, &kept);
                }
                Err(NoReply::Stopped) => return Ok(None),
                Err(NoReply::Endpoint(error)) => return Err(error),
                Err(NoReply::Request(reason)) => {
                    nonsense += 1;
                    if nonsense >= NONSENSE_TRIES {
                        failure = Some(reason);
                        break;
                    }
                }
            }
        }
        kept.texts.truncate(wanted);
        kept.texts.resize(wanted, String::new());
        Ok(Some(Done { kept, failure }))
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn assemble(names: &[String], parts: impl Iterator<Item = Done>) -> AnsweredRow {
    let mut row = AnsweredRow::default();
    for (name, done) in names.iter().zip(parts) {
        let sample = |response| Sample { response, log_likelihood: None };
        row.row.samples.push(done.kept.texts.into_iter().map(sample).collect());
        row.row.tokens += done.kept.output_tokens;
        row.input_tokens += done.kept.input_tokens;
        row.failures.extend(done.failure.map(|reason| (name.clone(), reason)));
    }
    row
}
