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
use crate::place::Place;
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
    pub fn load(
        config_json: &str,
        checkpoint: &Checkpoint,
        place: impl Into<Place>,
    ) -> Result<Self, Failure> {
        let place = place.into();
        let Identity { family, classifier, .. } = Identity::parse(config_json)?;
        // One that was fine-tuned from a bare encoder keeps that encoder's configuration.
        if !classifier && !checkpoint.contains(family.head()) {
            return Err(Failure::unsupported(
                "`config.json` names a model without a classification head; fine-tune it first",
            ));
        }
        let classifier = match place.device {
            Device::Cpu => fast(family, config_json, checkpoint)?,
            _ => plain(family, config_json, checkpoint, place)?,
        };
        Ok(Self { info: classifier.info(), classifier })
    }
}

fn fast(family: Family, config_json: &str, checkpoint: &Checkpoint) -> Result<Box<dyn Classifier>, Failure> {
    Ok(match family {
        Family::ModernBert => {
            Box::new(modernbert::Fast::load(ModernBertConfig::parse(config_json)?, checkpoint)?)
        }
        Family::DebertaV2 => Box::new(deberta::Fast::load(DebertaConfig::parse(config_json)?, checkpoint)?),
        _ => Box::new(FastEncoder::load(EncoderConfig::parse(config_json)?, checkpoint)?),
    })
}

fn plain(
    family: Family,
    config_json: &str,
    checkpoint: &Checkpoint,
    place: Place,
) -> Result<Box<dyn Classifier>, Failure> {
    Ok(match family {
        Family::ModernBert => {
            Box::new(modernbert::Plain::load(ModernBertConfig::parse(config_json)?, checkpoint, place)?)
        }
        Family::DebertaV2 => {
            Box::new(deberta::Plain::load(DebertaConfig::parse(config_json)?, checkpoint, place)?)
        }
        _ => Box::new(PlainEncoder::load(EncoderConfig::parse(config_json)?, checkpoint, place)?),
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use cappy_plugin_abi::random::{fold, mix};
    use cappy_plugin_abi::{TokenRows, Unattended};
    use cappy_plugin_suite::{device, fixture_dir};
    use std::collections::HashMap;

    fn fixture(model: &str) -> (String, Checkpoint) {
        let folder = fixture_dir("encoders").join(model);
        let json = std::fs::read_to_string(folder.join("config.json")).unwrap();
        (json, Checkpoint::open(&folder).unwrap())
    }

    /// Of lengths that make one padded group.
    fn rows() -> TokenRows {
        let mut rows = TokenRows::new();
        for (i, length) in [9, 30, 3, 17, 30, 1].into_iter().enumerate() {
            let row: Vec<u32> = (0..length).map(|t| 4 + (fold(mix(i as u64), t) % 80) as u32).collect();
            rows.push(&row);
        }
        rows
    }

    fn difference(left: &[f32], right: &[f32]) -> f32 {
        assert_eq!(left.len(), right.len());
        left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// A GPU computes in bf16. candle does not multiply that on the CPU; f16 takes the same way.
    #[test]
    fn lower_numbers_give_nearly_the_same_scores() {
        let Place { device, dtype } = Place::named(&device(), "f32").unwrap();
        let lower = if device.is_cpu() { (DType::F16, "f16", 1e-2) } else { (DType::BF16, "bf16", 5e-2) };
        for model in
            ["roberta", "bert", "distilbert", "modernbert", "modernbert-mean", "deberta-v3", "deberta-v2"]
        {
            let (json, checkpoint) = fixture(model);
            let family = Identity::parse(&json).unwrap().family;
            let rows = rows();
            let expected = fast(family, &json, &checkpoint).unwrap().score(rows.view(), &Unattended).unwrap();
            for (dtype, name, bound) in [(dtype, "f32", 1e-4), lower] {
                let place = Place { device: device.clone(), dtype };
                let mut plain = plain(family, &json, &checkpoint, place).unwrap();
                let info = plain.info();
                assert_eq!(info.dtype, name, "{model}");
                let least = info.parameters * dtype.size_in_bytes() as u64;
                assert!((least..2 * least + 4096).contains(&info.weight_bytes), "{model}: {info:?}");
                let scores = plain.score(rows.view(), &Unattended).unwrap();
                let difference = difference(&scores, &expected);
                assert!(difference <= bound, "{model} in {name}: {difference}");
                assert!(dtype == DType::F32 || difference > 0.0, "{model}: {name} was not used");
            }
        }
    }

    /// Whole kernels for normalisation and softmax against operations that have a backward pass.
    #[test]
    fn operations_with_gradients_give_the_same_scores() {
        for model in ["roberta", "bert", "distilbert"] {
            let (json, checkpoint) = fixture(model);
            let config = EncoderConfig::parse(&json).unwrap();
            let layout = Layout::new(&config);
            let tensors: HashMap<_, _> = layout
                .slots
                .list()
                .iter()
                .map(|slot| {
                    let values = layout.slots.read(&checkpoint, &slot.range).unwrap();
                    let tensor = candle_core::Tensor::from_vec(values, slot.shape.as_slice(), &Device::Cpu);
                    (slot.name.clone(), tensor.unwrap())
                })
                .collect();
            let mut slow = PlainEncoder::from_tensors(config.clone(), tensors, Device::Cpu);
            let mut quick = PlainEncoder::load(config, &checkpoint, Device::Cpu).unwrap();
            let rows = rows();
            let [slow, quick] = [&mut slow, &mut quick].map(|it| it.score(rows.view(), &Unattended).unwrap());
            assert!(difference(&slow, &quick) <= 1e-5, "{model}: {slow:?}, {quick:?}");
        }
    }
}
