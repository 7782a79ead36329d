//! All decodings of all rows together.
//!
//! Rows that begin together are a cohort: their sequences are equally long, so that keys and values of all are one
//! tensor (`cache.rs`). A step runs one new position of every sequence (beams and samples of all rows and decodings)
//! as one batch through the linear layers; attention goes by cohorts. Finished sequences leave, and when there is room
//! waiting rows begin as another cohort. A row's first position is computed once for all its decodings.

use cappy_plugin_abi::{Decoding, Failure, Generated};
use cappy_plugin_models::t5::search::{self, Ask, Output, Pick, Search};
use tch::{Device, Tensor};

use super::cache::{Cache, Shape};
use super::choice::{self, Position};
use super::cross::Encoding;
use super::model::{Pass, attend};
use super::positions::Positions;
use crate::engine::Result;

/// Rows whose logits are held at once: they stay in the processor's cache.
const LOGIT_ROWS: usize = 64;
/// On a GPU: half a gigabyte for a vocabulary of 32,128 tokens.
const GPU_LOGIT_ROWS: usize = 4096;

/// What one call works on.
pub struct Batch<'a> {
    /// The model.
    pub pass: Pass<'a>,
    /// The encoded rows.
    pub encoding: &'a Encoding,
    /// The decoder's, covering the longest `max_length`.
    pub positions: &'a Positions,
    /// What to do with each row.
    pub decodings: &'a [Decoding],
    /// Bytes that keys and values of running sequences may take.
    pub cache_bytes: usize,
    /// The job's.
    pub seed: u64,
    /// One for each row.
    pub row_keys: &'a [u64],
}

/// Rows that began together.
struct Cohort {
    searches: Vec<Search>,
    cache: Cache,
    /// The slot of each sequence, in the order of the searches; before the first step of each source.
    slots: Vec<usize>,
}

/// Where a search's sequences and answers begin.
struct Place {
    first_sequence: usize,
    first_ask: usize,
}

/// One step of a cohort.
struct Step {
    positions: Vec<Position>,
    places: Vec<Place>,
    asks: Vec<Ask>,
}

