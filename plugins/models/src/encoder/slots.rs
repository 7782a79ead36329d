//! The parameters of a classifier in one flat array, with transformers' names, and how they are found in checkpoints
//! that call them otherwise.

use std::ops::Range;

use cappy_plugin_abi::Failure;

use super::family::LabelRow;
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
    /// Set where it may be one row of what the checkpoint holds.
    label_row: Option<LabelRow>,
}

/// Weight `(out, in)` and bias `(out)` of a linear layer.
#[derive(Clone, Debug)]
pub struct LinearAt {
    /// Where the weight lies.
    pub weight: Range<usize>,
    /// Where the bias lies; empty where there is none.
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
    /// Where the bias lies; empty where there is none.
    pub bias: Range<usize>,
}

/// All tensors, ascending.
#[derive(Clone, Debug)]
pub struct Slots {
    list: Vec<Slot>,
    /// Where names begin in a checkpoint of the whole classifier: `bert`.
    base: &'static str,
}

impl Slots {
    /// None yet, of an encoder whose module is called `base`.
    pub fn new(base: &'static str) -> Self {
        Self { list: Vec::new(), base }
    }

    /// Appends a tensor.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize]) -> Range<usize> {
        let start = self.len();
        let range = start..start + shape.iter().product::<usize>();
        let slot = Slot { name: name.into(), shape: shape.to_vec(), range: range.clone(), label_row: None };
        self.list.push(slot);
        range
    }

    /// Appends linear layers over one input, as one of their stacked outputs.
    pub fn stacked(&mut self, names: &[String], out: usize, input: usize, bias: bool) -> LinearAt {
        let start = self.len();
        for name in names {
            self.add(format!("{name}.weight"), &[out, input]);
        }
        let middle = self.len();
        for name in names.iter().filter(|_| bias) {
            self.add(format!("{name}.bias"), &[out]);
        }
        LinearAt { weight: start..middle, bias: middle..self.len(), out: out * names.len(), input }
    }

    /// Appends a linear layer.
    pub fn linear(&mut self, name: impl Into<String>, out: usize, input: usize, bias: bool) -> LinearAt {
        self.stacked(&[name.into()], out, input, bias)
    }

    /// Appends the projection to labels, perhaps one of several that the checkpoint holds.
    pub fn labels(&mut self, name: &str, labels: usize, input: usize, row: Option<LabelRow>) -> LinearAt {
        let first = self.list.len();
        let at = self.linear(name, labels, input, true);
        self.list[first..].iter_mut().for_each(|slot| slot.label_row = row);
        at
    }

    /// Appends a layer normalisation.
    pub fn norm(&mut self, name: &str, hidden: usize, bias: bool) -> NormAt {
        let weight = self.add(format!("{name}.weight"), &[hidden]);
        let none = weight.end..weight.end;
        NormAt { weight, bias: if bias { self.add(format!("{name}.bias"), &[hidden]) } else { none } }
    }

    /// All tensors.
    pub fn list(&self) -> &[Slot] {
        &self.list
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.list.last().map_or(0, |slot| slot.range.end)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Indices of the tensors within a part of the flat array.
    pub fn within(&self, range: &Range<usize>) -> Range<usize> {
        let first = self.list.partition_point(|slot| slot.range.end <= range.start);
        let end = self.list.partition_point(|slot| slot.range.start < range.end);
        first..end.max(first)
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
        for slot in &self.list[self.within(range)] {
            let to = &mut to[slot.range.start - range.start..slot.range.end - range.start];
            let name = self.stored_name(checkpoint, &slot.name);
            match slot.label_row {
                // A model that was fine-tuned on one label holds that one alone.
                Some(row) if checkpoint.shape(&name) != Some(slot.shape.as_slice()) => {
                    let mut shape = slot.shape.clone();
                    shape[0] = row.of;
                    let width = shape.iter().skip(1).product();
                    checkpoint.read_block_into(&name, &shape, row.index..row.index + 1, 0..width, to)?;
                }
                _ => checkpoint.read_into(&name, &slot.shape, to)?,
            }
        }
        Ok(())
    }

    /// As [`Slots::read_into`], into fresh memory.
    ///
    /// # Errors
    /// As [`Slots::read_into`].
    pub fn read(&self, checkpoint: &Checkpoint, range: &Range<usize>) -> Result<Vec<f32>, Failure> {
        let mut values = vec![0.0; range.len()];
        self.read_into(checkpoint, range, &mut values)?;
        Ok(values)
    }

    /// What the checkpoint calls a tensor: as it is; converted from TensorFlow, where a layer norm has `gamma` and
    /// `beta`; or saved as the bare encoder, without the module's name in front.
    fn stored_name(&self, checkpoint: &Checkpoint, name: &str) -> String {
        let renamed = |name: &str| match name.rsplit_once('.') {
            Some((norm, "weight")) if norm.ends_with("LayerNorm") => Some(format!("{norm}.gamma")),
            Some((norm, "bias")) if norm.ends_with("LayerNorm") => Some(format!("{norm}.beta")),
            _ => None,
        };
        let bare = name.strip_prefix(self.base).and_then(|rest| rest.strip_prefix('.'));
        let candidates = [renamed(name), bare.map(str::to_owned), bare.and_then(renamed)];
        if checkpoint.contains(name) {
            return name.to_owned();
        }
        let found = candidates.into_iter().flatten().find(|candidate| checkpoint.contains(candidate));
        found.unwrap_or_else(|| name.to_owned())
    }
}
