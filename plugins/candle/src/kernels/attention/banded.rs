//! Attention within a window, and attention of long rows: a block of queries at a time, so that memory grows with the
//! block and not with the square of the row.

use rayon::prelude::*;

use super::{Heads, SCRATCH, Shared, part};
use crate::kernels::gemm::{Epilogue, gemm_columns, gemm_here};
use crate::kernels::operands::Matrix;
use crate::kernels::rowwise;

/// Queries of a block.
const QUERIES: usize = 128;

/// As [`attend`](super::attend), of keys at most `window` tokens before or behind the query (all of them without a
/// window). `qkv`: `(tokens, 3 * hidden)`, `out`: `(tokens, hidden)`.
///
/// Source: Beltagy et al., arXiv 2004.05150, section 3.1 (sliding window).
pub fn attend_banded(qkv: &[f32], shape: Heads<'_>, window: Option<usize>, out: &mut [f32]) {
    let (hidden, d) = (shape.hidden(), shape.head_dim);
    assert!(qkv.len() >= shape.tokens() * 3 * hidden && out.len() >= shape.tokens() * hidden);
    let out = Shared(out.as_mut_ptr());
    shape.tasks().into_par_iter().for_each(|task| {
        SCRATCH.with_borrow_mut(|scratch| {
            let length = task.tokens.len();
            let window = window.filter(|&window| window + 1 < length);
            let mut packed = 0..0;
            for start in (0..length).step_by(QUERIES) {
                let end = (start + QUERIES).min(length);
                let keys = match window {
                    Some(window) => start.saturating_sub(window)..(end + window).min(length),
                    None => 0..length,
                };
                let piece = |which: usize, rows: &std::ops::Range<usize>| {
                    let rows = task.tokens.start + rows.start..task.tokens.start + rows.end;
                    part(qkv, &rows, 3 * hidden, which * hidden + task.head * d, d)
                };
                if packed != keys {
                    scratch.left.fill_here(piece(1, &keys).t());
                    scratch.right.fill_here(piece(2, &keys));
                    packed = keys.clone();
                }
                let width = keys.len();
                let matrix = scratch.matrix.resized((end - start) * width);
                gemm_here(piece(0, &(start..end)), &scratch.left, matrix, width, Epilogue::Store);
                if let Some(window) = window {
                    for (query, scores) in (start..end).zip(matrix.chunks_exact_mut(width)) {
                        let first = query.saturating_sub(window).max(keys.start) - keys.start;
                        let behind = (query + window + 1).min(keys.end) - keys.start;
                        scores[..first].fill(f32::NEG_INFINITY);
                        scores[behind..].fill(f32::NEG_INFINITY);
                    }
                }
                rowwise::softmax(matrix, width, shape.scale());
                // SAFETY: this task's rows and columns of `out`, whose size was checked.
                unsafe {
                    let to = out.at((task.tokens.start + start) * hidden + task.head * d);
                    let weights = Matrix::new(matrix, end - start, width);
                    gemm_columns(weights, &scratch.right, to, hidden, Epilogue::Store);
                }
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::attention::attend;
    use crate::kernels::reference::filled;

    const OFFSETS: [usize; 4] = [0, 1, 301, 320];
    const SHAPE: Heads<'static> = Heads { offsets: &OFFSETS, heads: 2, head_dim: 6 };

    #[test]
    fn blocks_agree_with_the_formula() {
        let qkv: Vec<f32> = filled(320 * 36, 1).iter().map(|x| 2.0 * x).collect();
        let (mut whole, mut blocks) = (vec![0.0; 320 * 12], vec![0.0; 320 * 12]);
        attend(&qkv, SHAPE, &mut whole);
        attend_banded(&qkv, SHAPE, None, &mut blocks);
        assert!(whole.iter().zip(&blocks).all(|(a, b)| (a - b).abs() < 1e-6));

        for window in [0, 1, 5, 18, 150, 400] {
            attend_banded(&qkv, SHAPE, Some(window), &mut blocks);
            let at = |t: usize, which: usize, head: usize, c: usize| {
                f64::from(qkv[(t * 3 + which) * 12 + head * 6 + c])
            };
            for row in OFFSETS.windows(2) {
                for (head, i) in (0..2).flat_map(|head| (row[0]..row[1]).map(move |i| (head, i))) {
                    let keys = i.saturating_sub(window).max(row[0])..(i + window + 1).min(row[1]);
                    let score = |j: usize| (0..6).map(|c| at(i, 0, head, c) * at(j, 1, head, c)).sum::<f64>();
                    let e: Vec<f64> = keys.clone().map(|j| (score(j) * 6.0_f64.powf(-0.5)).exp()).collect();
                    let sum: f64 = e.iter().sum();
                    for c in 0..6 {
                        let expected: f64 =
                            keys.clone().zip(&e).map(|(j, e)| e / sum * at(j, 2, head, c)).sum();
                        let got = f64::from(blocks[i * 12 + head * 6 + c]);
                        assert!(
                            (got - expected).abs() < 1e-5,
                            "window {window}, token {i}: {got} not {expected}"
                        );
                    }
                }
            }
        }
    }
}
