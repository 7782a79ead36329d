//! Fine-tuning a classifier of any family: mean squared error on raw logits, AdamW, on one rank or several.
//!
//! [`EncoderTrainer::accumulate`](Trainer::accumulate) cuts a micro-batch into batches of whole rows, runs the network
//! forward and autograd backward over each; `update` hands the mean gradient to `adamw.rs`. `variables.rs` has the state
//! and its files, which are the candle backend's. Dropout masks are keyed by (seed, step, site, place in the micro-batch,
//! element), so they are the same in every backend, on any number of ranks, and in a run that goes on.
//!
//! With several ranks (`parallel.rs`) each computes a share of every micro-batch's rows. The loss is exchanged before the
//! last backward pass of a micro-batch, so that all ranks go on or none; gradients are exchanged once an update, while
//! the last micro-batch's last backward pass goes on. A rank that fails leaves the group, which ends it for all.

mod adamw;
mod parallel;
mod variables;

use std::path::Path;

use cappy_plugin_abi::random::{fold, mix};
use cappy_plugin_abi::{Control, Failure, LoadRequest, ModelInfo, RaggedTokens, Trainer, TrainerOptions};
use cappy_plugin_models::dropout::Dropout;
use cappy_plugin_models::encoder::check;
use cappy_plugin_models::trainer::check_options;
use cappy_plugin_models::weights::Checkpoint;
use tch::{Device, Kind, Tensor};

use crate::device;
use crate::encoder::architecture::{Architecture, Network};
use crate::encoder::batch::{Batch, by_length, share};
use crate::encoder::pass::Pass;
use crate::encoder::scorer::logits;
use crate::engine::Result;
use crate::group::Seat;
use crate::weights::numbers;
use adamw::Step;
use parallel::Parallel;
use variables::Variables;

/// Tokens whose activations are held at once on the CPU.
const CPU_TOKENS: usize = 1024;
/// Likewise on a GPU.
const GPU_TOKENS: usize = 8192;

/// A classifier being fine-tuned.
pub struct EncoderTrainer {
    architecture: Architecture,
    network: Box<dyn Network>,
    variables: Variables,
    info: ModelInfo,
    options: TrainerOptions,
    device: Device,
    /// Updates made.
    updates: u64,
    /// Micro-batches since the last update.
    accumulated: u64,
    ranks: Place,
}

/// Where this rank stands.
enum Place {
    Alone,
    Among(Parallel),
    /// What ended the group.
    Left(Failure),
}

/// Loads a classifier to fine-tune, and finds the other ranks, where there are any.
///
/// # Errors
/// `BadModel` naming the tensor; `InvalidArgument` for options out of range, or ranks that differ; `Unsupported` for
/// several labels or another number format than f32; `PeerLost` naming ranks that do not come.
pub fn load(
    request: &LoadRequest,
    options: TrainerOptions,
) -> std::result::Result<Box<dyn Trainer>, Failure> {
    let seat = options.group.clone().map(Seat::take);
    let device = device::device(&request.device)?;
    if !matches!(request.dtype.as_str(), "auto" | "f32") {
        return Err(Failure::unsupported(format!(
            "the libtorch backend does not train in `{}`; use `f32` or `auto`",
            request.dtype
        )));
    }
    check_options(&options)?;
    Parallel::check(options.group.as_ref())?;
    let architecture = Architecture::parse(&request.config_json)?;
    let labels = architecture.identity.labels;
    if labels != 1 {
        return Err(Failure::unsupported(format!(
            "the model has {labels} labels; fine-tuning by mean squared error needs 1"
        )));
    }
    let checkpoint = Checkpoint::open(Path::new(&request.model_dir))?;
    let mut variables = Variables::load(&architecture, &checkpoint, options.seed, device)?;
    let network = architecture.network(&mut variables)?;
    let ranks = match seat {
        Some(seat) => Place::Among(Parallel::join(seat, request, &options, &variables)?),
        None => Place::Alone,
    };
    let info = architecture.info(4 * architecture.slots().len() as u64, Kind::Float);
    let (updates, accumulated) = (0, 0);
    Ok(Box::new(EncoderTrainer {
        architecture,
        network,
        variables,
        info,
        options,
        device,
        updates,
        accumulated,
        ranks,
    }))
}

impl EncoderTrainer {
    /// Drops what was accumulated since the last update.
    fn discard(&mut self) {
        self.variables.forget();
        self.accumulated = 0;
    }

    fn between_updates(&self, what: &str) -> std::result::Result<(), Failure> {
        if self.accumulated == 0 {
            return Ok(());
        }
        Err(Failure::failed_precondition(format!(
            "{what} needs a trainer between updates; {} micro-batches are accumulated",
            self.accumulated
        )))
    }

    /// Whether other ranks can still be reached.
    fn present(&self) -> std::result::Result<(), Failure> {
        match &self.ranks {
            Place::Left(why) => Err(why.clone()),
            _ => Ok(()),
        }
    }

    /// Lets nobody wait for a rank that has failed.
    fn leave(&mut self, failure: &Failure) {
        self.discard();
        if let Place::Among(_) = self.ranks {
            self.ranks =
                Place::Left(Failure::peer_lost(format!("this rank has left its group: {}", failure.message)));
        }
    }

