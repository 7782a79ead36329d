//! Fits the bias to labels.
//!
//! Mean squared error, whose derivative by the bias is twice the mean error. There is no hidden unit, so nothing for
//! dropout to drop, and no randomness to key.

use std::path::Path;

use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens, Scorer, Trainer, TrainerOptions};
use safetensors::tensor::Dtype;

use crate::config::Config;
use crate::scorer::{EchoScorer, features};
use crate::weights;

const CHECKPOINT_FILE: &str = "checkpoint.safetensors";

pub(crate) struct EchoTrainer {
    /// The weights, as they score.
    scorer: EchoScorer,
    options: TrainerOptions,
    moments: Moments,
    /// Sum of the micro-batches' gradients, and how many.
    gradient: (f64, u64),
}

#[derive(Default)]
struct Moments {
    first: f64,
    second: f64,
    updates: u64,
}

impl EchoTrainer {
    pub(crate) fn new(config: Config, options: TrainerOptions, bias: f32) -> Self {
        let scorer = EchoScorer { config, bias };
        Self { scorer, options, moments: Moments::default(), gradient: (0.0, 0) }
    }

    fn between_updates(&self) -> Result<(), Failure> {
        if self.gradient.1 == 0 {
            return Ok(());
        }
        Err(Failure::failed_precondition("a gradient has been accumulated: update first"))
    }
}

impl Trainer for EchoTrainer {
    fn info(&self) -> ModelInfo {
        self.scorer.info()
    }

    fn accumulate(
        &mut self,
        batch: RaggedTokens<'_>,
        labels: &[f32],
        _step: u64,
        control: &dyn Control,
    ) -> Result<f32, Failure> {
        let (mut error_sum, mut square_sum) = (0.0, 0.0);
        for (feature, &label) in features(&self.scorer.config, batch, control).zip(labels) {
            let error = f64::from(feature? + self.scorer.bias - label);
            error_sum += error;
            square_sum += error * error;
        }
        // Only now: a cancelled micro-batch adds nothing.
        let rows = labels.len() as f64;
        self.gradient = (self.gradient.0 + 2.0 * error_sum / rows, self.gradient.1 + 1);
        Ok((square_sum / rows) as f32)
    }

    /// Source: Decoupled weight decay regularization, arXiv 1711.05101, algorithm 2.
    fn update(&mut self, learning_rate: f64) -> Result<f64, Failure> {
        let (sum, micro_batches) = std::mem::take(&mut self.gradient);
        if micro_batches == 0 {
            return Err(Failure::failed_precondition("nothing was accumulated since the last update"));
        }
        let gradient = sum / micro_batches as f64;
        let TrainerOptions { beta1, beta2, epsilon, weight_decay, .. } = self.options;
        let moments = &mut self.moments;
        moments.updates += 1;
        moments.first = beta1 * moments.first + (1.0 - beta1) * gradient;
        moments.second = beta2 * moments.second + (1.0 - beta2) * gradient * gradient;
        let updates = moments.updates as f64;
        let first = moments.first / (1.0 - beta1.powf(updates));
        let second = moments.second / (1.0 - beta2.powf(updates));
        let bias = f64::from(self.scorer.bias);
        let step = first / (second.sqrt() + epsilon) + weight_decay * bias;
        self.scorer.bias = (bias - learning_rate * step) as f32;
        Ok(gradient.abs())
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        self.scorer.score(batch, control)
    }

    fn save_model(&mut self, dir: &str) -> Result<(), Failure> {
        weights::save(Path::new(dir), self.scorer.bias)
    }

    fn save_checkpoint(&mut self, dir: &str) -> Result<(), Failure> {
        self.between_updates()?;
        let Moments { first, second, updates } = self.moments;
        let moments = [first.to_le_bytes(), second.to_le_bytes()].concat();
        weights::write_tensors(
            &Path::new(dir).join(CHECKPOINT_FILE),
            &[
                ("bias", Dtype::F32, &self.scorer.bias.to_le_bytes()),
                ("moments", Dtype::F64, &moments),
                ("updates", Dtype::U64, &updates.to_le_bytes()),
            ],
        )
    }

    fn load_checkpoint(&mut self, dir: &str) -> Result<(), Failure> {
        let bytes = weights::read(Path::new(dir), CHECKPOINT_FILE)?;
        let tensors = weights::parse(&bytes, CHECKPOINT_FILE)?;
        // All of it is read before any of it is used.
        let [bias] = weights::numbers(&tensors, "bias", CHECKPOINT_FILE, f32::from_le_bytes)?;
        let [first, second] = weights::numbers(&tensors, "moments", CHECKPOINT_FILE, f64::from_le_bytes)?;
        let [updates] = weights::numbers(&tensors, "updates", CHECKPOINT_FILE, u64::from_le_bytes)?;
        self.scorer.bias = bias;
        self.moments = Moments { first, second, updates };
        self.gradient = (0.0, 0);
        Ok(())
    }
}
