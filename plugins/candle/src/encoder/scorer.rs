//! The [`Scorer`] that the host gets: the fast path on the CPU, the plain one on CUDA.

use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens, Scorer};

use super::config::EncoderConfig;
use super::fast::FastEncoder;
use super::layout::Layout;
use super::plain::PlainEncoder;

/// A loaded classifier and what is known about it.
pub struct EncoderScorer {
    engine: Engine,
    info: ModelInfo,
}

enum Engine {
    Fast(Box<FastEncoder>),
    Plain(Box<PlainEncoder>),
}

/// What a loaded encoder tells about itself.
pub fn info(config: &EncoderConfig, weight_bytes: u64) -> ModelInfo {
    ModelInfo {
        architecture: config.family.model_type().into(),
        parameters: Layout::new(config).len() as u64,
        weight_bytes,
        dtype: "f32".into(),
        max_tokens: config.max_tokens() as u32,
        vocab_size: config.vocab_size as u32,
        labels: config.labels as u32,
    }
}

impl From<FastEncoder> for EncoderScorer {
    fn from(encoder: FastEncoder) -> Self {
        let info = info(encoder.config(), encoder.weight_bytes() as u64);
        Self { engine: Engine::Fast(Box::new(encoder)), info }
    }
}

impl From<PlainEncoder> for EncoderScorer {
    fn from(encoder: PlainEncoder) -> Self {
        let bytes = 4 * Layout::new(encoder.config()).len() as u64;
        let info = info(encoder.config(), bytes);
        Self { engine: Engine::Plain(Box::new(encoder)), info }
    }
}

impl Scorer for EncoderScorer {
    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        let config = match &self.engine {
            Engine::Fast(encoder) => encoder.config(),
            Engine::Plain(encoder) => encoder.config(),
        };
        super::check(config, batch)?;
        let labels = config.labels;
        let scores = match &mut self.engine {
            Engine::Fast(encoder) => encoder.score(batch, control),
            Engine::Plain(encoder) => encoder.score(batch, control),
        }?;
        if let Some(i) = scores.iter().position(|score| !score.is_finite()) {
            let row = i / labels;
            return Err(Failure::not_finite(format!(
                "the score of row {row} is {}; check the weights",
                scores[i]
            )));
        }
        Ok(scores)
    }
}
