//! Gradients of a linear layer.

use rayon::prelude::*;

use super::super::gradients::Gradients;
use crate::encoder::layout::{Layout, LinearAt};
use crate::kernels::{Epilogue, Matrix, Packed, gemm, rowwise};

/// Adds the column sums of `d` (times `by`, elementwise) to `sums`, rows in order.
pub(super) fn add_columns(d: &[f32], by: Option<&[f32]>, sums: &mut [f32]) {
    const COLUMNS: usize = 256;
    let width = sums.len();
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sums)| {
        let first = chunk * COLUMNS;
        match by {
            None => rowwise::add_columns(d, width, first, sums),
            Some(by) => rowwise::add_columns_of_product(d, by, width, first, sums),
        }
    });
}

/// What the gradients of a linear layer need.
pub(super) struct LinearBackward<'a> {
    pub weights: &'a [f32],
    pub layout: &'a Layout,
    pub weight: &'a mut Packed,
    pub input: &'a mut Packed,
    pub gradients: &'a mut Gradients,
}

impl LinearBackward<'_> {
    /// Adds the gradients of weight and bias; `dx` gets (or, with `Add`, gains) the input's gradient.
    /// `x`: `(m, in)`, `dy`: `(m, out)`, `dx`: `(m, in)`.
    pub fn run(&mut self, at: &LinearAt, x: &[f32], dy: &[f32], m: usize, dx: &mut [f32], how: Epilogue<'_>) {
        self.input.fill(Matrix::new(x, m, at.input));
        let d_weight = self.gradients.at(self.layout, &at.weight);
        gemm(Matrix::new(dy, m, at.out).t(), self.input, d_weight, at.input, Epilogue::Add);
        add_columns(&dy[..m * at.out], None, self.gradients.at(self.layout, &at.bias));
        self.weight.fill(Matrix::new(&self.weights[at.weight.clone()], at.out, at.input));
        gemm(Matrix::new(dy, m, at.out), self.weight, dx, at.input, how);
    }
}