impl Batch<'_> {
    /// Runs all rows to their end.
    ///
    /// # Errors
    /// `Cancelled`; `NotFinite` when the model's logits are not; what the engine or the ranks say.
    pub fn run(&self) -> Result<Generated> {
        let rows = self.encoding.rows();
        let outputs_a_row: usize = self.decodings.iter().map(|d| d.num_samples as usize).sum();
        let mut outputs: Vec<Output> = vec![Output::new(); rows * outputs_a_row];
        let (mut cohorts, mut waiting) = (Vec::<Cohort>::new(), 0);
        loop {
            let begin = self.room(&cohorts, rows - waiting);
            if begin > 0 {
                cohorts.extend(self.begin(waiting..waiting + begin)?);
                waiting += begin;
            }
            let unfinished: usize =
                cohorts.iter().map(|c| c.searches.chunk_by(|a, b| a.row == b.row).count()).sum();
            self.pass.control.progress((waiting - unfinished) as u64, rows as u64);
            if cohorts.is_empty() && waiting == rows {
                return Ok(collect(&outputs));
            }
            if self.pass.control.cancelled() {
                return Err(Failure::cancelled("generation was cancelled").into());
            }
            self.step(&mut cohorts, |search, finished| {
                let before: usize =
                    self.decodings[..search.decoding].iter().map(|d| d.num_samples as usize).sum();
                let at = search.row * outputs_a_row + before + search.sample as usize;
                for (slot, sequence) in outputs[at..].iter_mut().zip(finished) {
                    *slot = sequence;
                }
            })?;
            cohorts.retain(|cohort| !cohort.searches.is_empty());
        }
    }

    fn longest(&self) -> usize {
        self.decodings.iter().map(|d| d.max_length as usize).max().unwrap_or(0).max(1)
    }

    fn shape(&self) -> Shape {
        let model = self.pass.model;
        Shape {
            layers: model.config.num_decoder_layers,
            heads: model.heads(),
            size: model.config.d_kv,
            kind: model.kind,
            device: model.device,
        }
    }

    /// How many of the waiting rows may begin now: one at least when nothing runs, and else not just a few.
    fn room(&self, cohorts: &[Cohort], waiting: usize) -> usize {
        let sequences: usize = self.decodings.iter().map(search::width).sum();
        let row_bytes = (sequences * self.shape().bytes(self.longest())).max(1);
        let held: usize = cohorts.iter().map(|cohort| cohort.cache.bytes()).sum();
        let fitting = (self.cache_bytes.saturating_sub(held) / row_bytes).min(waiting);
        let quarter = (self.cache_bytes / row_bytes / 4).max(1);
        match cohorts.is_empty() {
            true => fitting.max(1).min(waiting),
            false if fitting == waiting || fitting >= quarter => fitting,
            false => 0,
        }
    }

    fn begin(&self, rows: std::ops::Range<usize>) -> Result<Option<Cohort>> {
        let searches: Vec<Search> = rows.flat_map(|row| Search::of_row(row, self.decodings, 0)).collect();
        if searches.is_empty() {
            return Ok(None);
        }
        let sources = searches.chunk_by(|a, b| a.row == b.row).count();
        let cache = Cache::new(self.shape(), sources, 1)?;
        Ok(Some(Cohort { searches, cache, slots: (0..sources).collect() }))
    }

    /// Computes the next position of every running sequence; `finish` takes what searches end with.
    fn step(&self, cohorts: &mut [Cohort], mut finish: impl FnMut(&Search, Vec<Output>)) -> Result<()> {
        let steps: Vec<Step> = cohorts.iter().map(|cohort| self.prepare(cohort)).collect();
        let outputs = self.outputs(cohorts, &steps)?;
        let mut first = 0;
        for (cohort, step) in cohorts.iter_mut().zip(steps) {
            let count = step.positions.len();
            let answers = self.answers(&step, &outputs.f_narrow(0, first, count as i64)?)?;
            first += count as i64;
            let mut places = step.places.iter();
            let eos = self.pass.model.config.eos_token;
            cohort.searches.retain_mut(|search| {
                let place = places.next().expect("one a search");
                let decoding = &self.decodings[search.decoding];
                let finished =
                    search.advance(decoding, eos, &answers[place.first_ask..], place.first_sequence);
                finished.map(|finished| finish(search, finished)).is_none()
            });
            // The last element of a sequence's path is the sequence that it goes on from.
            let parents: Vec<usize> = cohort
                .searches
                .iter()
                .flat_map(|search| &search.running)
                .map(|sequence| cohort.slots[*sequence.path.last().expect("it has a position") as usize])
                .collect();
            if !parents.is_empty() {
                cohort.slots = cohort.cache.rearrange(&parents, self.longest())?;
            }
        }
        Ok(())
    }

    fn prepare(&self, cohort: &Cohort) -> Step {
        let config = &self.pass.model.config;
        let mut positions = vec![Position::default(); cohort.cache.rows];
        let (mut places, mut asks) = (Vec::with_capacity(cohort.searches.len()), Vec::new());
        let mut sequences = 0;
        for rows in cohort.searches.chunk_by(|a, b| a.row == b.row) {
            let source = rows[0].row;
            let first_ask = asks.len();
            for search in rows {
                let decoding = &self.decodings[search.decoding];
                let ask = || search.ask(decoding, config.eos_token, self.seed, self.row_keys[source]);
                places.push(Place { first_sequence: sequences, first_ask: asks.len() });
                if cohort.cache.length == 0 {
                    asks.push(ask());
                    continue;
                }
                for sequence in &search.running {
                    let token = sequence.tokens.last().expect("it has a first position").token;
                    let asks_at = asks.len()..asks.len() + 1;
                    positions[cohort.slots[sequences]] = Position { source, token, asks: asks_at };
                    asks.push(ask());
                    sequences += 1;
                }
            }
            if cohort.cache.length == 0 {
                let token = config.start_token;
                positions[sequences] = Position { source, token, asks: first_ask..asks.len() };
                sequences += 1;
            }
        }
        Step { positions, places, asks }
    }

    /// The decoder's outputs for all cohorts' positions, one cohort after the other.
    fn outputs(&self, cohorts: &mut [Cohort], steps: &[Step]) -> Result<Tensor> {
        let Pass { model, .. } = self.pass;
        let all = || steps.iter().flat_map(|step| &step.positions);
        let tokens: Vec<u32> = all().map(|position| position.token).collect();
        let sources: Vec<usize> = all().map(|position| position.source).collect();
        let asking = self.encoding.ask(&sources, model.device)?;
        let masks = cohorts
            .iter()
            .map(|cohort| self.positions.last(cohort.cache.length + 1))
            .collect::<Result<Vec<_>>>()?;
        let mut own = |layer: usize, x: &Tensor| {
            let mut first = 0;
            let mut parts = Vec::with_capacity(masks.len());
            for (cohort, mask) in cohorts.iter_mut().zip(&masks) {
                let rows = cohort.cache.rows as i64;
                let [queries, keys, values] =
                    model.split_three(&x.f_narrow(0, first, rows)?.f_unsqueeze(1)?)?;
                let (keys, values) = cohort.cache.put(layer, &keys, &values)?;
                parts.push(attend(&queries, &keys, &values, Some(mask))?.f_squeeze_dim(1)?);
                first += rows;
            }
            match parts.len() {
                1 => Ok(parts.remove(0)),
                _ => Ok(Tensor::f_cat(&parts, 0)?),
            }
        };
        let outputs = self.pass.decode(&tokens, &mut own, self.encoding, &asking)?;
        cohorts.iter_mut().for_each(|cohort| cohort.cache.advance());
        Ok(outputs)
    }

    /// For each ask of a step the tokens that answer it. `outputs`: `(positions, d_model)`.
    fn answers(&self, step: &Step, outputs: &Tensor) -> Result<Vec<Vec<Pick>>> {
        let mut answers: Vec<Vec<Pick>> = vec![Vec::new(); step.asks.len()];
        let cpu = self.pass.model.device == Device::Cpu;
        let at_once = if cpu { LOGIT_ROWS } else { GPU_LOGIT_ROWS };
        for (chunk, positions) in step.positions.chunks(at_once).enumerate() {
            let part = outputs.f_narrow(0, (chunk * at_once) as i64, positions.len() as i64)?;
            let logits = self.pass.logits(&part)?;
            let picks = if cpu {
                choice::from_all(positions, &step.asks, &logits)?
            } else {
                choice::from_shortlists(positions, &step.asks, &logits)?
            };
            for (position, picks) in positions.iter().zip(picks) {
                for (ask, picks) in position.asks.clone().zip(picks) {
                    answers[ask] = picks;
                }
            }
        }
        Ok(answers)
    }
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
