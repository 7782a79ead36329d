//! All parameters of a classifier in one flat array, and transformers' names for its parts.
//!
//! Queries, keys and values of a layer are neighbours, so that they are one `(3 * hidden, hidden)` weight to
//! whoever multiplies, and three tensors in a checkpoint.

use std::ops::Range;

use cappy_plugin_abi::Failure;

use super::config::{EncoderConfig, Family};
use crate::weights::Checkpoint;

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Slot {
    /// transformers' name.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    /// Where it lies in the flat array.
    pub range: Range<usize>,
}

/// Weight `(out, in)` and bias `(out)` of a linear layer.
#[derive(Clone, Debug)]
pub struct LinearAt {
    /// Where the weight lies.
    pub weight: Range<usize>,
    /// Where the bias lies.
    pub bias: Range<usize>,
    /// Rows of the weight.
    pub out: usize,
    /// Columns of the weight.
    pub input: usize,
}

/// Weight and bias of a layer normalisation, `(hidden)` each.
#[derive(Clone, Debug)]
pub struct NormAt {
    /// Where the weight lies.
    pub weight: Range<usize>,
    /// Where the bias lies.
    pub bias: Range<usize>,
}

/// One encoder layer.
#[derive(Clone, Debug)]
pub struct LayerAt {
    /// Queries, keys, values: `(3 * hidden, hidden)`.
    pub qkv: LinearAt,
    /// Attention output: `(hidden, hidden)`.
    pub output: LinearAt,
    /// After attention.
    pub attention_norm: NormAt,
    /// `(intermediate, hidden)`.
    pub up: LinearAt,
    /// `(hidden, intermediate)`.
    pub down: LinearAt,
    /// After the feed-forward network.
    pub ffn_norm: NormAt,
}

/// Where every parameter lies.
#[derive(Clone, Debug)]
pub struct Layout {
    /// `(vocab_size, hidden)`.
    pub word: Range<usize>,
    /// `(max_positions, hidden)`.
    pub position: Range<usize>,
    /// `(type_vocab_size, hidden)`.
    pub token_type: Range<usize>,
    /// After the embeddings.
    pub embedding_norm: NormAt,
    /// In order.
    pub layers: Vec<LayerAt>,
    /// RoBERTa's `classifier.dense`, BERT's pooler: `(hidden, hidden)`.
    pub dense: LinearAt,
    /// `(labels, hidden)`.
    pub out: LinearAt,
    /// All tensors, ascending.
    pub slots: Vec<Slot>,
}

struct Builder {
    slots: Vec<Slot>,
    len: usize,
}

impl Builder {
    fn add(&mut self, name: String, shape: &[usize]) -> Range<usize> {
        let range = self.len..self.len + shape.iter().product::<usize>();
        self.len = range.end;
        self.slots.push(Slot { name, shape: shape.to_vec(), range: range.clone() });
        range
    }

    /// Linear layers over one input, stacked.
    fn stacked(&mut self, names: &[String], out: usize, input: usize) -> LinearAt {
        let start = self.len;
        for name in names {
            self.add(format!("{name}.weight"), &[out, input]);
        }
        let middle = self.len;
        for name in names {
            self.add(format!("{name}.bias"), &[out]);
        }
        LinearAt { weight: start..middle, bias: middle..self.len, out: out * names.len(), input }
    }

    fn linear(&mut self, name: String, out: usize, input: usize) -> LinearAt {
        self.stacked(&[name], out, input)
    }

    fn norm(&mut self, name: &str, hidden: usize) -> NormAt {
        NormAt {
            weight: self.add(format!("{name}.weight"), &[hidden]),
            bias: self.add(format!("{name}.bias"), &[hidden]),
        }
    }
}

impl Layout {
    /// The layout of a configuration.
    pub fn new(config: &EncoderConfig) -> Self {
        let (h, f) = (config.hidden, config.intermediate);
        let (base, dense, out) = match config.family {
            Family::Roberta | Family::XlmRoberta => ("roberta", "classifier.dense", "classifier.out_proj"),
            Family::Bert => ("bert", "bert.pooler.dense", "classifier"),
        };
        let mut b = Builder { slots: Vec::new(), len: 0 };
        let embedding = |part: &str| format!("{base}.embeddings.{part}_embeddings.weight");
        let word = b.add(embedding("word"), &[config.vocab_size, h]);
        let position = b.add(embedding("position"), &[config.max_positions, h]);
        let token_type = b.add(embedding("token_type"), &[config.type_vocab_size, h]);
        let embedding_norm = b.norm(&format!("{base}.embeddings.LayerNorm"), h);
        let layers = (0..config.layers)
            .map(|i| {
                let name = |part: &str| format!("{base}.encoder.layer.{i}.{part}");
                let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
                LayerAt {
                    qkv: b.stacked(&qkv, h, h),
                    output: b.linear(name("attention.output.dense"), h, h),
                    attention_norm: b.norm(&name("attention.output.LayerNorm"), h),
                    up: b.linear(name("intermediate.dense"), f, h),
                    down: b.linear(name("output.dense"), h, f),
                    ffn_norm: b.norm(&name("output.LayerNorm"), h),
                }
            })
            .collect();
        let dense = b.linear(dense.into(), h, h);
        let out = b.linear(out.into(), config.labels, h);
        Self { word, position, token_type, embedding_norm, layers, dense, out, slots: b.slots }
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.slots.last().map_or(0, |slot| slot.range.end)
    }

    /// Whether there are none, which no configuration has.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Indices of the tensors within a part of the flat array.
    pub fn slots_in(&self, range: &Range<usize>) -> Range<usize> {
        let first = self.slots.partition_point(|slot| slot.range.end <= range.start);
        let end = self.slots.partition_point(|slot| slot.range.start < range.end);
        first..end
    }

    /// Indices of the classification head's tensors.
    pub fn head(&self) -> Range<usize> {
        self.slots_in(&(self.dense.weight.start..self.out.bias.end))
    }

    /// Reads a part of the flat array from a checkpoint into `to`.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or of another shape.
    pub fn read_into(
        &self,
        checkpoint: &Checkpoint,
        range: &Range<usize>,
        to: &mut [f32],
    ) -> Result<(), Failure> {
        for slot in &self.slots[self.slots_in(range)] {
            let to = &mut to[slot.range.start - range.start..slot.range.end - range.start];
            checkpoint.read_into(stored_name(checkpoint, &slot.name).as_ref(), &slot.shape, to)?;
        }
        Ok(())
    }

    /// As [`Layout::read_into`], into fresh memory.
    ///
    /// # Errors
    /// As [`Layout::read_into`].
    pub fn read(&self, checkpoint: &Checkpoint, range: &Range<usize>) -> Result<Vec<f32>, Failure> {
        let mut values = vec![0.0; range.len()];
        self.read_into(checkpoint, range, &mut values)?;
        Ok(values)
    }
}

/// Checkpoints converted from TensorFlow call a layer norm's weight `gamma` and its bias `beta`.
fn stored_name(checkpoint: &Checkpoint, name: &str) -> String {
    if !checkpoint.contains(name)
        && let Some(norm) = name.strip_suffix(".weight").filter(|n| n.ends_with("LayerNorm"))
        && checkpoint.contains(&format!("{norm}.gamma"))
    {
        return format!("{norm}.gamma");
    }
    if !checkpoint.contains(name)
        && let Some(norm) = name.strip_suffix(".bias").filter(|n| n.ends_with("LayerNorm"))
        && checkpoint.contains(&format!("{norm}.beta"))
    {
        return format!("{norm}.beta");
    }
    name.to_string()
}
