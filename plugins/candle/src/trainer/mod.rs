//! Fine-tuning a classifier on the CPU: mean squared error on raw logits, AdamW.
//!
//! [`EncoderTrainer::accumulate`] cuts a micro-batch into pieces of whole rows, runs `network` forward and backward
//! over each, and adds to `gradients.rs`; `update` hands their mean to `adamw.rs`; `cappy_plugin_models::trainer` writes
//! and reads files. Dropout masks are keyed by (seed, step, site, element), so a retried or resumed run repeats itself bit for
//! bit.

mod adamw;
mod gradients;
mod network;

use std::path::Path;

use cappy_plugin_abi::random::{fold, mix};
use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens, Trainer, TrainerOptions};

use crate::encoder::config::EncoderConfig;
use crate::encoder::layout::Layout;
use crate::encoder::pieces::pieces;
use crate::encoder::{check, scorer};
use crate::kernels::Buffer;
use crate::kernels::dropout::Dropout;
use crate::weights::Checkpoint;
use cappy_plugin_models::trainer::checkpoint::{self, State};
use cappy_plugin_models::trainer::{check_options, initialise};
use gradients::Gradients;
use network::{Network, Piece};

/// Tokens whose activations are held at once.
const PIECE_TOKENS: usize = 1024;

/// A classifier being fine-tuned.
pub struct EncoderTrainer {
    config: EncoderConfig,
    info: ModelInfo,
    options: TrainerOptions,
    weights: Buffer,
    gradients: Gradients,
    moment1: Buffer,
    moment2: Buffer,
    /// Updates made.
    updates: u64,
    /// Micro-batches since the last update.
    accumulated: u64,
    network: Network,
}

impl EncoderTrainer {
    /// Loads the weights. A checkpoint of an encoder without classification head gets one, drawn from the seed.
    ///
    /// # Errors
    /// `BadModel` naming the tensor; `InvalidArgument` for options out of range; `Unsupported` for several labels.
    pub fn load(
        config: EncoderConfig,
        checkpoint: &Checkpoint,
        options: TrainerOptions,
    ) -> Result<Self, Failure> {
        check_options(&options)?;
        if config.labels != 1 {
            return Err(Failure::unsupported(format!(
                "the model has {} labels; fine-tuning by mean squared error needs 1",
                config.labels
            )));
        }
        let layout = Layout::new(&config);
        let mut weights = Buffer::new();
        weights.resized(layout.len());
        let head = layout.head();
        for (i, slot) in layout.slots.list().iter().enumerate() {
            let to = &mut weights[slot.range.clone()];
            if !config.classifier && head.contains(&i) && !checkpoint.contains(&slot.name) {
                initialise(slot, options.seed, to);
            } else {
                layout.slots.read_into(checkpoint, &slot.range, to)?;
            }
        }
        let zeros = || {
            let mut buffer = Buffer::new();
            buffer.zeroed(layout.len());
            buffer
        };
        Ok(Self {
            info: scorer::info(&config, 4 * layout.len() as u64),
            gradients: Gradients::new(&layout),
            moment1: zeros(),
            moment2: zeros(),
            network: Network::new(config.clone(), layout),
            config,
            options,
            weights,
            updates: 0,
            accumulated: 0,
        })
    }

    /// Drops what was accumulated since the last update.
    fn discard(&mut self) {
        self.gradients.clear();
        self.accumulated = 0;
    }

    fn between_updates(&self, what: &str) -> Result<(), Failure> {
        if self.accumulated == 0 {
            return Ok(());
        }
        Err(Failure::failed_precondition(format!(
            "{what} needs a trainer between updates; {} micro-batches are accumulated",
            self.accumulated
        )))
    }
}

/// Rows `rows` of a batch, as the network takes them.
fn piece<'a>(batch: RaggedTokens<'a>, rows: &std::ops::Range<usize>) -> Piece<'a> {
    let (start, end) = (batch.offsets[rows.start] as usize, batch.offsets[rows.end] as usize);
    Piece {
        tokens: &batch.tokens[start..end],
        type_ids: batch.type_ids.get(start..end).unwrap_or(&[]),
        offsets: batch.offsets[rows.start..=rows.end].iter().map(|&o| o as usize - start).collect(),
        first_row: rows.start,
        first_token: start,
    }
}

