//! Multi-head self-attention over ragged rows: every (row, head) is a task of its own, nothing is padded.
//!
//! `qkv` is `(tokens, 3 * heads * head_dim)`: queries, keys and values of a token side by side. Scores are scaled by
//! `head_dim^-0.5`. Source: Vaswani et al., arXiv 1706.03762, section 3.2.

mod banded;
mod disentangled;
mod first;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::buffer::Buffer;
use super::gemm::{Epilogue, gemm_columns, gemm_here};
use super::operands::{Matrix, Packed};
use super::rowwise;

pub use banded::attend_banded;
pub use disentangled::{Positions, attend_disentangled};
pub use first::{attend_first, attend_first_backward, attend_first_kept};

/// Rows of a batch and heads of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// `[rows + 1]`: row `i` has tokens `offsets[i]..offsets[i + 1]`.
    pub offsets: &'a [usize],
    /// Number of heads.
    pub heads: usize,
    /// Numbers a head.
    pub head_dim: usize,
}

impl Heads<'_> {
    /// Width of a hidden state.
    pub fn hidden(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Tokens of all rows.
    pub fn tokens(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// Numbers of all attention matrices: `heads * length^2` a row.
    pub fn probabilities(&self) -> usize {
        self.offsets.windows(2).map(|w| self.heads * (w[1] - w[0]).pow(2)).sum()
    }

    fn scale(&self) -> f32 {
        (self.head_dim as f32).powf(-0.5)
    }

    /// Every (row, head), with where its attention matrix lies among all.
    fn tasks(&self) -> Vec<Task> {
        let mut at = 0;
        let mut tasks = Vec::with_capacity((self.offsets.len().max(1) - 1) * self.heads);
        for (row, w) in self.offsets.windows(2).enumerate() {
            let length = w[1] - w[0];
            for head in 0..self.heads {
                let probabilities = at..at + length * length;
                at = probabilities.end;
                tasks.push(Task { row, head, tokens: w[0]..w[1], probabilities });
            }
        }
        tasks
    }
}

struct Task {
    row: usize,
    head: usize,
    tokens: Range<usize>,
    probabilities: Range<usize>,
}

/// Memory of one thread.
#[derive(Default)]
struct Scratch {
    left: Packed,
    right: Packed,
    matrix: Buffer,
    dropped: Buffer,
    table: Buffer,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// An output that tasks write at disjoint places.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: tasks write disjoint (row, head) blocks of it.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `at` lies within the output.
    unsafe fn at(self, at: usize) -> *mut f32 {
        // SAFETY: promised by the caller.
        unsafe { self.0.add(at) }
    }
}

/// Rows `tokens`, columns `first..first + cols` of a matrix `width` wide.
fn part<'a>(data: &'a [f32], tokens: &Range<usize>, width: usize, first: usize, cols: usize) -> Matrix<'a> {
    Matrix::strided(&data[tokens.start * width + first..tokens.end * width], tokens.len(), cols, width)
}

/// Attention of all rows: `out` gets `(tokens, hidden)`.
pub fn attend(qkv: &[f32], shape: Heads<'_>, out: &mut [f32]) {
    let (hidden, d) = (shape.hidden(), shape.head_dim);
    assert!(qkv.len() >= shape.tokens() * 3 * hidden && out.len() >= shape.tokens() * hidden);
    let out = Shared(out.as_mut_ptr());
    shape.tasks().into_par_iter().for_each(|task| {
        SCRATCH.with_borrow_mut(|scratch| {
            let length = task.tokens.len();
            let piece = |which: usize| part(qkv, &task.tokens, 3 * hidden, which * hidden + task.head * d, d);
            let matrix = scratch.matrix.resized(length * length);
            scratch.left.fill_here(piece(1).t());
            gemm_here(piece(0), &scratch.left, matrix, length, Epilogue::Store);
            rowwise::softmax(matrix, length, shape.scale());
            scratch.right.fill_here(piece(2));
            // SAFETY: this task's rows and columns of `out`, whose size was checked.
            unsafe {
                let to = out.at(task.tokens.start * hidden + task.head * d);
                gemm_columns(
                    Matrix::new(matrix, length, length),
                    &scratch.right,
                    to,
                    hidden,
                    Epilogue::Store,
                );
            }
        });
    });
}

