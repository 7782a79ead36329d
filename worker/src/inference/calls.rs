//! Online calls from texts to answers: the model is found and loaded, texts become units, units wait in the model's
//! line, answers are put together again.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use cappy_plugin_abi::{Code, Failure};
use cappy_proto::v1;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::sync::Semaphore;
use tonic::Status;

use super::{
    elsewhere,
    line::{Lines, Pending, Reply, Rules},
    loading::{Loading, Named},
    queue::{Lane, Unit},
    status::{abandoned, invalid},
    work::{Answering, Generating, Judging, Prompt, Scoring, Target},
};
use crate::{
    batching::distinct,
    compute::{self, Decodings, GeneratedRow, RefusedRow},
    engine::Engine,
    execution::ExecutionError,
};

/// A larger call is bulk work, whichever way it came.
const MAX_INTERACTIVE_TOKENS: usize = 8192;

/// How a call is to be treated.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    lane: Lane,
    /// Wait for room instead of being turned away: a stream, whose sender is slowed down by that.
    patient: bool,
}

impl Manner {
    /// Somebody waits for the answer.
    pub const UNARY: Self = Self { lane: Lane::Interactive, patient: false };
    /// One message of many.
    pub const STREAMED: Self = Self { lane: Lane::Bulk, patient: true };

    fn lane<U: Unit>(self, units: &[U]) -> Lane {
        let tokens: usize = units.iter().map(Unit::tokens).sum();
        if tokens > MAX_INTERACTIVE_TOKENS { Lane::Bulk } else { self.lane }
    }
}

/// Instructions to answer.
pub struct Questions {
    /// One a row.
    pub instructions: Vec<String>,
    /// Randomness key of each row.
    pub row_keys: Vec<u64>,
    /// Settings of all rows.
    pub decodings: Decodings,
    /// Compute likelihoods.
    pub log_likelihood: bool,
}

/// Rows in their order, each when it and all before it are done.
pub type Answers = BoxStream<'static, Result<(GeneratedRow, v1::Usage), Status>>;

/// The models' lines. Cheap to clone.
#[derive(Clone)]
pub struct Calls {
    loading: Loading,
    scoring: Arc<Lines<Scoring>>,
    generating: Arc<Lines<Generating>>,
    judging: Arc<Lines<Judging>>,
    elsewhere: Arc<Semaphore>,
}

impl Calls {
    /// Computes with `engine`.
    pub fn new(engine: Arc<Engine>, rules: Rules) -> Self {
        Self {
            loading: Loading::new(engine),
            scoring: Arc::new(Lines::new(rules)),
            generating: Arc::new(Lines::new(rules)),
            judging: Arc::new(Lines::new(rules)),
            elsewhere: Arc::new(Semaphore::new(elsewhere::MAX_CALLS)),
        }
    }

    /// Raw logits of instructions with their responses, `[rows][responses]`.
    ///
    /// # Errors
    /// With the row that is wrong; RESOURCE_EXHAUSTED when too much waits.
    pub async fn score(
        &self,
        named: Named,
        rows: Vec<(String, Vec<String>)>,
        manner: Manner,
    ) -> Result<(Vec<Vec<f32>>, v1::Usage), Status> {
        let scorer = self.loading.scorer(named).await?;
        compute::check_labels(&scorer).map_err(ExecutionError::from)?;
        let budget = self.loading.engine().budgets.score;
        let line = self.scoring.of(place(&scorer), || Scoring { scorer: Arc::clone(&scorer), budget });
        let call = line.admit(manner.patient).await?;
        let encoded = off_thread("rows", move || compute::encode_pairs(&scorer, &rows, 0)).await?;

        let counts: Vec<usize> = encoded.iter().map(Vec::len).collect();
        let truncated = encoded.iter().flatten().filter(|pair| pair.truncated).count() as u64;
        let row_of: Vec<usize> =
            counts.iter().enumerate().flat_map(|(row, &count)| std::iter::repeat_n(row, count)).collect();
        let (units, places) = distinct(encoded.into_iter().flatten());
        let tokens = units.iter().map(Unit::tokens).sum::<usize>() as u64;
        let lane = manner.lane(&units);
        let pending = line.submit(call, units, lane, manner.patient).await?;
        let named = |unit: usize| {
            let pair = places.iter().position(|&place| place == unit).unwrap_or(0);
            format!("rows[{}]", row_of[pair])
        };
        let (scores, mut cost) = all(pending, named).await?;
        cost.usage.input_tokens = tokens;
        cost.usage.truncated_rows = truncated;
        cost.usage.model_fingerprint.clone_from(&line.work().scorer.fingerprint);
        cost.usage.backend.clone_from(&line.work().scorer.backend);
        let mut flat = places.into_iter().map(|place| scores[place]);
        Ok((counts.into_iter().map(|count| flat.by_ref().take(count).collect()).collect(), cost.usage))
    }

