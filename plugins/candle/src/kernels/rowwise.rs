//! Reductions over rows: softmax, layer normalisation, RMS normalisation.
//!
//! Sums run over 16 lanes in a fixed order, so a row's result depends on that row alone.

use cappy_plugin_models::rows::{LANES, sum_of, total};
pub use cappy_plugin_models::rows::{log_sum_exp, max, softmax};

use super::simd::{dispatched, fma};

dispatched! {
    /// Inner product.
    pub fn dot(x: &[f32], y: &[f32]) -> f32 {
        let mut lanes = [0.0; LANES];
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
        total(lanes)
    }
}

dispatched! {
    /// `y += factor * x`.
    pub fn axpy(y: &mut [f32], factor: f32, x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = fma::<FMA>(factor, x, *y);
        }
    }
}

dispatched! {
    /// Layer normalisation of each row of `weight.len()` in place: (x - mean) / sqrt(var + eps) * weight + bias,
    /// with the biased variance. Ba et al., arXiv 1607.06450.
    pub fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        let cols = weight.len();
        for row in x.chunks_exact_mut(cols) {
            let mean = sum_of(row, |v| v) / cols as f32;
            let variance = sum_of(row, |v| (v - mean) * (v - mean)) / cols as f32;
            let inverse = 1.0 / (variance + eps).sqrt();
            for ((v, &weight), &bias) in row.iter_mut().zip(weight).zip(bias) {
                *v = fma::<FMA>((*v - mean) * inverse, weight, bias);
            }
        }
    }
}

dispatched! {
    /// As [`layer_norm`], keeping for the backward pass: `normalised` gets (x - mean) / deviation, `inverse` one
    /// 1 / deviation a row.
    pub fn layer_norm_kept(
        x: &mut [f32],
        weight: &[f32],
        bias: &[f32],
        eps: f32,
        normalised: &mut [f32],
        inverse: &mut [f32],
    ) {
        let cols = weight.len();
        for ((row, kept), inverse) in
            x.chunks_exact_mut(cols).zip(normalised.chunks_exact_mut(cols)).zip(inverse)
        {
            let mean = sum_of(row, |v| v) / cols as f32;
            let variance = sum_of(row, |v| (v - mean) * (v - mean)) / cols as f32;
            *inverse = 1.0 / (variance + eps).sqrt();
            for (((v, kept), &weight), &bias) in row.iter_mut().zip(kept).zip(weight).zip(bias) {
                *kept = (*v - mean) * *inverse;
                *v = fma::<FMA>(*kept, weight, bias);
            }
        }
    }
}

dispatched! {
    /// Gradient of layer normalisation with respect to its input, in place of `dy`.
    ///
    /// dx = inverse * (g - mean(g) - normalised * mean(g * normalised)), g = dy * weight.
    pub fn layer_norm_backward(dy: &mut [f32], weight: &[f32], normalised: &[f32], inverse: &[f32]) {
        let cols = weight.len();
        for ((dy, kept), &inverse) in
            dy.chunks_exact_mut(cols).zip(normalised.chunks_exact(cols)).zip(inverse)
        {
            for (dy, &weight) in dy.iter_mut().zip(weight) {
                *dy *= weight;
            }
            let mean = sum_of(dy, |v| v) / cols as f32;
            let mut lanes = [0.0; LANES];
            for (g, x) in dy.chunks(LANES).zip(kept.chunks(LANES)) {
                for ((lane, &g), &x) in lanes.iter_mut().zip(g).zip(x) {
                    *lane = fma::<FMA>(g, x, *lane);
                }
            }
            let along = total(lanes) / cols as f32;
            for (g, &x) in dy.iter_mut().zip(kept) {
                *g = inverse * (*g - mean - x * along);
            }
        }
    }
}

dispatched! {
    /// Adds columns `first..first + sums.len()` of every row of `x`, rows in order.
    pub fn add_columns(x: &[f32], width: usize, first: usize, sums: &mut [f32]) {
        let cols = sums.len();
        for row in x.chunks_exact(width) {
            for (sum, &x) in sums.iter_mut().zip(&row[first..first + cols]) {
                *sum += x;
            }
        }
    }
}

dispatched! {
    /// As [`add_columns`], of the elementwise product of `x` and `y`.
    pub fn add_columns_of_product(x: &[f32], y: &[f32], width: usize, first: usize, sums: &mut [f32]) {
        let cols = sums.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact(width)) {
            for ((sum, &x), &y) in sums.iter_mut().zip(&x[first..first + cols]).zip(&y[first..first + cols]) {
                *sum = fma::<FMA>(x, y, *sum);
            }
        }
    }
}

dispatched! {
    /// Gradient of softmax(factor * s) with respect to s, in place of `dp`: factor * p * (dp - sum(p * dp)) for each
    /// row of `cols`.
    pub fn softmax_backward(dp: &mut [f32], p: &[f32], cols: usize, factor: f32) {
        for (dp, p) in dp.chunks_exact_mut(cols).zip(p.chunks_exact(cols)) {
            let mut lanes = [0.0; LANES];
            for (g, x) in dp.chunks(LANES).zip(p.chunks(LANES)) {
                for ((lane, &g), &x) in lanes.iter_mut().zip(g).zip(x) {
                    *lane = fma::<FMA>(g, x, *lane);
                }
            }
            let along = total(lanes);
            for (g, &p) in dp.iter_mut().zip(p) {
                *g = factor * p * (*g - along);
            }
        }
    }
}

