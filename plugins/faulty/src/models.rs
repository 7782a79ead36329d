//! The echo backend's models, each call after what is planned for it.

use cappy_plugin_abi::{
    Control, Decoding, EncodingId, Failure, Generated, Generator, ModelInfo, RaggedTokens, Scorer, Trainer,
};

use crate::Plan;

pub(crate) struct FaultyScorer {
    pub model: Box<dyn Scorer>,
    pub plan: Plan,
}

pub(crate) struct FaultyGenerator {
    pub model: Box<dyn Generator>,
    pub plan: Plan,
}

pub(crate) struct FaultyTrainer {
    pub model: Box<dyn Trainer>,
    pub plan: Plan,
}

macro_rules! faulty_drop {
    ($($model:ident),*) => { $(
        impl Drop for $model {
            fn drop(&mut self) {
                // Nobody takes a failure from a drop.
                let _ = self.plan.strike("drop", 0, None);
            }
        }
    )* };
}
faulty_drop!(FaultyScorer, FaultyGenerator, FaultyTrainer);

/// `info` cannot fail: other faults than those that end the call have no effect.
fn info(plan: &Plan, info: ModelInfo) -> ModelInfo {
    let _ = plan.strike("info", 0, None);
    info
}

impl Scorer for FaultyScorer {
    fn info(&self) -> ModelInfo {
        info(&self.plan, self.model.info())
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        self.plan.strike("score", batch.rows(), Some(control))?;
        Ok(self.plan.spoil("score", self.model.score(batch, control)?))
    }
}

impl Generator for FaultyGenerator {
    fn info(&self) -> ModelInfo {
        info(&self.plan, self.model.info())
    }

    fn encode(&mut self, sources: RaggedTokens<'_>, control: &dyn Control) -> Result<EncodingId, Failure> {
        self.plan.strike("encode", sources.rows(), Some(control))?;
        self.model.encode(sources, control)
    }

    fn generate(
        &mut self,
        encoding: EncodingId,
        decodings: &[Decoding],
        seed: u64,
        row_keys: &[u64],
        control: &dyn Control,
    ) -> Result<Generated, Failure> {
        self.plan.strike("generate", row_keys.len(), Some(control))?;
        let generated = self.model.generate(encoding, decodings, seed, row_keys, control)?;
        Ok(Generated { log_probs: self.plan.spoil("generate", generated.log_probs), ..generated })
    }

    fn log_likelihood(
        &mut self,
        encoding: EncodingId,
        targets: RaggedTokens<'_>,
        rows: &[u32],
        control: &dyn Control,
    ) -> Result<Vec<f32>, Failure> {
        self.plan.strike("log_likelihood", targets.rows(), Some(control))?;
        Ok(self.plan.spoil("log_likelihood", self.model.log_likelihood(encoding, targets, rows, control)?))
    }

    fn forget(&mut self, encoding: EncodingId) {
        // Nobody takes a failure from `forget`.
        let _ = self.plan.strike("forget", 0, None);
        self.model.forget(encoding);
    }
}

impl Trainer for FaultyTrainer {
    fn info(&self) -> ModelInfo {
        info(&self.plan, self.model.info())
    }

    fn accumulate(
        &mut self,
        batch: RaggedTokens<'_>,
        labels: &[f32],
        step: u64,
        control: &dyn Control,
    ) -> Result<f32, Failure> {
        self.plan.strike("accumulate", batch.rows(), Some(control))?;
        let loss = self.model.accumulate(batch, labels, step, control)?;
        Ok(self.plan.spoil("accumulate", vec![loss]).pop().unwrap_or(loss))
    }

    fn update(&mut self, learning_rate: f64) -> Result<f64, Failure> {
        self.plan.strike("update", 0, None)?;
        let norm = self.model.update(learning_rate)?;
        let spoilt = self.plan.spoil("update", vec![0.0]).pop();
        Ok(if spoilt.is_some_and(f32::is_nan) { f64::NAN } else { norm })
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        self.plan.strike("score", batch.rows(), Some(control))?;
        Ok(self.plan.spoil("score", self.model.score(batch, control)?))
    }

    fn save_model(&mut self, dir: &str) -> Result<(), Failure> {
        self.plan.strike("save_model", 0, None)?;
        self.model.save_model(dir)
    }

    fn save_checkpoint(&mut self, dir: &str) -> Result<(), Failure> {
        self.plan.strike("save_checkpoint", 0, None)?;
        self.model.save_checkpoint(dir)
    }

    fn load_checkpoint(&mut self, dir: &str) -> Result<(), Failure> {
        self.plan.strike("load_checkpoint", 0, None)?;
        self.model.load_checkpoint(dir)
    }
}