    /// The loss of a micro-batch, of all ranks together; its gradients are added. Not finite: none were added.
    fn micro_batch(
        &mut self,
        all: RaggedTokens<'_>,
        labels: &[f32],
        dropout: Dropout,
        control: &dyn Control,
    ) -> Result<f64> {
        let count = all.rows();
        let mut place = (0, 1);
        if let Place::Among(parallel) = &mut self.ranks {
            self.updates = parallel.share(&mut self.variables, self.updates, control)?;
            parallel.settle(&mut self.variables, control)?;
            place = parallel.place();
        }
        let budget = if self.device == Device::Cpu { CPU_TOKENS } else { GPU_TOKENS };
        let batches = by_length(all, share(all, place.0, place.1), budget);
        let (mut total, mut done) = (0.0, 0);
        let mut waiting = None;
        for (i, rows) in batches.iter().enumerate() {
            let batch = Batch::new(all, rows, self.device, Kind::Float)?;
            let pass = Pass::training(&batch, dropout, control);
            pass.go_on()?;
            let targets: Vec<f32> = rows.iter().map(|&row| labels[row]).collect();
            let targets = Tensor::f_from_slice(&targets)?.f_to_device(self.device)?;
            let errors = self.network.forward(&pass)?.f_view([-1])?.f_sub(&targets)?;
            let squares = numbers(&errors.f_detach()?)?.iter().map(|&e| f64::from(e).powi(2)).sum::<f64>();
            total += squares / count as f64;
            let loss = errors.f_square()?.f_sum(Kind::Float)?.f_div_scalar(count as f64)?;
            if i + 1 == batches.len() || !total.is_finite() {
                waiting = Some(loss);
                break;
            }
            loss.f_backward()?;
            done += rows.len();
            control.progress(done as u64, count as u64);
        }
        if let Place::Among(parallel) = &mut self.ranks {
            total = parallel.total(total, control)?;
            if total.is_finite() && self.accumulated + 1 == self.options.micro_batches {
                parallel.arm();
            }
        }
        if let (true, Some(loss)) = (total.is_finite(), waiting) {
            loss.f_backward()?;
        }
        control.progress(count as u64, count as u64);
        Ok(total)
    }

    /// One update, after everything was checked; the gradient's norm, finite or not.
    fn step(&mut self, learning_rate: f64) -> Result<f64> {
        if let Place::Among(parallel) = &mut self.ranks {
            parallel.sum()?;
        }
        if let Some(range) = self.variables.missing() {
            let slots = self.architecture.slots();
            let name = &slots.list()[slots.within(&range).start].name;
            return Err(Failure::internal(format!("variable `{name}` got no gradient")).into());
        }
        let norm = self.variables.norm()? / self.accumulated as f64;
        if norm.is_finite() {
            self.updates += 1;
            let step = Step::new(&self.options, learning_rate, self.updates, self.accumulated);
            self.variables.update(step)?;
        }
        Ok(norm)
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
    ) -> std::result::Result<f32, Failure> {
        self.present()?;
        check(&self.info, self.architecture.segments, batch)?;
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
        let loss = self.micro_batch(batch, labels, dropout, control).map_err(Failure::from);
        let loss = loss.inspect_err(|failure| self.leave(failure))?;
        if !loss.is_finite() {
            self.discard();
            return Err(Failure::not_finite(format!(
                "the loss of step {step} is {loss}; lower the learning rate or check the weights"
            )));
        }
        self.accumulated += 1;
        Ok(loss as f32)
    }

    fn update(&mut self, learning_rate: f64) -> std::result::Result<f64, Failure> {
        self.present()?;
        if self.accumulated == 0 {
            return Err(Failure::failed_precondition("an update needs at least one accumulated micro-batch"));
        }
        if !(learning_rate >= 0.0 && learning_rate.is_finite()) {
            return Err(Failure::invalid_argument(format!("the learning rate is {learning_rate}")));
        }
        let _guard = tch::no_grad_guard();
        let norm = self.step(learning_rate).map_err(Failure::from);
        let norm = norm.inspect_err(|failure| self.leave(failure))?;
        if !norm.is_finite() {
            self.discard();
            return Err(Failure::not_finite(format!(
                "the gradient's norm is {norm}; lower the learning rate or check the weights"
            )));
        }
        self.accumulated = 0;
        Ok(norm)
    }

    /// Of this rank's weights; the others need not be asked.
    fn score(
        &mut self,
        batch: RaggedTokens<'_>,
        control: &dyn Control,
    ) -> std::result::Result<Vec<f32>, Failure> {
        check(&self.info, self.architecture.segments, batch)?;
        let _guard = tch::no_grad_guard();
        Ok(logits(self.network.as_ref(), 1, batch, (self.device, Kind::Float), control)?)
    }

    fn save_model(&mut self, dir: &str) -> std::result::Result<(), Failure> {
        Ok(self.variables.save_model(Path::new(dir), self.architecture.slots())?)
    }

    fn save_checkpoint(&mut self, dir: &str) -> std::result::Result<(), Failure> {
        self.between_updates("a checkpoint")?;
        Ok(self.variables.save(Path::new(dir), self.updates)?)
    }

    /// In a group rank 0 reads the files; the others get its state with the next micro-batch, and need no files.
    fn load_checkpoint(&mut self, dir: &str) -> std::result::Result<(), Failure> {
        let _guard = tch::no_grad_guard();
        if let Place::Among(parallel) = &mut self.ranks {
            parallel.unshare();
            if parallel.place().0 > 0 {
                self.discard();
                return Ok(());
            }
        }
        self.updates = self.variables.restore(Path::new(dir))?;
        self.discard();
        Ok(())
    }
}
