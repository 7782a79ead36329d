//! Softmax and its parts, over rows of numbers on the CPU.
//!
//! Sums run over 16 lanes in a fixed order, so a row's result depends on that row alone.

use crate::simd::{dispatched, fma};

/// Numbers that are summed side by side.
pub const LANES: usize = 16;

/// Sum of the lanes, in a fixed order.
#[inline(always)]
pub fn total(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of `f(x)` over a row.
#[inline(always)]
pub fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    total(lanes)
}

#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// e^x within 2 ulp; 0 below -87.3, about 2.4e38 above 88.3.
#[inline(always)]
pub fn exp_lane<const FMA: bool>(x: f32) -> f32 {
    // Cephes expf: x = n ln 2 + r, |r| <= ln 2 / 2.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = x.clamp(-87.3, 88.3);
    let n = fma::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = fma::<FMA>(n, -0.693_359_4, clamped);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = fma::<FMA>(p, r, 1.398_199_9e-3);
    p = fma::<FMA>(p, r, 8.333_452e-3);
    p = fma::<FMA>(p, r, 4.166_579_6e-2);
    p = fma::<FMA>(p, r, 1.666_666_6e-1);
    p = fma::<FMA>(p, r, 0.5);
    let y = fma::<FMA>(p, r * r, r) + 1.0;
    // 2^n through the exponent bits: n + ROUND has n in its low bits.
    let bits = (n + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) << 23;
    let y = f32::from_bits(y.to_bits().wrapping_add(bits));
    if x < -87.3 { 0.0 } else { y }
}

dispatched! {
    /// Largest element, -inf for none.
    pub fn max(x: &[f32]) -> f32 {
        maximum(x)
    }
}

dispatched! {
    /// Each row of `cols` becomes softmax(factor * row).
    pub fn softmax(x: &mut [f32], cols: usize, factor: f32) {
        for row in x.chunks_exact_mut(cols) {
            let top = maximum(row) * factor;
            for v in row.iter_mut() {
                *v = exp_lane::<FMA>(fma::<FMA>(*v, factor, -top));
            }
            let inverse = 1.0 / sum_of(row, |v| v);
            for v in row.iter_mut() {
                *v *= inverse;
            }
        }
    }
}

dispatched! {
    /// log(sum(e^x)) of a row.
    pub fn log_sum_exp(x: &[f32]) -> f32 {
        let top = maximum(x);
        top + sum_of(x, |v| exp_lane::<FMA>(v - top)).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::lowered::at_every_level;

    #[test]
    fn rows_agree_with_f64() {
        at_every_level(check_rows);
    }

    fn check_rows() {
        for cols in [1, 2, 15, 16, 17, 64, 100, 515] {
            let x: Vec<f32> = (0..cols).map(|i| ((i * 37 + 11) % 101) as f32 / 20.0 - 3.0).collect();
            let wide = |factor: f64| x.iter().map(move |&x| f64::from(x) * factor).collect::<Vec<f64>>();
            let total: f64 = wide(0.5).iter().map(|x| x.exp()).sum();
            let mut got = x.clone();
            softmax(&mut got, cols, 0.5);
            for (got, x) in got.iter().zip(wide(0.5)) {
                assert!((f64::from(*got) - x.exp() / total).abs() < 1e-6, "{cols}: {got}");
            }
            let lse = wide(1.0).iter().map(|x| x.exp()).sum::<f64>().ln();
            assert!((f64::from(log_sum_exp(&x)) - lse).abs() < 1e-5, "{cols}");
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        assert!(!log_sum_exp(&[0.0, f32::NAN]).is_finite());
    }
}