dispatched! {
    /// RMS normalisation of each row of `weight.len()` from `x` into `y`: x / sqrt(mean(x^2) + eps) * weight.
    /// Zhang & Sennrich, arXiv 1910.07467; T5's layer norm.
    pub fn rms_norm(x: &[f32], y: &mut [f32], weight: &[f32], eps: f32) {
        let cols = weight.len();
        for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)) {
            let inverse = 1.0 / (sum_of(x, |v| v * v) / cols as f32 + eps).sqrt();
            for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
                *y = x * inverse * weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::filled;
    use crate::kernels::simd::lowered::at_every_level;

    fn close(got: &[f32], expected: &[f64], bound: f64) {
        assert_eq!(got.len(), expected.len());
        for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            assert!((f64::from(got) - expected).abs() < bound, "element {i}: {got} not {expected}");
        }
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    fn plain_softmax(row: &[f64], factor: f64) -> Vec<f64> {
        let top = row.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b * factor));
        let e: Vec<f64> = row.iter().map(|x| (x * factor - top).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|e| e / sum).collect()
    }

    fn plain_layer_norm(row: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        row.iter().enumerate().map(|(i, x)| (x - mean) / (var + eps).sqrt() * weight[i] + bias[i]).collect()
    }

    #[test]
    fn rows_agree_with_f64() {
        at_every_level(check_rows);
    }

    fn check_rows() {
        for cols in [1, 2, 15, 16, 17, 64, 100, 515] {
            let x: Vec<f32> = filled(3 * cols, 5).iter().map(|x| x * 4.0).collect();
            let (weight, bias) = (filled(cols, 6), filled(cols, 7));
            let (w, b) = (wide(&weight), wide(&bias));

            let mut got = x.clone();
            softmax(&mut got, cols, 0.7);
            let expected: Vec<f64> =
                x.chunks(cols).flat_map(|row| plain_softmax(&wide(row), f64::from(0.7_f32))).collect();
            close(&got, &expected, 1e-6);

            let mut got = x.clone();
            layer_norm(&mut got, &weight, &bias, 1e-5);
            let expected: Vec<f64> =
                x.chunks(cols).flat_map(|row| plain_layer_norm(&wide(row), &w, &b, 1e-5)).collect();
            close(&got, &expected, 1e-5);
            let (mut kept, mut inverse, mut same) = (vec![0.0; x.len()], vec![0.0; 3], x.clone());
            layer_norm_kept(&mut same, &weight, &bias, 1e-5, &mut kept, &mut inverse);
            assert_eq!(same, got);

            rms_norm(&x, &mut same, &weight, 1e-6);
            let expected: Vec<f64> = x
                .chunks(cols)
                .flat_map(|row| {
                    let row = wide(row);
                    let ms = row.iter().map(|x| x * x).sum::<f64>() / cols as f64;
                    row.iter().zip(&w).map(|(x, w)| x / (ms + 1e-6).sqrt() * w).collect::<Vec<_>>()
                })
                .collect();
            close(&same, &expected, 1e-5);

            let row = wide(&x[..cols]);
            let lse = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            assert!((f64::from(log_sum_exp(&x[..cols])) - lse).abs() < 1e-5);
            let expected: f64 = row.iter().zip(&w).map(|(x, w)| x * w).sum();
            assert!((f64::from(dot(&x[..cols], &weight)) - expected).abs() < 1e-4);
        }
    }

    #[test]
    fn gradients_agree_with_differences() {
        at_every_level(check_gradients);
    }

    fn check_gradients() {
        let cols = 37;
        let x = filled(cols, 1);
        let (weight, bias, dy) = (filled(cols, 2), filled(cols, 3), wide(&filled(cols, 4)));
        let (w, b) = (wide(&weight), wide(&bias));
        let numeric = |f: &dyn Fn(&[f64]) -> Vec<f64>| -> Vec<f64> {
            let loss = |x: &[f64]| f(x).iter().zip(&dy).map(|(y, g)| y * g).sum::<f64>();
            (0..cols)
                .map(|i| {
                    let (mut up, mut down) = (wide(&x), wide(&x));
                    up[i] += 1e-5;
                    down[i] -= 1e-5;
                    (loss(&up) - loss(&down)) / 2e-5
                })
                .collect()
        };
        let mut got: Vec<f32> = dy.iter().map(|&x| x as f32).collect();
        let (mut kept, mut inverse, mut y) = (vec![0.0; cols], vec![0.0; 1], x.clone());
        layer_norm_kept(&mut y, &weight, &bias, 1e-5, &mut kept, &mut inverse);
        layer_norm_backward(&mut got, &weight, &kept, &inverse);
        close(&got, &numeric(&|x| plain_layer_norm(x, &w, &b, 1e-5)), 1e-5);

        let mut got: Vec<f32> = dy.iter().map(|&x| x as f32).collect();
        let mut p = x.clone();
        softmax(&mut p, cols, 0.5);
        softmax_backward(&mut got, &p, cols, 0.5);
        close(&got, &numeric(&|x| plain_softmax(x, 0.5)), 1e-6);
    }
}
