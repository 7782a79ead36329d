//! The [`Scorer`] that the host gets, whatever the architecture behind it.

use candle_core::Device;
use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens, Scorer};

use super::config::EncoderConfig;
use super::deberta::{self, DebertaConfig};
use super::family::{Family, Identity};
use super::fast::FastEncoder;
use super::layout::Layout;
use super::modernbert::{self, ModernBertConfig};
use super::plain::PlainEncoder;
use crate::weights::Checkpoint;

/// The forward pass of a classifier.
pub trait Classifier: Send {
    /// What is known about it.
    fn info(&self) -> ModelInfo;

    /// Number of segments that it tells apart; 0 or 1: it ignores them.
    fn segments(&self) -> usize;

    /// Raw logits, `(rows, labels)`, of a batch that was checked.
    ///
    /// # Errors
    /// `Cancelled`, `OutOfMemory`, `Internal`.
    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure>;
}

/// A loaded classifier: batches are checked before it sees them, scores before they are handed out.
pub struct EncoderScorer {
    classifier: Box<dyn Classifier>,
    info: ModelInfo,
}

impl EncoderScorer {
    /// Loads the classifier that a configuration describes: the fast path on the CPU, the plain one elsewhere.
    ///
    /// # Errors
    /// `Unsupported` and `BadModel`, naming the field or tensor.
    pub fn load(config_json: &str, checkpoint: &Checkpoint, device: Device) -> Result<Self, Failure> {
        let Identity { family, classifier, .. } = Identity::parse(config_json)?;
        // One that was fine-tuned from a bare encoder keeps that encoder's configuration.
        if !classifier && !checkpoint.contains(family.head()) {
            return Err(Failure::unsupported(
                "`config.json` names a model without a classification head; fine-tune it first",
            ));
        }
        let classifier: Box<dyn Classifier> = match (family, device) {
            (Family::ModernBert, Device::Cpu) => {
                Box::new(modernbert::Fast::load(ModernBertConfig::parse(config_json)?, checkpoint)?)
            }
            (Family::ModernBert, device) => {
                Box::new(modernbert::Plain::load(ModernBertConfig::parse(config_json)?, checkpoint, device)?)
            }
            (Family::DebertaV2, Device::Cpu) => {
                Box::new(deberta::Fast::load(DebertaConfig::parse(config_json)?, checkpoint)?)
            }
            (Family::DebertaV2, device) => {
                Box::new(deberta::Plain::load(DebertaConfig::parse(config_json)?, checkpoint, device)?)
            }
            (_, Device::Cpu) => Box::new(FastEncoder::load(EncoderConfig::parse(config_json)?, checkpoint)?),
            (_, device) => {
                Box::new(PlainEncoder::load(EncoderConfig::parse(config_json)?, checkpoint, device)?)
            }
        };
        Ok(Self { info: classifier.info(), classifier })
    }
}

/// What a loaded BERT-like encoder tells about itself.
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

impl Classifier for FastEncoder {
    fn info(&self) -> ModelInfo {
        info(self.config(), self.weight_bytes() as u64)
    }

    fn segments(&self) -> usize {
        self.config().type_vocab_size
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        FastEncoder::score(self, batch, control)
    }
}

impl Classifier for PlainEncoder {
    fn info(&self) -> ModelInfo {
        info(self.config(), 4 * Layout::new(self.config()).len() as u64)
    }

    fn segments(&self) -> usize {
        self.config().type_vocab_size
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        PlainEncoder::score(self, batch, control)
    }
}

impl Scorer for EncoderScorer {
    fn info(&self) -> ModelInfo {
        self.info.clone()
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        super::check(&self.info, self.classifier.segments(), batch)?;
        let scores = self.classifier.score(batch, control)?;
        if let Some(i) = scores.iter().position(|score| !score.is_finite()) {
            let row = i / self.info.labels as usize;
            return Err(Failure::not_finite(format!(
                "the score of row {row} is {}; check the weights",
                scores[i]
            )));
        }
        Ok(scores)
    }
}
