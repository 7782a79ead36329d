//! A thread and a bounded queue for each model in use.
//!
//! Scoring calls that wait together run together: their rows are packed as if they had come in one call.

use std::{
    collections::{HashMap, VecDeque},
    panic,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use cappy_plugin_abi::{Control, Failure};
use tokio::sync::oneshot;
use tonic::Status;

use super::status::{abandoned, busy};
use crate::{
    compute::{
        self, Decodings, GeneratedRows, GenerationInput, LikelihoodInput, Likelihoods, ScoreInput, ScoredRows,
    },
    engine::{Choice, Engine},
    execution::ExecutionError,
    residency::{Loaded, Role},
};

/// Models that may have a thread at the same time.
const MAX_EXECUTORS: usize = 64;

/// A thread that had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(60);

/// Pairs that are scored together at most; more wait for the next round.
const MAX_JOINED_PAIRS: usize = 4096;

/// Which model a call is for, as the caller says it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Directory, hub id or short name.
    pub model: String,
    /// What it is used as.
    pub role: Role,
    /// Empty: any.
    pub backend: String,
    /// Empty: the worker's.
    pub dtype: String,
}

/// Instructions to answer.
pub struct Generation {
    /// One a row.
    pub instructions: Vec<String>,
    /// One a row.
    pub row_keys: Vec<u64>,
    /// For messages.
    pub first_row: u64,
    /// Settings of all rows.
    pub decodings: Decodings,
    /// Compute likelihoods.
    pub log_likelihood: bool,
}

/// Pairs to judge.
pub struct Likelihood {
    /// Instruction and response.
    pub rows: Vec<(String, String)>,
    /// 0: the default.
    pub max_source_tokens: u32,
    /// 0: the default.
    pub max_target_tokens: u32,
}

/// A result with what it cost.
#[derive(Debug)]
pub struct Answer<T> {
    /// What was asked for.
    pub result: T,
    /// Content of the model that answered.
    pub fingerprint: String,
    /// `candle 0.1.0 f32 cpu`
    pub backend: String,
    /// Time in the queue.
    pub queued: Duration,
    /// Time of the computation, shared with the calls that were joined.
    pub computed: Duration,
}

type Reply<T> = oneshot::Sender<Result<Answer<T>, ExecutionError>>;

struct Job<I, T> {
    input: I,
    reply: Reply<T>,
    queued_at: Instant,
}

/// Instructions, each with its responses.
type ScoreJob = Job<Vec<(String, Vec<String>)>, ScoredRows>;

enum Work {
    Score(ScoreJob),
    Generate(Job<Generation, GeneratedRows>),
    Likelihood(Job<Likelihood, Likelihoods>),
}

impl Work {
    fn abandoned(&self) -> bool {
        match self {
            Self::Score(job) => job.reply.is_closed(),
            Self::Generate(job) => job.reply.is_closed(),
            Self::Likelihood(job) => job.reply.is_closed(),
        }
    }

    fn fail(self, error: ExecutionError) {
        // A caller that is gone does not mind.
        let _ = match self {
            Self::Score(job) => job.reply.send(Err(error)).is_ok(),
            Self::Generate(job) => job.reply.send(Err(error)).is_ok(),
            Self::Likelihood(job) => job.reply.send(Err(error)).is_ok(),
        };
    }
}

/// The threads. Cheap to clone.
#[derive(Clone)]
pub struct Executors {
    engine: Arc<Engine>,
    queue: usize,
    threads: Arc<Mutex<HashMap<Target, SyncSender<Work>>>>,
}

impl Executors {
    /// At most `queue` calls wait for each model.
    pub fn new(engine: Arc<Engine>, queue: usize) -> Self {
        Self { engine, queue: queue.max(1), threads: Arc::default() }
    }

    /// Scores of instructions with their responses.
    pub async fn score(
        &self,
        target: Target,
        rows: Vec<(String, Vec<String>)>,
    ) -> Result<Answer<ScoredRows>, Status> {
        self.submit(target, rows, Work::Score).await
    }