/// As [`attend`], keeping the attention matrices for [`attend_backward`] (`[heads][length][length]` a row), with
/// dropout on them: `drop(row, head, query, weights)`.
pub fn attend_kept(
    qkv: &[f32],
    shape: Heads<'_>,
    drop: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
    kept: &mut [f32],
    out: &mut [f32],
) {
    let (hidden, d) = (shape.hidden(), shape.head_dim);
    assert!(qkv.len() >= shape.tokens() * 3 * hidden && out.len() >= shape.tokens() * hidden);
    assert!(kept.len() >= shape.probabilities());
    let (kept, out) = (Shared(kept.as_mut_ptr()), Shared(out.as_mut_ptr()));
    shape.tasks().into_par_iter().for_each(|task| {
        SCRATCH.with_borrow_mut(|scratch| {
            let length = task.tokens.len();
            let piece = |which: usize| part(qkv, &task.tokens, 3 * hidden, which * hidden + task.head * d, d);
            // SAFETY: this task's matrix within `kept`, whose size was checked.
            let matrix = unsafe {
                std::slice::from_raw_parts_mut(kept.at(task.probabilities.start), task.probabilities.len())
            };
            scratch.left.fill_here(piece(1).t());
            gemm_here(piece(0), &scratch.left, matrix, length, Epilogue::Store);
            rowwise::softmax(matrix, length, shape.scale());
            let dropped = scratch.dropped.resized(length * length);
            dropped.copy_from_slice(matrix);
            for (query, weights) in dropped.chunks_exact_mut(length).enumerate() {
                drop(task.row, task.head, query, weights);
            }
            scratch.right.fill_here(piece(2));
            // SAFETY: this task's rows and columns of `out`, whose size was checked.
            unsafe {
                let to = out.at(task.tokens.start * hidden + task.head * d);
                gemm_columns(
                    Matrix::new(dropped, length, length),
                    &scratch.right,
                    to,
                    hidden,
                    Epilogue::Store,
                );
            }
        });
    });
}