    /// Sum and mean of the log-likelihood of responses after their instructions.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub async fn log_likelihood(
        &self,
        named: Named,
        rows: Vec<(String, String)>,
        max_source_tokens: u32,
        max_target_tokens: u32,
        manner: Manner,
    ) -> Result<(Vec<(f64, f64)>, v1::Usage), Status> {
        let generator = self.loading.generator(named).await?;
        let budget = self.loading.engine().budgets.generate;
        let line =
            self.judging.of(place(&generator), || Judging { generator: Arc::clone(&generator), budget });
        let call = line.admit(manner.patient).await?;
        let encode = move || compute::encode_targets(&generator, &rows, max_source_tokens, max_target_tokens);
        let encoded = off_thread("rows", encode).await?;

        let mut usage = v1::Usage {
            truncated_rows: encoded.iter().filter(|(a, b)| a.truncated || b.truncated).count() as u64,
            output_tokens: encoded.iter().map(|(_, target)| target.ids.len() as u64).sum(),
            ..v1::Usage::default()
        };
        let units = encoded.into_iter().map(|(source, target)| Target { source, target });
        let (units, places) = distinct(units);
        usage.input_tokens = units.iter().map(|unit| unit.source.ids.len() as u64).sum();
        let lane = manner.lane(&units);
        let pending = line.submit(call, units, lane, manner.patient).await?;
        let named = |unit| format!("rows[{}]", places.iter().position(|&place| place == unit).unwrap_or(0));
        let (found, cost) = all(pending, named).await?;
        let usage = v1::Usage {
            model_fingerprint: line.work().generator.fingerprint.clone(),
            backend: line.work().generator.backend.clone(),
            queue_seconds: cost.usage.queue_seconds,
            compute_seconds: cost.usage.compute_seconds,
            ..usage
        };
        Ok((places.into_iter().map(|place| found[place]).collect(), usage))
    }

    /// Answers to instructions, a row at a time.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub async fn generate(
        &self,
        named: Named,
        questions: Questions,
        manner: Manner,
    ) -> Result<Answers, Status> {
        let generator = self.loading.generator(named).await?;
        let budget = self.loading.engine().budgets.generate;
        let line = self
            .generating
            .of(place(&generator), || Generating { generator: Arc::clone(&generator), budget });
        let call = line.admit(manner.patient).await?;
        let Questions { instructions, row_keys, decodings, log_likelihood } = questions;
        let answering = Arc::new(Answering::new(decodings, log_likelihood));
        let max_tokens = answering.decodings().max_source_tokens;
        let encode = move || compute::encode_sources(&generator, &instructions, max_tokens);
        let encoded = off_thread("instructions", encode).await?;

        let prompt = |(source, key)| Prompt { source, key, answering: Arc::clone(&answering) };
        let prompts: Vec<Prompt> = encoded.into_iter().zip(row_keys).map(prompt).collect();
        let sizes: Vec<(u64, bool)> =
            prompts.iter().map(|prompt| (prompt.source.ids.len() as u64, prompt.source.truncated)).collect();
        let (units, places) = distinct(prompts);
        let lane = manner.lane(&units);
        let pending = line.submit(call, units, lane, manner.patient).await?;
        let rows = Rows {
            model_fingerprint: line.work().generator.fingerprint.clone(),
            backend: line.work().generator.backend.clone(),
            done: BTreeMap::new(),
            batches: Cost::default(),
            next: 0,
            pending,
            places,
            sizes,
        };
        let answers = stream::unfold(Some(rows), |rows| async {
            let mut rows = rows?;
            match rows.row().await? {
                Ok(row) => Some((Ok(row), Some(rows))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(answers.boxed())
    }

    /// Answers of an endpoint, a row at a time.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when too many ask; in the stream what the endpoint says.
    pub async fn ask(
        &self,
        endpoint: v1::Endpoint,
        questions: Questions,
        manner: Manner,
    ) -> Result<Answers, Status> {
        let calls = Arc::clone(&self.elsewhere);
        let call = if manner.patient {
            calls.acquire_owned().await.map_err(|_| abandoned())?
        } else {
            calls.try_acquire_owned().map_err(|_| elsewhere::full())?
        };
        Ok(elsewhere::answers(Arc::clone(self.loading.engine()), endpoint, questions, call))
    }
}

/// Where a model is in memory.
fn place<M: ?Sized>(model: &Arc<M>) -> usize {
    Arc::as_ptr(model).cast::<()>() as usize
}

/// Tokenizes on a thread that may block.
async fn off_thread<T: Send + 'static>(
    field: &str,
    encode: impl FnOnce() -> Result<T, RefusedRow> + Send + 'static,
) -> Result<T, Status> {
    let encoded = tokio::task::spawn_blocking(encode).await.map_err(|_| abandoned())?;
    encoded.map_err(|refused| invalid(&format!("{field}[{}]", refused.row), refused.error.to_string()))
}

/// What the batches of a call took.
#[derive(Default)]
struct Cost {
    usage: v1::Usage,
    counted: Vec<Instant>,
}

impl Cost {
    fn add<A>(&mut self, reply: &Reply<A>) {
        let queued = reply.queued.as_secs_f64();
        if self.counted.is_empty() || queued < self.usage.queue_seconds {
            self.usage.queue_seconds = queued;
        }
        if !self.counted.contains(&reply.began) {
            self.counted.push(reply.began);
            self.usage.compute_seconds += reply.computed.as_secs_f64();
        }
    }
}

/// Every answer, in the order of the units.
async fn all<A>(mut pending: Pending<A>, named: impl Fn(usize) -> String) -> Result<(Vec<A>, Cost), Status> {
    let mut cost = Cost::default();
    let mut answers = BTreeMap::new();
    while let Some(reply) = pending.next().await {
        let reply = reply?;
        cost.add(&reply);
        answers.insert(reply.index, reply.result.map_err(|failure| failed(&named(reply.index), failure))?);
    }
    Ok((answers.into_values().collect(), cost))
}

/// A failure of one row.
fn failed(field: &str, failure: Failure) -> Status {
    if failure.code == Code::InvalidArgument {
        return invalid(field, failure.message);
    }
    let mut error = ExecutionError::from(failure);
    error.message = format!("{field}: {}", error.message);
    error.into()
}

/// Generated rows on their way out.
struct Rows {
    pending: Pending<GeneratedRow>,
    /// The unit of each row.
    places: Vec<usize>,
    /// Tokens of each row, and whether it was cut.
    sizes: Vec<(u64, bool)>,
    /// Units that are done, with the time in the queue and of the computation that nobody was charged for yet.
    done: BTreeMap<usize, (GeneratedRow, Duration, Duration)>,
    batches: Cost,
    next: usize,
    model_fingerprint: String,
    backend: String,
}

impl Rows {
    async fn row(&mut self) -> Option<Result<(GeneratedRow, v1::Usage), Status>> {
        let unit = *self.places.get(self.next)?;
        while !self.done.contains_key(&unit) {
            let reply = match self.pending.next().await? {
                Ok(reply) => reply,
                Err(status) => return Some(Err(status)),
            };
            let before = self.batches.usage.compute_seconds;
            self.batches.add(&reply);
            let computed = Duration::from_secs_f64(self.batches.usage.compute_seconds - before);
            match reply.result {
                Ok(row) => drop(self.done.insert(reply.index, (row, reply.queued, computed))),
                Err(failure) => {
                    let row = self.places.iter().position(|&place| place == reply.index).unwrap_or(0);
                    return Some(Err(failed(&format!("instructions[{row}]"), failure)));
                }
            }
        }
        let (tokens, truncated) = self.sizes[self.next];
        self.next += 1;
        // Equal rows share a unit; it is kept for the last of them.
        let again = self.places[self.next..].contains(&unit);
        let (row, queued, computed) = if again {
            let kept = self.done.get_mut(&unit).expect("it was just there");
            (kept.0.clone(), kept.1, std::mem::take(&mut kept.2))
        } else {
            self.done.remove(&unit).expect("it was just there")
        };
        let usage = v1::Usage {
            model_fingerprint: self.model_fingerprint.clone(),
            backend: self.backend.clone(),
            input_tokens: tokens,
            output_tokens: row.tokens,
            truncated_rows: truncated.into(),
            queue_seconds: queued.as_secs_f64(),
            compute_seconds: computed.as_secs_f64(),
        };
        Some(Ok((row, usage)))
    }
}
