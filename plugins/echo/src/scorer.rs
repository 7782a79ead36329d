//! Scores rows.

use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens, Scorer};

use crate::config::Config;

pub(crate) struct EchoScorer {
    pub config: Config,
    pub bias: f32,
}

impl Scorer for EchoScorer {
    fn info(&self) -> ModelInfo {
        self.config.info(1)
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        features(&self.config, batch, control).map(|feature| Ok(feature? + self.bias)).collect()
    }
}

/// `mean(ids) / vocab_size` of each row, in `[0, 1)`: what a score is before the bias.
///
/// Each row is computed from its own tokens alone, in their order, so its batch cannot matter.
pub(crate) fn features<'a>(
    config: &'a Config,
    batch: RaggedTokens<'a>,
    control: &'a dyn Control,
) -> impl Iterator<Item = Result<f32, Failure>> + 'a {
    let rows = batch.rows();
    (0..rows).map(move |i| {
        if control.cancelled() {
            return Err(Failure::cancelled("cancelled by the caller"));
        }
        let row = batch.row(i);
        let sum: f64 = row.iter().map(|&id| f64::from(id)).sum();
        control.progress(i as u64 + 1, rows as u64);
        Ok((sum / row.len() as f64 / f64::from(config.vocab_size)) as f32)
    })
}
