//! All decodings of all rows together.
//!
//! Every step runs one new position of every running sequence (beams and samples of all rows and decodings) as one
//! batch. Finished sequences leave it and waiting rows enter it, so it stays as large as memory allows until the
//! end. A row's first position is computed once for all its decodings.

use super::bias::Bias;
use super::block::{Model, Run, Scratch, Source, Surroundings};
use super::history::History;
use super::sample;
use super::search::{self, Ask, Choice, Output, Pick, Search};
use crate::kernels::rowwise;
use cappy_plugin_abi::{Control, Decoding, Failure, Generated};
use rayon::prelude::*;
use std::sync::Mutex;

/// Most rows of a block: enough that reading the weights costs little beside the arithmetic, few enough that the
/// block's activations stay in a core's cache.
const BLOCK_ROWS: usize = 112;
/// Rows whose logits are held at once.
const LOGIT_ROWS: usize = 56;

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
    /// Bytes that keys and values of running sequences may take.
    pub history_bytes: usize,
    /// The job's.
    pub seed: u64,
    /// One for each row.
    pub row_keys: &'a [u64],
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

/// Where a search's rows and answers begin.
struct Place {
    first_position: usize,
    first_ask: usize,
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
        let capacity = self.history_bytes / (position_values * longest.max(1) * size_of::<f32>());
        let sequences_a_row: usize = self.decodings.iter().map(search::width).sum();

        let mut searches: Vec<Search> = Vec::new();
        let (mut waiting, mut step) = (0, 0);
        loop {
            let mut running: usize = searches.iter().map(|s| s.running.len()).sum();
            while waiting < self.sources.len() && (running == 0 || running + sequences_a_row <= capacity) {
                searches.extend(Search::of_row(waiting, self.decodings, step));
                running += sequences_a_row;
                waiting += 1;
            }
            let unfinished = searches.chunk_by(|a, b| a.row == b.row).count();
            control.progress((waiting - unfinished) as u64, self.sources.len() as u64);
            if searches.is_empty() {
                break;
            }
            if control.cancelled() {
                return Err(Failure::cancelled("generation was cancelled"));
            }
            history.forget_before(searches.iter().map(|s| s.start).min().unwrap_or(step));
            let (places, answers) = self.step(&searches, step, history, scratch)?;
            let mut places = places.into_iter();
            searches.retain_mut(|search| {
                let Place { first_position, first_ask } = places.next().expect("one a search");
                let decoding = &self.decodings[search.decoding];
                let finished =
                    search.advance(decoding, config.eos_token, &answers[first_ask..], first_position);
                let Some(finished) = finished else { return true };
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

    /// Computes the next position of every running sequence. Returns for each search its first row and its first
    /// answer, and the answers.
    fn step(
        &self,
        searches: &[Search],
        step: usize,
        history: &mut History,
        scratch: &Mutex<Vec<Scratch>>,
    ) -> Result<(Vec<Place>, Vec<Vec<Pick>>), Failure> {
        let config = self.model.config;
        let mut places = Vec::with_capacity(searches.len());
        let (mut rows, mut asks) = (Vec::<Position<'_>>::new(), Vec::new());
        for search in searches {
            let Search { row: source, start, .. } = *search;
            let ask = || {
                let decoding = &self.decodings[search.decoding];
                search.ask(decoding, config.eos_token, self.seed, self.row_keys[source])
            };
            let first_ask = asks.len();
            if start < step {
                places.push(Place { first_position: rows.len(), first_ask });
                for sequence in &search.running {
                    let token = sequence.tokens.last().expect("it has a first position").token;
                    let asks_at = asks.len()..asks.len() + 1;
                    rows.push(Position { source, token, start, path: &sequence.path, asks: asks_at });
                    asks.push(ask());
                }
                continue;
            }
            asks.push(ask());
            // All searches of a source share its first position.
            match rows.last_mut() {
                Some(last) if last.start == step && last.source == source => last.asks.end += 1,
                _ => rows.push(Position {
                    source,
                    token: config.start_token,
                    start,
                    path: &[],
                    asks: first_ask..first_ask + 1,
                }),
            }
            places.push(Place { first_position: rows.len() - 1, first_ask });
        }
        let mut now = history.buffer(rows.len());
        let answers = self.blocks(&rows, &asks, &mut now, history, scratch);
        history.push(now);
        Ok((places, answers?))
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