    /// Responses to instructions.
    pub async fn generate(&self, target: Target, input: Generation) -> Result<Answer<GeneratedRows>, Status> {
        self.submit(target, input, Work::Generate).await
    }

    /// Likelihoods of pairs.
    pub async fn log_likelihood(
        &self,
        target: Target,
        input: Likelihood,
    ) -> Result<Answer<Likelihoods>, Status> {
        self.submit(target, input, Work::Likelihood).await
    }

    async fn submit<I, T>(
        &self,
        target: Target,
        input: I,
        work: impl FnOnce(Job<I, T>) -> Work,
    ) -> Result<Answer<T>, Status> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(target, work(Job { input, reply, queued_at: Instant::now() }))?;
        Ok(answer.await.map_err(|_| abandoned())??)
    }

    fn enqueue(&self, target: Target, work: Work) -> Result<(), Status> {
        // Sending under the lock: a thread that is about to end sees the work or is not chosen.
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if !threads.contains_key(&target) {
            if threads.len() >= MAX_EXECUTORS {
                return Err(busy("too many models are in use"));
            }
            let (send, receive) = sync_channel(self.queue);
            let executor =
                Executor { all: self.clone(), target: target.clone(), receive, next: VecDeque::new() };
            thread::Builder::new()
                .name("cappy-executor".to_owned())
                .spawn(move || executor.run())
                .map_err(|_| busy("no more threads"))?;
            threads.insert(target.clone(), send);
        }
        match threads[&target].try_send(work) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err(busy("the model's queue is full")),
            Err(TrySendError::Disconnected(_)) => {
                threads.remove(&target);
                Err(abandoned())
            }
        }
    }
}

struct Executor {
    all: Executors,
    target: Target,
    receive: Receiver<Work>,
    next: VecDeque<Work>,
}

impl Executor {
    fn run(mut self) {
        while let Some(work) = self.take() {
            if work.abandoned() {
                continue;
            }
            let started = Instant::now();
            // A defect fails its call, not the model's thread.
            let result = panic::catch_unwind(panic::AssertUnwindSafe(|| self.serve(work, started)));
            if result.is_err() {
                tracing::error!(model = self.target.model, "a call panicked");
            }
        }
    }

