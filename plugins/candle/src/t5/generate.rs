//! All decodings of all rows together.
//!
//! Every step runs one new position of every running sequence (beams and samples of all rows and decodings) as one
//! batch. Finished sequences leave it and waiting rows enter it, so it stays as large as memory allows until the
//! end. A row's first position is computed once for all its decodings.

use super::beam::{self, Candidate, Origin, Snapshot};
use super::bias::Bias;
use super::block::{Model, Run, Scratch, Source, Surroundings};
use super::history::History;
use super::sample::{self, Warp};
use crate::kernels::rowwise;
use cappy_plugin_abi::{Control, Decoding, Failure, Generated, Method, MinLengthRule, random};
use rayon::prelude::*;
use std::sync::Mutex;

/// Bytes that keys and values of running sequences may take.
const HISTORY_BYTES: usize = 1 << 30;
/// Most rows of a block: enough that reading the weights costs little beside the arithmetic, few enough that the
/// block's activations stay in a core's cache.
const BLOCK_ROWS: usize = 96;
/// Rows whose logits are held at once.
const LOGIT_ROWS: usize = 48;

/// What one call works on.
pub struct Batch<'a> {
    /// The model.
    pub model: Model<'a>,
    /// The encoded rows.
    pub sources: &'a [Source],
    /// Decoder's biases, covering the longest `max_length`.
    pub bias: &'a Bias,
    /// What to do with each row.
    pub decodings: &'a [Decoding],
    /// The job's.
    pub seed: u64,
    /// One for each row.
    pub row_keys: &'a [u64],
}

/// A token and its log-probability under the model's own distribution.
#[derive(Clone, Copy)]
struct Pick {
    token: u32,
    log_prob: f32,
}

/// What a search wants to know of a position's distribution.
struct Ask {
    forbidden: Option<u32>,
    choice: Choice,
}

enum Choice {
    /// The most probable tokens.
    Best(usize),
    /// One token by this uniform number.
    Draw(Warp, f64),
}

/// One row of a step.
struct Position<'a> {
    source: usize,
    token: u32,
    /// Step of the sequence's first position.
    start: usize,
    /// Its rows in the steps since.
    path: &'a [u32],
    asks: std::ops::Range<usize>,
}

/// A running sequence.
#[derive(Clone, Default)]
struct Sequence {
    tokens: Vec<Pick>,
    /// See [`Position::path`].
    path: Vec<u32>,
    /// Sum of log-probabilities; beams only.
    score: f32,
}

/// A finished sequence.
type Output = Vec<Pick>;

/// One decoding of one row: a beam search, or one sample.
struct Search {
    row: usize,
    decoding: usize,
    sample: u32,
    start: usize,
    running: Vec<Sequence>,
    beams: Option<(Snapshot, Vec<Output>)>,
    first_ask: usize,
    first_position: usize,
}