/// Gradient of [`attend_kept`]: `d_qkv` gets `(tokens, 3 * hidden)` from `d_out`, `(tokens, hidden)`.
pub fn attend_backward(
    qkv: &[f32],
    kept: &[f32],
    d_out: &[f32],
    shape: Heads<'_>,
    drop: impl Fn(usize, usize, usize, &mut [f32]) + Sync,
    d_qkv: &mut [f32],
) {
    let (hidden, d) = (shape.hidden(), shape.head_dim);
    assert!(d_qkv.len() >= shape.tokens() * 3 * hidden);
    let d_qkv = Shared(d_qkv.as_mut_ptr());
    shape.tasks().into_par_iter().for_each(|task| {
        SCRATCH.with_borrow_mut(|scratch| {
            let length = task.tokens.len();
            let piece = |which: usize| part(qkv, &task.tokens, 3 * hidden, which * hidden + task.head * d, d);
            let d_out = part(d_out, &task.tokens, hidden, task.head * d, d);
            let matrix = &kept[task.probabilities.clone()];
            let to = |which: usize| {
                // SAFETY: `d_qkv` was checked to hold all tokens.
                unsafe { d_qkv.at(task.tokens.start * 3 * hidden + which * hidden + task.head * d) }
            };
            let dropped = scratch.dropped.resized(length * length);
            dropped.copy_from_slice(matrix);
            for (query, weights) in dropped.chunks_exact_mut(length).enumerate() {
                drop(task.row, task.head, query, weights);
            }
            scratch.left.fill_here(d_out);
            // SAFETY: here and below: this task's rows and columns of `d_qkv`.
            unsafe {
                let weights = Matrix::new(dropped, length, length).t();
                gemm_columns(weights, &scratch.left, to(2), 3 * hidden, Epilogue::Store);
            }
            let slopes = scratch.matrix.resized(length * length);
            scratch.right.fill_here(piece(2).t());
            gemm_here(d_out, &scratch.right, slopes, length, Epilogue::Store);
            for (query, slopes) in slopes.chunks_exact_mut(length).enumerate() {
                drop(task.row, task.head, query, slopes);
            }
            rowwise::softmax_backward(slopes, matrix, length, shape.scale());
            let slopes = Matrix::new(slopes, length, length);
            scratch.left.fill_here(piece(1));
            scratch.right.fill_here(piece(0));
            // SAFETY: as above.
            unsafe {
                gemm_columns(slopes, &scratch.left, to(0), 3 * hidden, Epilogue::Store);
                gemm_columns(slopes.t(), &scratch.right, to(1), 3 * hidden, Epilogue::Store);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::filled;

    const OFFSETS: [usize; 4] = [0, 5, 6, 40];
    const SHAPE: Heads<'static> = Heads { offsets: &OFFSETS, heads: 3, head_dim: 5 };
    const HIDDEN: usize = 15;

    /// One fixed mask, so that dropout has a derivative.
    fn mask(row: usize, head: usize, query: usize, weights: &mut [f32]) {
        for (key, weight) in weights.iter_mut().enumerate() {
            *weight *= if (row + head + 2 * query + key).is_multiple_of(7) { 0.0 } else { 1.25 };
        }
    }

    fn plain(qkv: &[f64], dropout: bool) -> Vec<f64> {
        let mut out = vec![0.0; SHAPE.tokens() * HIDDEN];
        let at = |t: usize, which: usize, head: usize, c: usize| qkv[(t * 3 + which) * HIDDEN + head * 5 + c];
        for (row, w) in OFFSETS.windows(2).enumerate() {
            for head in 0..3 {
                for i in w[0]..w[1] {
                    let score = |j: usize| (0..5).map(|c| at(i, 0, head, c) * at(j, 1, head, c)).sum::<f64>();
                    let e: Vec<f64> = (w[0]..w[1]).map(|j| (score(j) * 5.0_f64.powf(-0.5)).exp()).collect();
                    let sum: f64 = e.iter().sum();
                    let mut weights: Vec<f32> = vec![1.0; e.len()];
                    if dropout {
                        mask(row, head, i - w[0], &mut weights);
                    }
                    for c in 0..5 {
                        out[i * HIDDEN + head * 5 + c] = (w[0]..w[1])
                            .map(|j| f64::from(weights[j - w[0]]) * e[j - w[0]] / sum * at(j, 2, head, c))
                            .sum();
                    }
                }
            }
        }
        out
    }

    fn close(got: &[f32], expected: &[f64], bound: f64) {
        for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            assert!((f64::from(got) - expected).abs() < bound, "element {i}: {got} not {expected}");
        }
    }

    #[test]
    fn forward_and_backward_agree_with_the_formula() {
        let qkv: Vec<f32> = filled(40 * 3 * HIDDEN, 1).iter().map(|x| 2.0 * x).collect();
        let wide: Vec<f64> = qkv.iter().map(|&x| f64::from(x)).collect();
        let mut out = vec![0.0; 40 * HIDDEN];
        attend(&qkv, SHAPE, &mut out);
        close(&out, &plain(&wide, false), 1e-5);

        let first: Vec<f32> = OFFSETS[..3].iter().flat_map(|&t| qkv[t * 45..t * 45 + 15].to_vec()).collect();
        let kv: Vec<f32> = qkv.chunks(45).flat_map(|token| token[15..].to_vec()).collect();
        let mut of_first = vec![0.0; 3 * HIDDEN];
        attend_first(&first, &kv, SHAPE, &mut of_first);
        for (row, &t) in OFFSETS[..3].iter().enumerate() {
            let expected: Vec<f64> = out[t * 15..][..15].iter().map(|&x| f64::from(x)).collect();
            close(&of_first[row * 15..][..15], &expected, 1e-5);
        }

        let mut kept = vec![0.0; 3 * 40];
        let drop = |row: usize, head: usize, w: &mut [f32]| mask(row, head, 0, w);
        attend_first_kept(&first, &kv, SHAPE, drop, &mut kept, &mut of_first);
        let with_dropout = plain(&wide, true);
        for (row, &t) in OFFSETS[..3].iter().enumerate() {
            close(&of_first[row * 15..][..15], &with_dropout[t * 15..][..15], 1e-5);
        }
        let d_first = filled(of_first.len(), 3);
        let (mut d_q, mut d_kv) = (vec![0.0; first.len()], vec![0.0; kv.len()]);
        attend_first_backward((&first, &kv, &kept), &d_first, SHAPE, drop, &mut d_q, &mut d_kv);

        let mut kept = vec![0.0; SHAPE.probabilities()];
        attend_kept(&qkv, SHAPE, mask, &mut kept, &mut out);
        close(&out, &plain(&wide, true), 1e-5);
        let d_out = filled(out.len(), 2);
        let mut d_qkv = vec![0.0; qkv.len()];
        attend_backward(&qkv, &kept, &d_out, SHAPE, mask, &mut d_qkv);
        // The gradient of first tokens alone is that of an output gradient which is 0 elsewhere.
        let (mut sparse, mut of_sparse) = (vec![0.0; d_out.len()], vec![0.0; qkv.len()]);
        for (row, &t) in OFFSETS[..3].iter().enumerate() {
            sparse[t * 15..][..15].copy_from_slice(&d_first[row * 15..][..15]);
        }
        attend_backward(&qkv, &kept, &sparse, SHAPE, mask, &mut of_sparse);
        for (row, &t) in OFFSETS[..3].iter().enumerate() {
            let expected: Vec<f64> = of_sparse[t * 45..][..15].iter().map(|&x| f64::from(x)).collect();
            close(&d_q[row * 15..][..15], &expected, 1e-5);
        }
        let expected: Vec<f64> =
            of_sparse.chunks(45).flat_map(|token| &token[15..]).map(|&x| f64::from(x)).collect();
        close(&d_kv, &expected, 1e-5);

        let loss = |x: &[f64]| plain(x, true).iter().zip(&d_out).map(|(y, &g)| y * f64::from(g)).sum::<f64>();
        for i in (0..qkv.len()).step_by(13) {
            let (mut up, mut down) = (wide.clone(), wide.clone());
            up[i] += 1e-5;
            down[i] -= 1e-5;
            let expected = (loss(&up) - loss(&down)) / 2e-5;
            assert!(
                (f64::from(d_qkv[i]) - expected).abs() < 1e-4,
                "element {i}: {} not {expected}",
                d_qkv[i]
            );
        }
    }
}
