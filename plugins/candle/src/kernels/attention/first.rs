//! Attention of each row's first token only: all that a classifier's last layer needs.

use rayon::prelude::*;

use super::{Heads, SCRATCH, Shared};
use crate::kernels::rowwise;

/// Attention of each row's first token only. `q`: `(rows, hidden)`, `kv`: `(tokens, 2 * hidden)`, `out`:
/// `(rows, hidden)`.
pub fn attend_first(q: &[f32], kv: &[f32], shape: Heads<'_>, out: &mut [f32]) {
    let (hidden, d) = (shape.hidden(), shape.head_dim);
    out.par_chunks_mut(hidden).zip(q.par_chunks(hidden)).enumerate().for_each(|(row, (out, q))| {
        let tokens = shape.offsets[row]..shape.offsets[row + 1];
        SCRATCH.with_borrow_mut(|scratch| {
            for head in 0..shape.heads {
                let columns = head * d..(head + 1) * d;
                let token = |t: usize, which: usize| &kv[t * 2 * hidden + which * hidden..][columns.clone()];
                let weights = scratch.matrix.resized(tokens.len());
                for (weight, t) in weights.iter_mut().zip(tokens.clone()) {
                    *weight = rowwise::dot(&q[columns.clone()], token(t, 0));
                }
                rowwise::softmax(weights, tokens.len(), shape.scale());
                let out = &mut out[columns.clone()];
                out.fill(0.0);
                for (&weight, t) in weights.iter().zip(tokens.clone()) {
                    rowwise::axpy(out, weight, token(t, 1));
                }
            }
        });
    });
}

/// As [`attend_first`], keeping the attention weights for [`attend_first_backward`] (`[heads][length]` a row), with
/// dropout on them: `drop(row, head, weights)`.
pub fn attend_first_kept(
    q: &[f32],
    kv: &[f32],
    shape: Heads<'_>,
    drop: impl Fn(usize, usize, &mut [f32]) + Sync,
    kept: &mut [f32],
    out: &mut [f32],
) {
    let (hidden, d) = (shape.hidden(), shape.head_dim);
    assert!(kept.len() >= shape.heads * shape.tokens());
    let kept = Shared(kept.as_mut_ptr());
    out.par_chunks_mut(hidden).zip(q.par_chunks(hidden)).enumerate().for_each(|(row, (out, q))| {
        let tokens = shape.offsets[row]..shape.offsets[row + 1];
        SCRATCH.with_borrow_mut(|scratch| {
            for head in 0..shape.heads {
                let columns = head * d..(head + 1) * d;
                let token = |t: usize, which: usize| &kv[t * 2 * hidden + which * hidden..][columns.clone()];
                let at = shape.heads * tokens.start + head * tokens.len();
                // SAFETY: this row's weights within `kept`, whose size was checked.
                let weights = unsafe { std::slice::from_raw_parts_mut(kept.at(at), tokens.len()) };
                for (weight, t) in weights.iter_mut().zip(tokens.clone()) {
                    *weight = rowwise::dot(&q[columns.clone()], token(t, 0));
                }
                rowwise::softmax(weights, tokens.len(), shape.scale());
                let dropped = scratch.dropped.resized(tokens.len());
                dropped.copy_from_slice(weights);
                drop(row, head, dropped);
                let out = &mut out[columns.clone()];
                out.fill(0.0);
                for (&weight, t) in dropped.iter().zip(tokens.clone()) {
                    rowwise::axpy(out, weight, token(t, 1));
                }
            }
        });
    });
}

/// Gradient of [`attend_first_kept`] with respect to `q` and `kv`, of whose values `states` is (q, kv, kept).
pub fn attend_first_backward(
    states: (&[f32], &[f32], &[f32]),
    d_out: &[f32],
    shape: Heads<'_>,
    drop: impl Fn(usize, usize, &mut [f32]) + Sync,
    d_q: &mut [f32],
    d_kv: &mut [f32],
) {
    let (hidden, d) = (shape.hidden(), shape.head_dim);
    let (q, kv, kept) = states;
    assert!(d_kv.len() >= shape.tokens() * 2 * hidden);
    let d_kv = Shared(d_kv.as_mut_ptr());
    d_q.par_chunks_mut(hidden).enumerate().for_each(|(row, d_q)| {
        let tokens = shape.offsets[row]..shape.offsets[row + 1];
        // SAFETY: this row's tokens within `d_kv`, whose size was checked.
        let d_kv = unsafe {
            std::slice::from_raw_parts_mut(d_kv.at(tokens.start * 2 * hidden), tokens.len() * 2 * hidden)
        };
        let (q, d_out) = (&q[row * hidden..][..hidden], &d_out[row * hidden..][..hidden]);
        SCRATCH.with_borrow_mut(|scratch| {
            for head in 0..shape.heads {
                let columns = head * d..(head + 1) * d;
                let token = |t: usize, which: usize| &kv[t * 2 * hidden + which * hidden..][columns.clone()];
                let weights = &kept[shape.heads * tokens.start + head * tokens.len()..][..tokens.len()];
                let d_out = &d_out[columns.clone()];
                let dropped = scratch.dropped.resized(tokens.len());
                dropped.copy_from_slice(weights);
                drop(row, head, dropped);
                let slopes = scratch.matrix.resized(tokens.len());
                for (slope, t) in slopes.iter_mut().zip(tokens.clone()) {
                    *slope = rowwise::dot(d_out, token(t, 1));
                }
                drop(row, head, slopes);
                rowwise::softmax_backward(slopes, weights, tokens.len(), shape.scale());
                let d_q = &mut d_q[columns.clone()];
                d_q.fill(0.0);
                for (i, (d_kv, t)) in d_kv.chunks_exact_mut(2 * hidden).zip(tokens.clone()).enumerate() {
                    rowwise::axpy(d_q, slopes[i], token(t, 0));
                    let (d_k, d_v) = d_kv.split_at_mut(hidden);
                    for ((d_k, d_v), (&q, &d_out)) in d_k[columns.clone()]
                        .iter_mut()
                        .zip(&mut d_v[columns.clone()])
                        .zip(q[columns.clone()].iter().zip(d_out))
                    {
                        *d_k = slopes[i] * q;
                        *d_v = dropped[i] * d_out;
                    }
                }
            }
        });
    });
}
