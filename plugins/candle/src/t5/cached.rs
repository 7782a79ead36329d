//! Self-attention of one new position over the positions that a sequence has stored.

use crate::kernels::rowwise;
use crate::kernels::simd::{dispatched, fma};

const LANES: usize = 16;

/// Inner product over 16 lanes, added up in a fixed order.
#[inline(always)]
fn dot<const FMA: bool>(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] = fma::<FMA>(x[i], y[i], lanes[i]);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane = fma::<FMA>(x, y, *lane);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

dispatched! {
    /// `weights[j] = query . keys of position j + bias[j]` for one head; keys start at `at` of a position's row.
    fn score(query: &[f32], positions: &[&[f32]], at: usize, bias: &[f32], weights: &mut [f32]) {
        for ((weight, position), &bias) in weights.iter_mut().zip(positions).zip(bias) {
            *weight = dot::<FMA>(query, &position[at..at + query.len()]) + bias;
        }
    }
}

dispatched! {
    /// `out = sum of weights[j] * values of position j` for one head; values start at `at` of a position's row.
    fn mix(weights: &[f32], positions: &[&[f32]], at: usize, out: &mut [f32]) {
        if let Ok(out) = <&mut [f32; 64]>::try_from(&mut *out) {
            // The released models' width: the sums stay in registers.
            let mut sums = [0.0_f32; 64];
            for (&weight, position) in weights.iter().zip(positions) {
                let values: &[f32; 64] = position[at..at + 64].try_into().expect("64 values");
                for i in 0..64 {
                    sums[i] = fma::<FMA>(weight, values[i], sums[i]);
                }
            }
            *out = sums;
            return;
        }
        out.fill(0.0);
        for (&weight, position) in weights.iter().zip(positions) {
            for (out, &value) in out.iter_mut().zip(&position[at..]) {
                *out = fma::<FMA>(weight, value, *out);
            }
        }
    }
}

/// Attention of one query over `positions`, its own the last.
///
/// `query`, `out`: `(heads * size)`; `positions[j]`: keys, then values, `(2, heads * size)`; `bias`: for each head
/// `bias_stride` values, of which the first `positions.len()` count; `weights`: scratch.
pub fn attend(
    query: &[f32],
    positions: &[&[f32]],
    bias: &[f32],
    bias_stride: usize,
    size: usize,
    weights: &mut Vec<f32>,
    out: &mut [f32],
) {
    weights.resize(positions.len(), 0.0);
    let inner = query.len();
    for (head, (query, out)) in query.chunks_exact(size).zip(out.chunks_exact_mut(size)).enumerate() {
        score(query, positions, head * size, &bias[head * bias_stride..], weights);
        rowwise::softmax(weights, positions.len(), 1.0);
        mix(weights, positions, inner + head * size, out);
    }
}
