//! Layers that networks are made of, and where their tensors come from.

use std::ops::Range;

use cappy_plugin_models::encoder::slots::{LinearAt, NormAt, Slots};
use cappy_plugin_models::weights::Checkpoint;
use tch::{Device, Kind, Tensor};

use crate::engine::Result;
use crate::weights::filled;

/// Whatever gives the tensors of a network, by their place among its parameters.
pub trait Parameters {
    /// The numbers at `range`, as a tensor of `shape`.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or misshapen; `OutOfMemory`.
    fn tensor(&mut self, range: &Range<usize>, shape: &[usize]) -> Result<Tensor>;
}

impl dyn Parameters + '_ {
    /// A linear layer.
    pub fn linear(&mut self, at: &LinearAt) -> Result<Linear> {
        let bias = if at.bias.is_empty() { None } else { Some(self.tensor(&at.bias, &[at.out])?) };
        Ok(Linear { weight: self.tensor(&at.weight, &[at.out, at.input])?, bias })
    }

    /// A layer normalisation.
    pub fn norm(&mut self, at: &NormAt, eps: f32) -> Result<Norm> {
        let width = at.weight.len();
        let bias = if at.bias.is_empty() { None } else { Some(self.tensor(&at.bias, &[width])?) };
        Ok(Norm { weight: self.tensor(&at.weight, &[width])?, bias, eps: f64::from(eps) })
    }

    /// A table of `rows` embeddings, if it has any.
    pub fn table(&mut self, at: &Range<usize>, rows: usize) -> Result<Option<Tensor>> {
        if at.is_empty() {
            return Ok(None);
        }
        self.tensor(at, &[rows, at.len() / rows]).map(Some)
    }
}

/// Tensors of a checkpoint.
pub struct Stored<'a> {
    slots: &'a Slots,
    checkpoint: &'a Checkpoint,
    device: Device,
    kind: Kind,
    /// Of the tensors that were asked for.
    pub bytes: u64,
}

impl<'a> Stored<'a> {
    /// Reads the tensors of `slots` to `device`.
    pub fn new(slots: &'a Slots, checkpoint: &'a Checkpoint, device: Device, kind: Kind) -> Self {
        Self { slots, checkpoint, device, kind, bytes: 0 }
    }
}

impl Parameters for Stored<'_> {
    fn tensor(&mut self, range: &Range<usize>, shape: &[usize]) -> Result<Tensor> {
        self.bytes += (range.len() * self.kind.elt_size_in_bytes()) as u64;
        filled(shape, self.device, self.kind, |to| self.slots.read_into(self.checkpoint, range, to))
    }
}

/// A linear layer: weight `(out, in)`, bias `(out)`.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// `x`: `(.., in)`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }

    /// The layer that makes `out` of these outputs.
    pub fn part(&self, out: Range<usize>) -> Result<Self> {
        let of = |x: &Tensor| x.f_narrow(0, out.start as i64, out.len() as i64);
        Ok(Self { weight: of(&self.weight)?, bias: self.bias.as_ref().map(of).transpose()? })
    }
}

/// A layer normalisation over the last dimension.
pub struct Norm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl Norm {
    /// `x`: `(.., width)`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_layer_norm(self.weight.size(), Some(&self.weight), self.bias.as_ref(), self.eps, false)?)
    }
}