    /// The next work; `None` when there was none for a while and the thread has signed off.
    fn take(&mut self) -> Option<Work> {
        if let Some(work) = self.next.pop_front() {
            return Some(work);
        }
        if let Ok(work) = self.receive.recv_timeout(IDLE) {
            return Some(work);
        }
        let mut threads = self.all.threads.lock().unwrap_or_else(PoisonError::into_inner);
        match self.receive.try_recv() {
            Ok(work) => Some(work),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                threads.remove(&self.target);
                None
            }
        }
    }

    fn serve(&mut self, work: Work, started: Instant) {
        let choice = Choice { backend: &self.target.backend, dtype: &self.target.dtype };
        let loaded = match self.all.engine.by_name(&self.target.model, self.target.role, choice) {
            Ok(loaded) => loaded,
            Err(error) => return work.fail(error),
        };
        match (work, loaded) {
            (Work::Score(first), Loaded::Scorer(scorer)) => {
                let jobs = self.join(first);
                self.score(&scorer, jobs, started);
            }
            (Work::Generate(job), Loaded::Generator(generator)) => {
                let control = Waiting(|| job.reply.is_closed());
                let input = GenerationInput {
                    instructions: &job.input.instructions,
                    row_keys: &job.input.row_keys,
                    first_row: job.input.first_row,
                    log_likelihood: job.input.log_likelihood,
                };
                let budget = self.all.engine.budgets.generate;
                let result = compute::generate(&generator, input, &job.input.decodings, budget, &control);
                finish(job, result, &generator.fingerprint, &generator.backend, started);
            }
            (Work::Likelihood(job), Loaded::Generator(generator)) => {
                let control = Waiting(|| job.reply.is_closed());
                let input = LikelihoodInput {
                    rows: &job.input.rows,
                    first_row: 0,
                    max_source_tokens: job.input.max_source_tokens,
                    max_target_tokens: job.input.max_target_tokens,
                };
                let budget = self.all.engine.budgets.generate;
                let result = compute::log_likelihoods(&generator, input, budget, &control);
                finish(job, result, &generator.fingerprint, &generator.backend, started);
            }
            (work, _) => work.fail(ExecutionError::internal("a model was loaded in another role")),
        }
    }

    /// More scoring calls that wait already; what is no scoring call keeps its turn.
    fn join(&mut self, first: ScoreJob) -> Vec<ScoreJob> {
        let pairs =
            |rows: &[(String, Vec<String>)]| rows.iter().map(|(_, responses)| responses.len()).sum::<usize>();
        let mut total = pairs(&first.input);
        let mut jobs = vec![first];
        while total < MAX_JOINED_PAIRS
            && let Ok(work) = self.receive.try_recv()
        {
            match work {
                Work::Score(job) if job.reply.is_closed() => {}
                Work::Score(job) => {
                    total += pairs(&job.input);
                    jobs.push(job);
                }
                other => {
                    self.next.push_back(other);
                    break;
                }
            }
        }
        jobs
    }

    fn score(
        &self,
        scorer: &crate::residency::Resident<dyn cappy_plugin_abi::Scorer>,
        jobs: Vec<ScoreJob>,
        started: Instant,
    ) {
        let budget = self.all.engine.budgets.score;
        let compute = |rows: &[(String, Vec<String>)], control: &dyn Control| {
            compute::score(scorer, ScoreInput { rows, first_row: 0, max_tokens: 0 }, budget, control)
        };
        if jobs.len() > 1 {
            let rows: Vec<_> = jobs.iter().flat_map(|job| job.input.iter().cloned()).collect();
            let control = Waiting(|| jobs.iter().all(|job| job.reply.is_closed()));
            if let Ok(together) = compute(&rows, &control) {
                let all_pairs: usize = together.scores.iter().map(Vec::len).sum();
                let mut scores = together.scores.into_iter();
                for job in jobs {
                    let scores: Vec<Vec<f32>> = scores.by_ref().take(job.input.len()).collect();
                    // Joined calls share the cost by their pairs.
                    let pairs: usize = scores.iter().map(Vec::len).sum();
                    let share =
                        |total: u64| (total * pairs as u64).checked_div(all_pairs as u64).unwrap_or(0);
                    let result = ScoredRows {
                        tokens: share(together.tokens),
                        truncated: share(together.truncated),
                        scores,
                    };
                    finish(job, Ok(result), &scorer.fingerprint, &scorer.backend, started);
                }
                return;
            }
        }
        // One call's bad row must not fail the others, and its message counts its own rows.
        for job in jobs {
            let control = Waiting(|| job.reply.is_closed());
            let result = compute(&job.input, &control);
            finish(job, result, &scorer.fingerprint, &scorer.backend, started);
        }
    }
}

fn finish<I, T>(
    job: Job<I, T>,
    result: Result<T, Failure>,
    fingerprint: &str,
    backend: &str,
    started: Instant,
) {
    let answer = result.map_err(ExecutionError::from).map(|result| Answer {
        result,
        fingerprint: fingerprint.to_owned(),
        backend: backend.to_owned(),
        queued: started.saturating_duration_since(job.queued_at),
        computed: started.elapsed(),
    });
    let _ = job.reply.send(answer);
}

/// Goes on while somebody waits for the answer.
struct Waiting<F>(F);

impl<F: Fn() -> bool + Sync> Control for Waiting<F> {
    fn cancelled(&self) -> bool {
        (self.0)()
    }
    fn progress(&self, _done: u64, _total: u64) {}
}