impl Trainer for EncoderTrainer {
    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    /// On `NotFinite` and `Cancelled` everything accumulated since the last update is discarded.
    fn accumulate(
        &mut self,
        batch: RaggedTokens<'_>,
        labels: &[f32],
        step: u64,
        control: &dyn Control,
    ) -> Result<f32, Failure> {
        check(&self.info, self.config.type_vocab_size, batch)?;
        let rows = batch.rows();
        if rows == 0 || labels.len() != rows {
            return Err(Failure::invalid_argument(format!(
                "a micro-batch of {rows} rows came with {} labels; one label a row, at least one row",
                labels.len()
            )));
        }
        if let Some(row) = labels.iter().position(|label| !label.is_finite()) {
            return Err(Failure::invalid_argument(format!("the label of row {row} is {}", labels[row])));
        }
        let dropout = Dropout::new(self.options.dropout, fold(mix(self.options.seed), step));
        let mut loss = 0.0_f64;
        for range in pieces(batch.offsets, PIECE_TOKENS) {
            if control.cancelled() {
                self.discard();
                return Err(Failure::cancelled("training was cancelled"));
            }
            let part = piece(batch, &range);
            let logits = self.network.forward(&self.weights, &part, &dropout);
            let errors: Vec<f32> = logits.iter().zip(&labels[range.clone()]).map(|(y, t)| y - t).collect();
            let d_logits: Vec<f32> = errors.iter().map(|e| 2.0 * e / rows as f32).collect();
            loss += errors.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>() / rows as f64;
            if !loss.is_finite() {
                self.discard();
                return Err(Failure::not_finite(format!(
                    "the loss of step {step} is {loss}; lower the learning rate or check the weights"
                )));
            }
            self.network.backward(&self.weights, &part, &dropout, &d_logits, &mut self.gradients);
            control.progress(range.end as u64, rows as u64);
        }
        self.accumulated += 1;
        Ok(loss as f32)
    }

    fn update(&mut self, learning_rate: f64) -> Result<f64, Failure> {
        if self.accumulated == 0 {
            return Err(Failure::failed_precondition("an update needs at least one accumulated micro-batch"));
        }
        if !(learning_rate >= 0.0 && learning_rate.is_finite()) {
            return Err(Failure::invalid_argument(format!("the learning rate is {learning_rate}")));
        }
        if let Some(slot) = self.gradients.missing() {
            let name = &self.network.layout().slots.list()[slot].name;
            return Err(Failure::internal(format!("variable `{name}` got no gradient")));
        }
        let norm = adamw::norm(self.gradients.values()) / self.accumulated as f64;
        if !norm.is_finite() {
            self.discard();
            return Err(Failure::not_finite(format!(
                "the gradient's norm is {norm}; lower the learning rate or check the weights"
            )));
        }
        self.updates += 1;
        adamw::update(
            &mut self.weights,
            self.gradients.values(),
            &mut self.moment1,
            &mut self.moment2,
            &self.options,
            learning_rate,
            self.updates,
            self.accumulated,
        );
        self.gradients.rearm();
        self.accumulated = 0;
        self.network.weights_changed();
        Ok(norm)
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        check(&self.info, self.config.type_vocab_size, batch)?;
        let none = Dropout::new(0.0, 0);
        let mut scores = Vec::with_capacity(batch.rows());
        for range in pieces(batch.offsets, PIECE_TOKENS) {
            if control.cancelled() {
                return Err(Failure::cancelled("scoring was cancelled"));
            }
            scores.extend_from_slice(self.network.forward(&self.weights, &piece(batch, &range), &none));
            control.progress(range.end as u64, batch.rows() as u64);
        }
        if let Some(row) = scores.iter().position(|score| !score.is_finite()) {
            return Err(Failure::not_finite(format!(
                "the score of row {row} is {}; check the weights",
                scores[row]
            )));
        }
        Ok(scores)
    }

    fn save_model(&mut self, dir: &str) -> Result<(), Failure> {
        checkpoint::save_model(Path::new(dir), &self.network.layout().slots, &self.weights)
    }

    fn save_checkpoint(&mut self, dir: &str) -> Result<(), Failure> {
        self.between_updates("a checkpoint")?;
        let updates = self.updates;
        self.state().save(Path::new(dir), updates)
    }

    fn load_checkpoint(&mut self, dir: &str) -> Result<(), Failure> {
        self.updates = self.state().load(Path::new(dir))?;
        self.discard();
        self.network.weights_changed();
        Ok(())
    }
}

impl EncoderTrainer {
    fn state(&mut self) -> State<'_> {
        State { weights: &mut self.weights, moment1: &mut self.moment1, moment2: &mut self.moment2 }
    }
}
