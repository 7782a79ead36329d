//! The two sides of a matrix product: a view of numbers in rows, and a copy in the microkernel's order.

use rayon::prelude::*;

use super::buffer::Buffer;
use super::microkernel::microkernel;
use super::packing;

/// Matrices below this many elements are packed on the calling thread.
const PACK_PARALLEL_FROM: usize = 100_000;

/// A matrix in someone else's memory: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows x cols`, rows contiguous and one after the other.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// `rows x cols`, rows contiguous and `row_stride` apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len(),
            "a {rows} x {cols} matrix with rows {row_stride} apart does not fit {} numbers",
            data.len()
        );
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed matrix, same memory.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// The right-hand side of a product, `[k, n]`, in panels of a tile's width: panel `p` is `[k][NR]`.
#[derive(Clone, Default)]
pub struct Packed {
    pub(super) data: Buffer,
    pub(super) k: usize,
    pub(super) n: usize,
}

impl Packed {
    /// Empty; fill it with [`Packed::fill`].
    pub const fn new() -> Self {
        Self { data: Buffer::new(), k: 0, n: 0 }
    }

    /// Packs the weight of a linear layer, `[out, in]` row-major as checkpoints store it, to multiply rows of `in`.
    pub fn from_weight(weight: &[f32], out: usize, input: usize) -> Self {
        let mut packed = Self::new();
        packed.fill(Matrix::new(weight, out, input).t());
        packed
    }

    /// Packs `b`, reusing the memory.
    pub fn fill(&mut self, b: Matrix<'_>) {
        if b.rows * b.cols < PACK_PARALLEL_FROM {
            return self.fill_here(b);
        }
        let panel_len = self.resize(b);
        self.data.par_chunks_mut(panel_len).enumerate().for_each(|(p, panel)| packing::panel(b, p, panel));
    }

    /// As [`Packed::fill`], on the calling thread.
    pub fn fill_here(&mut self, b: Matrix<'_>) {
        let panel_len = self.resize(b);
        for (p, panel) in self.data.chunks_mut(panel_len).enumerate() {
            packing::panel(b, p, panel);
        }
    }

    /// Takes the shape of `b`; returns the length of a panel.
    fn resize(&mut self, b: Matrix<'_>) -> usize {
        let nr = microkernel().nr;
        (self.k, self.n) = (b.rows, b.cols);
        self.data.resized(b.rows * b.cols.next_multiple_of(nr));
        (b.rows * nr).max(1)
    }

    /// Rows of the packed matrix: the depth of the product.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the packed matrix.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }
}