/// Refuses settings that no decoding can follow.
///
/// # Errors
/// `InvalidArgument` that names the decoding by its index.
pub fn check(decodings: &[Decoding]) -> Result<(), Failure> {
    for (i, decoding) in decodings.iter().enumerate() {
        let problem = match decoding.method {
            Method::Beam { num_beams: 0, .. } => Some("num_beams must be at least 1"),
            Method::Beam { num_beams, .. } if decoding.num_samples > num_beams => {
                Some("num_samples must not exceed num_beams")
            }
            Method::Beam { length_penalty, .. } if !length_penalty.is_finite() => {
                Some("length_penalty must be finite")
            }
            Method::Sample { temperature, .. } if !(temperature > 0.0 && temperature.is_finite()) => {
                Some("temperature must be positive")
            }
            Method::Sample { top_p, .. } if !(0.0..=1.0).contains(&top_p) => {
                Some("top_p must be between 0 and 1")
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(Failure::invalid_argument(format!("decoding {i}: {problem}")));
        }
    }
    Ok(())
}

impl Batch<'_> {
    /// Runs all rows to their end.
    ///
    /// # Errors
    /// `Cancelled`; `NotFinite` when the model's logits are not.
    pub fn run(
        &self,
        history: &mut History,
        scratch: &Mutex<Vec<Scratch>>,
        control: &dyn Control,
    ) -> Result<Generated, Failure> {
        let config = self.model.config;
        let position_values = config.num_decoder_layers * 2 * config.inner();
        history.reset(position_values);
        let outputs_a_row: usize = self.decodings.iter().map(|d| d.num_samples as usize).sum();
        let mut outputs: Vec<Output> = vec![Output::new(); self.sources.len() * outputs_a_row];
        let longest = self.decodings.iter().map(|d| d.max_length as usize).max().unwrap_or(0);
        let capacity = HISTORY_BYTES / (position_values * longest.max(1) * size_of::<f32>());
        let sequences_a_row: usize = self.decodings.iter().map(Self::width).sum();

        let mut searches: Vec<Search> = Vec::new();
        let (mut waiting, mut step) = (0, 0);
        loop {
            let mut running: usize = searches.iter().map(|s| s.running.len()).sum();
            while waiting < self.sources.len() && (running == 0 || running + sequences_a_row <= capacity) {
                searches.extend(self.searches_of(waiting, step));
                waiting += 1;
                running += sequences_a_row;
                if sequences_a_row == 0 {
                    break;
                }
            }
            let unfinished = {
                let mut rows: Vec<usize> = searches.iter().map(|s| s.row).collect();
                rows.dedup();
                rows.len()
            };
            control.progress((waiting - unfinished) as u64, self.sources.len() as u64);
            if searches.is_empty() {
                if waiting == self.sources.len() {
                    break;
                }
                continue;
            }
            if control.cancelled() {
                return Err(Failure::cancelled("generation was cancelled"));
            }
            history.forget_before(searches.iter().map(|s| s.start).min().unwrap_or(step));
            let picks = self.step(&mut searches, step, history, scratch)?;
            searches.retain_mut(|search| {
                let answers = &picks[search.first_ask..];
                let Some(finished) = self.advance(search, answers, step) else { return true };
                let before: usize =
                    self.decodings[..search.decoding].iter().map(|d| d.num_samples as usize).sum();
                let at = search.row * outputs_a_row + before + search.sample as usize;
                for (slot, sequence) in outputs[at..].iter_mut().zip(finished) {
                    *slot = sequence;
                }
                false
            });
            step += 1;
        }
        Ok(collect(&outputs))
    }

    /// Sequences of a decoding that run at once.
    fn width(decoding: &Decoding) -> usize {
        match decoding.method {
            Method::Beam { num_beams, .. } => num_beams as usize,
            Method::Sample { .. } => decoding.num_samples as usize,
        }
    }

    fn searches_of(&self, row: usize, start: usize) -> Vec<Search> {
        let mut made = Vec::new();
        for (i, decoding) in self.decodings.iter().enumerate() {
            if decoding.max_length < 2 || decoding.num_samples == 0 {
                continue;
            }
            let new = |sample, running, beams| Search {
                row,
                decoding: i,
                sample,
                start,
                running,
                beams,
                first_ask: 0,
                first_position: 0,
            };
            match decoding.method {
                Method::Beam { num_beams, .. } => {
                    let beams = num_beams as usize;
                    let mut running = vec![Sequence { score: beam::NOTHING, ..Default::default() }; beams];
                    running[0].score = 0.0;
                    made.push(new(0, running, Some((Snapshot::new(beams), vec![Output::new(); beams]))));
                }
                Method::Sample { .. } => {
                    made.extend((0..decoding.num_samples).map(|s| new(s, vec![Sequence::default()], None)));
                }
            }
        }
        made
    }

    /// Computes the next position of every running sequence; returns the answers to all asks.
    fn step(
        &self,
        searches: &mut [Search],
        step: usize,
        history: &mut History,
        scratch: &Mutex<Vec<Scratch>>,
    ) -> Result<Vec<Vec<Pick>>, Failure> {
        let mut asks = Vec::new();
        let mut layout = Vec::with_capacity(searches.len());
        let mut positions = 0;
        for (i, search) in searches.iter().enumerate() {
            layout.push((asks.len(), positions));
            // All decodings of a row share its first position.
            let fresh = search.start == step;
            let shared = fresh && searches.get(i + 1).is_some_and(|next| next.row == search.row);
            let count = if fresh { 1 } else { search.running.len() };
            asks.extend((0..count).map(|_| self.ask(search)));
            positions += if shared { 0 } else { count };
        }
        for (search, (first_ask, first_position)) in searches.iter_mut().zip(layout) {
            (search.first_ask, search.first_position) = (first_ask, first_position);
        }
        let mut rows: Vec<Position<'_>> = Vec::with_capacity(positions);
        for search in searches.iter() {
            if search.start == step {
                let end = search.first_ask + 1;
                if rows.len() > search.first_position {
                    rows[search.first_position].asks.end = end;
                } else {
                    let token = self.model.config.start_token;
                    let asks = search.first_ask..end;
                    rows.push(Position { source: search.row, token, start: step, path: &[], asks });
                }
                continue;
            }
            for (i, sequence) in search.running.iter().enumerate() {
                let token = sequence.tokens.last().expect("not the first position").token;
                let asks = search.first_ask + i..search.first_ask + i + 1;
                let (source, start) = (search.row, search.start);
                rows.push(Position { source, token, start, path: &sequence.path, asks });
            }
        }
        let mut now = history.buffer(rows.len());
        let answers = self.blocks(&rows, &asks, &mut now, history, scratch);
        history.push(now);
        answers
    }

    fn ask(&self, search: &Search) -> Ask {
        let decoding = &self.decodings[search.decoding];
        let generated = search.running[0].tokens.len();
        let length = generated as u32 + 1;
        let too_short = match decoding.min_length_rule {
            MinLengthRule::Pytorch => length < decoding.min_length,
            MinLengthRule::Flax => length <= decoding.min_length,
        };
        let choice = match decoding.method {
            Method::Beam { num_beams, .. } => Choice::Best(2 * num_beams as usize),
            Method::Sample { temperature, top_k, top_p } => Choice::Draw(
                Warp { temperature, top_k: top_k as usize, top_p },
                random::token_draw(
                    self.seed,
                    self.row_keys[search.row],
                    decoding.key,
                    search.sample,
                    generated as u32,
                ),
            ),
        };
        Ask { forbidden: too_short.then_some(self.model.config.eos_token), choice }
    }

    fn blocks(
        &self,
        rows: &[Position<'_>],
        asks: &[Ask],
        now: &mut [f32],
        history: &History,
        scratch: &Mutex<Vec<Scratch>>,
    ) -> Result<Vec<Vec<Pick>>, Failure> {
        let block = block_rows(rows.len());
        let values = now.len() / rows.len();
        let alone = rows.len() <= block;
        let answers: Vec<Vec<Vec<Pick>>> = rows
            .par_chunks(block)
            .zip(now.par_chunks_mut(block * values))
            .map(|(rows, now)| {
                let mut s = scratch.lock().expect("no holder panics").pop().unwrap_or_default();
                s.alone = alone;
                let answers = self.block(rows, asks, now, history, &mut s);
                scratch.lock().expect("no holder panics").push(s);
                answers
            })
            .collect::<Result<_, Failure>>()?;
        Ok(answers.into_iter().flatten().collect())
    }

    fn block<'h>(
        &self,
        rows: &[Position<'_>],
        asks: &[Ask],
        now: &mut [f32],
        history: &'h History,
        s: &mut Scratch,
    ) -> Result<Vec<Vec<Pick>>, Failure> {
        let vocab = self.model.config.vocab_size;
        let layer_values = 2 * self.model.config.inner();
        self.model.embed(rows.iter().map(|row| row.token), s);
        let runs = runs(rows.iter().map(|row| row.source));
        let earlier = |row: usize, layer: usize, out: &mut Vec<&'h [f32]>| {
            let Position { start, path, .. } = rows[row];
            out.extend(path.iter().enumerate().map(|(position, &stored)| {
                &history.at(start + position, stored as usize)[layer * layer_values..][..layer_values]
            }));
        };
        let around = Surroundings { runs: &runs, sources: self.sources, bias: self.bias };
        self.model.decode_step(rows.len(), around, earlier, now, s);
        let mut buffers = sample::Buffers::default();
        let mut answers = Vec::new();
        for first in (0..rows.len()).step_by(LOGIT_ROWS) {
            let count = LOGIT_ROWS.min(rows.len() - first);
            let logits = self.model.logits(first, count, s);
            for (row, logits) in rows[first..first + count].iter().zip(logits.chunks_exact(vocab)) {
                let log_total = rowwise::log_sum_exp(logits);
                if !log_total.is_finite() {
                    return Err(Failure::not_finite(format!(
                        "logits of encoded row {} are not finite",
                        row.source
                    )));
                }
                let pick = |(token, logit): (u32, f32)| Pick { token, log_prob: logit - log_total };
                for ask in &asks[row.asks.clone()] {
                    answers.push(match ask.choice {
                        Choice::Best(count) => {
                            sample::top_tokens(logits, ask.forbidden, count).into_iter().map(pick).collect()
                        }
                        Choice::Draw(warp, u) => {
                            let token = sample::draw(logits, ask.forbidden, warp, u, &mut buffers);
                            vec![pick((token, logits[token as usize]))]
                        }
                    });
                }
            }
        }
        Ok(answers)
    }

    /// Takes a search one token further; returns its outputs once it is over.
    fn advance(&self, search: &mut Search, answers: &[Vec<Pick>], step: usize) -> Option<Vec<Output>> {
        let decoding = &self.decodings[search.decoding];
        let eos = self.model.config.eos_token;
        let generated = search.running[0].tokens.len();
        let full = generated + 2 >= decoding.max_length as usize;
        let Method::Beam { num_beams, length_penalty, early_stopping } = decoding.method else {
            let sequence = &mut search.running[0];
            sequence.path.push(search.first_position as u32);
            sequence.tokens.push(answers[0][0]);
            return (full || answers[0][0].token == eos).then(|| vec![std::mem::take(&mut sequence.tokens)]);
        };
        let fresh = search.start == step;
        let scored = search.running.iter().enumerate().flat_map(|(beam, sequence)| {
            let picks = &answers[if fresh { 0 } else { beam }];
            picks.iter().map(move |pick| ((beam, pick.token), sequence.score + pick.log_prob))
        });
        let num_beams = num_beams as usize;
        let chosen = beam::best(scored.collect(), 2 * num_beams);
        let candidates: Vec<Candidate> = chosen
            .iter()
            .map(|&((_, token), score)| Candidate { score, ends: full || token == eos })
            .collect();
        let extended = |candidate: usize| {
            let (beam, token) = chosen[candidate].0;
            let picks = &answers[if fresh { 0 } else { beam }];
            let pick = picks.iter().find(|p| p.token == token).expect("chosen from these");
            let mut tokens = search.running[beam].tokens.clone();
            tokens.push(*pick);
            (beam, tokens)
        };
        let settings = beam::Settings {
            num_beams,
            length_penalty,
            // One beam is greedy search, which the reference ends at the first end token.
            early_stopping: early_stopping || num_beams == 1,
        };
        let (snapshot, kept) = search.beams.as_mut().expect("a beam search has its state");
        let decided = beam::advance(settings, snapshot, generated, &candidates);
        let places = decided.origins.iter().map(|&origin| match origin {
            Origin::Place(i) => kept[i].clone(),
            Origin::Candidate(i) => extended(i).1,
        });
        let places: Vec<Output> = places.collect();
        if decided.done {
            return Some(places.into_iter().take(decoding.num_samples as usize).collect());
        }
        (*snapshot, *kept) = (decided.after, places);
        let running = decided.running.iter().map(|&(candidate, score)| {
            let (beam, tokens) = extended(candidate);
            let mut path = search.running[beam].path.clone();
            path.push((search.first_position + if fresh { 0 } else { beam }) as u32);
            Sequence { tokens, path, score }
        });
        search.running = running.collect();
        None
    }
}

/// Rows of a block: equal shares, as many as a multiple of the threads, none above [`BLOCK_ROWS`].
pub fn block_rows(rows: usize) -> usize {
    let threads = rayon::current_num_threads();
    // Few rows are worth more as one block whose products the threads share: the weights are read once.
    if rows <= 12 * threads {
        return rows;
    }
    let blocks = rows.div_ceil(BLOCK_ROWS).next_multiple_of(threads);
    rows.div_ceil(blocks)
}

/// Groups consecutive rows by source.
pub fn runs(sources: impl Iterator<Item = usize>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (row, source) in sources.enumerate() {
        match runs.last_mut() {
            Some(run) if run.source == source => run.rows += 1,
            _ => runs.push(Run { first: row, rows: 1, source }),
        }
    }
    runs
}

fn collect(outputs: &[Output]) -> Generated {
    let mut generated = Generated { offsets: vec![0], ..Default::default() };
    for sequence in outputs {
        generated.tokens.extend(sequence.iter().map(|p| p.token));
        generated.log_probs.extend(sequence.iter().map(|p| p.log_prob));
        generated.offsets.push(generated.tokens.len() as u32);
    }
    generated
}
