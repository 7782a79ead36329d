//! Layers over packed weights that the fast paths are made of.

use cappy_plugin_abi::Failure;
use rayon::prelude::*;

use super::slots::{LinearAt, NormAt, Slots};
use crate::kernels::{Buffer, Epilogue, Matrix, Packed, activation, gemm, rowwise};
use crate::weights::Checkpoint;

/// Rows of hidden states handled by one task.
pub(super) const ROWS: usize = 32;

/// A linear layer.
pub(super) struct Linear {
    pub weight: Packed,
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// `weight`: `(out, in)` row-major.
    pub fn new(weight: &[f32], out: usize, input: usize, bias: Option<Vec<f32>>) -> Self {
        Self { weight: Packed::from_weight(weight, out, input), bias }
    }

    /// `to = from . weight^T + bias`; `from`: `(m, in)`, `to`: `(m, out)`.
    pub fn store(&self, from: &[f32], m: usize, to: &mut [f32]) {
        self.run(from, m, to, self.bias.as_deref().map_or(Epilogue::Store, Epilogue::Bias));
    }

    /// `to += from . weight^T + bias`.
    pub fn add(&self, from: &[f32], m: usize, to: &mut [f32]) {
        self.run(from, m, to, self.bias.as_deref().map_or(Epilogue::Add, Epilogue::BiasAdd));
    }

    /// `to = gelu(from . weight^T + bias)`, the exact form.
    pub fn gelu(&self, from: &[f32], m: usize, to: &mut [f32]) {
        match &self.bias {
            Some(bias) => self.run(from, m, to, Epilogue::BiasGelu(bias)),
            None => {
                self.run(from, m, to, Epilogue::Store);
                to.par_chunks_mut(ROWS * self.weight.n()).for_each(activation::gelu);
            }
        }
    }

    fn run(&self, from: &[f32], m: usize, to: &mut [f32], epilogue: Epilogue<'_>) {
        gemm(Matrix::new(from, m, self.weight.k()), &self.weight, to, self.weight.n(), epilogue);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + 4 * self.bias.as_ref().map_or(0, Vec::len)
    }
}

/// A layer normalisation; without bias it is zero.
pub(super) struct Norm {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

impl Norm {
    /// Of each row, in place, in parallel.
    pub fn apply(&self, x: &mut [f32], eps: f32) {
        x.par_chunks_mut(ROWS * self.weight.len()).for_each(|rows| self.apply_here(rows, eps));
    }

    /// As [`Norm::apply`], on the calling thread.
    pub fn apply_here(&self, x: &mut [f32], eps: f32) {
        rowwise::layer_norm(x, &self.weight, &self.bias, eps);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * (self.weight.len() + self.bias.len())
    }
}

/// Moves the states of rows' first tokens to the front, `(rows, hidden)`, and forgets the others.
pub(super) fn keep_firsts(states: &mut Buffer, offsets: &[usize], hidden: usize) {
    let rows = offsets.len() - 1;
    for (row, &token) in offsets[..rows].iter().enumerate() {
        // Ascending, so none is overwritten before it was moved.
        states.copy_within(token * hidden..(token + 1) * hidden, row * hidden);
    }
    states.resized(rows * hidden);
}

/// Reads parts of a model.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub slots: &'a Slots,
    pub checkpoint: &'a Checkpoint,
}

impl Source<'_> {
    /// A tensor, or several neighbours, as they are.
    pub fn read(&self, range: &std::ops::Range<usize>) -> Result<Vec<f32>, Failure> {
        self.slots.read(self.checkpoint, range)
    }

    pub fn linear(&self, at: &LinearAt) -> Result<Linear, Failure> {
        let bias = if at.bias.is_empty() { None } else { Some(self.read(&at.bias)?) };
        Ok(Linear::new(&self.read(&at.weight)?, at.out, at.input, bias))
    }

    pub fn norm(&self, at: &NormAt) -> Result<Norm, Failure> {
        let weight = self.read(&at.weight)?;
        let bias = if at.bias.is_empty() { vec![0.0; weight.len()] } else { self.read(&at.bias)? };
        Ok(Norm { weight, bias })
    }
}
