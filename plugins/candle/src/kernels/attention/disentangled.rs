//! DeBERTa's attention: to a score of content with content come scores of content with relative position.
//!
//! `score(i, j) = q_i . k_j + q_i . pk(i - j) + k_j . pq(i - j)`: every query is multiplied with the position keys of
//! all distances that its row has, in the order of the keys, so that what belongs to the keys of one query lies side
//! by side. Source: He et al., arXiv 2006.03654, section 3.1.

use rayon::prelude::*;

use super::{Heads, SCRATCH, Shared, part};
use crate::kernels::gemm::{Epilogue, gemm_columns, gemm_here};
use crate::kernels::operands::Matrix;
use crate::kernels::{Buffer, activation, rowwise};

/// Projected position embeddings of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Positions<'a> {
    /// `(positions, hidden)`: what queries are multiplied with, or none.
    pub keys: Option<&'a [f32]>,
    /// `(positions, hidden)`: what keys are multiplied with, or none.
    pub queries: Option<&'a [f32]>,
    /// Position of each distance (query minus key), from `-(longest - 1)` to `longest - 1`.
    pub of_distance: &'a [u32],
}

impl Positions<'_> {
    /// Columns of one head of the positions of `distances`, `(distances, head_dim)`.
    fn gather(
        &self,
        table: &[f32],
        distances: impl Iterator<Item = i64>,
        (hidden, first, d): (usize, usize, usize),
        to: &mut [f32],
    ) {
        let center = self.of_distance.len() as i64 / 2;
        for (to, distance) in to.chunks_exact_mut(d).zip(distances) {
            let position = self.of_distance[(center + distance) as usize] as usize;
            to.copy_from_slice(&table[position * hidden + first..][..d]);
        }
    }
}

/// Attention of all rows: `out` gets `(tokens, hidden)`. `qkv`: `(tokens, 3 * hidden)`; scores are multiplied by
/// `scale`.
pub fn attend_disentangled(
    qkv: &[f32],
    shape: Heads<'_>,
    positions: Positions<'_>,
    scale: f32,
    out: &mut [f32],
) {
    let (hidden, d) = (shape.hidden(), shape.head_dim);
    assert!(qkv.len() >= shape.tokens() * 3 * hidden && out.len() >= shape.tokens() * hidden);
    let out = Shared(out.as_mut_ptr());
    shape.tasks().into_par_iter().for_each(|task| {
        SCRATCH.with_borrow_mut(|scratch| {
            let length = task.tokens.len();
            let piece = |which: usize| part(qkv, &task.tokens, 3 * hidden, which * hidden + task.head * d, d);
            let super::Scratch { left, right, matrix, dropped: terms, table } = scratch;
            let matrix = matrix.resized(length * length);
            left.fill_here(piece(1).t());
            gemm_here(piece(0), left, matrix, length, Epilogue::Store);

            let (span, farthest) = (2 * length - 1, length as i64 - 1);
            let columns = (hidden, task.head * d, d);
            let mut multiply = |states: Matrix<'_>, positions: &[f32], terms: &mut Buffer| {
                left.fill_here(Matrix::new(positions, span, d).t());
                gemm_here(states, left, terms.resized(length * span), span, Epilogue::Store);
            };
            if let Some(keys) = positions.keys {
                // Column t is distance farthest - t, so that key j of query i is column j - i + farthest.
                let distances = (-farthest..=farthest).rev();
                positions.gather(keys, distances, columns, table.resized(span * d));
                multiply(piece(0), table, terms);
                for (i, scores) in matrix.chunks_exact_mut(length).enumerate() {
                    activation::add(scores, &terms[i * span + length - 1 - i..][..length]);
                }
            }
            if let Some(queries) = positions.queries {
                // Column t is distance t - farthest, so that query i of key j is column i - j + farthest.
                positions.gather(queries, -farthest..=farthest, columns, table.resized(span * d));
                multiply(piece(1), table, terms);
                add_transposed(matrix, terms, length);
            }
            rowwise::softmax(matrix, length, scale);
            right.fill_here(piece(2));
            // SAFETY: this task's rows and columns of `out`, whose size was checked.
            unsafe {
                let to = out.at(task.tokens.start * hidden + task.head * d);
                let weights = Matrix::new(matrix, length, length);
                gemm_columns(weights, right, to, hidden, Epilogue::Store);
            }
        });
    });
}

/// `scores[i][j] += terms[j][i - j + length - 1]`.
fn add_transposed(scores: &mut [f32], terms: &[f32], length: usize) {
    /// Keys whose terms are walked along at the same time.
    const KEYS: usize = 16;
    let span = 2 * length - 1;
    for first in (0..length).step_by(KEYS) {
        for (i, scores) in scores.chunks_exact_mut(length).enumerate() {
            for (j, score) in scores.iter_mut().enumerate().skip(first).take(KEYS) {
                *score += terms[j * span + i + length - 1 - j];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::filled;

    const OFFSETS: [usize; 4] = [0, 5, 6, 40];
    const SHAPE: Heads<'static> = Heads { offsets: &OFFSETS, heads: 3, head_dim: 5 };
    const HIDDEN: usize = 15;

    #[test]
    fn terms_agree_with_the_formula() {
        let qkv: Vec<f32> = filled(40 * 3 * HIDDEN, 1).iter().map(|x| 2.0 * x).collect();
        let (keys, queries) = (filled(9 * HIDDEN, 2), filled(9 * HIDDEN, 3));
        // Distances from -39 to 39 in nine positions.
        let of_distance: Vec<u32> = (-39_i64..=39).map(|x| (x.clamp(-4, 4) + 4) as u32).collect();
        for (with_keys, with_queries) in [(true, true), (true, false), (false, true), (false, false)] {
            let positions = Positions {
                keys: with_keys.then_some(keys.as_slice()),
                queries: with_queries.then_some(queries.as_slice()),
                of_distance: &of_distance,
            };
            let mut out = vec![0.0; 40 * HIDDEN];
            attend_disentangled(&qkv, SHAPE, positions, 0.3, &mut out);
            for row in OFFSETS.windows(2) {
                for (head, i) in (0..3).flat_map(|head| (row[0]..row[1]).map(move |i| (head, i))) {
                    let at = |t: usize, which: usize| &qkv[(t * 3 + which) * HIDDEN + head * 5..][..5];
                    let dot = |x: &[f32], y: &[f32]| -> f64 {
                        x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
                    };
                    let e: Vec<f64> = (row[0]..row[1])
                        .map(|j| {
                            let position = of_distance[39 + i - j] as usize * HIDDEN + head * 5;
                            let mut score = dot(at(i, 0), at(j, 1));
                            if with_keys {
                                score += dot(at(i, 0), &keys[position..][..5]);
                            }
                            if with_queries {
                                score += dot(at(j, 1), &queries[position..][..5]);
                            }
                            (0.3 * score).exp()
                        })
                        .collect();
                    let sum: f64 = e.iter().sum();
                    for c in 0..5 {
                        let expected: f64 =
                            (row[0]..row[1]).zip(&e).map(|(j, e)| e / sum * f64::from(at(j, 2)[c])).sum();
                        let got = f64::from(out[i * HIDDEN + head * 5 + c]);
                        assert!(
                            (got - expected).abs() < 1e-5,
                            "token {i}, head {head}: {got} not {expected}"
                        );
                    }
                }
            }
        }
    }
}
