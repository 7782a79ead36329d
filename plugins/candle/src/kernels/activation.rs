//! Vectorised elementwise functions: exp, erf, tanh and what is made of them.
//!
//! All are branch-free so that loops over them vectorise. Errors against f64 are bounded in the tests.

use cappy_plugin_models::rows::exp_lane;

use super::simd::{dispatched, fma};

/// erf(x) within 4e-7. Source: the rational approximation of Eigen (`generic_fast_erf_float`).
#[expect(clippy::excessive_precision, reason = "coefficients as their source prints them")]
#[inline(always)]
pub(super) fn erf_lane<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let t = x * x;
    let mut p = -2.726_142_3e-10;
    p = fma::<FMA>(p, t, 2.770_681_4e-8);
    p = fma::<FMA>(p, t, -2.101_024e-6);
    p = fma::<FMA>(p, t, -5.692_506_5e-5);
    p = fma::<FMA>(p, t, -7.349_906_3e-4);
    p = fma::<FMA>(p, t, -2.954_599_8e-3);
    p = fma::<FMA>(p, t, -1.609_603_3e-2);
    let mut q = -1.456_607_2e-5;
    q = fma::<FMA>(q, t, -2.133_740_6e-4);
    q = fma::<FMA>(q, t, -1.682_827e-3);
    q = fma::<FMA>(q, t, -7.373_329_2e-3);
    q = fma::<FMA>(q, t, -1.426_473_9e-2);
    x * p / q
}

/// tanh(x) within 4e-7. Source: the rational approximation of Eigen (`generic_fast_tanh_float`).
#[expect(clippy::excessive_precision, reason = "coefficients as their source prints them")]
#[inline(always)]
pub(super) fn tanh_lane<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-7.905_311, 7.905_311);
    let t = x * x;
    let mut p = -2.760_768_5e-16;
    p = fma::<FMA>(p, t, 2.000_187_9e-13);
    p = fma::<FMA>(p, t, -8.604_672e-11);
    p = fma::<FMA>(p, t, 5.122_297_1e-8);
    p = fma::<FMA>(p, t, 1.485_722_4e-5);
    p = fma::<FMA>(p, t, 6.372_619_3e-4);
    p = fma::<FMA>(p, t, 4.893_524_6e-3);
    let mut q = 1.198_258_4e-6;
    q = fma::<FMA>(q, t, 1.185_347_1e-4);
    q = fma::<FMA>(q, t, 2.268_434_6e-3);
    q = fma::<FMA>(q, t, 4.893_525_2e-3);
    x * p / q
}

#[inline(always)]
fn gelu_lane<const FMA: bool>(x: f32) -> f32 {
    0.5 * x * (1.0 + erf_lane::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// sqrt(2 / pi)
const GELU_TANH_SCALE: f32 = 0.797_884_6;

dispatched! {
    /// `x += y`.
    pub fn add(x: &mut [f32], y: &[f32]) {
        for (x, &y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

dispatched! {
    /// `x *= y`, elementwise.
    pub fn multiply(x: &mut [f32], y: &[f32]) {
        for (x, &y) in x.iter_mut().zip(y) {
            *x *= y;
        }
    }
}

dispatched! {
    /// `x *= factor`.
    pub fn scale(x: &mut [f32], factor: f32) {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

dispatched! {
    /// `x = gelu(x)`, the exact form x * Phi(x).
    pub fn gelu(x: &mut [f32]) {
        for x in x.iter_mut() {
            *x = gelu_lane::<FMA>(*x);
        }
    }
}

dispatched! {
    /// `x = gelu(x + bias)`, the exact form.
    pub fn bias_gelu(x: &mut [f32], bias: &[f32]) {
        for (x, &bias) in x.iter_mut().zip(bias) {
            *x = gelu_lane::<FMA>(*x + bias);
        }
    }
}

dispatched! {
    /// `x = gelu_tanh(x)`: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), transformers' `gelu_new`.
    pub fn gelu_tanh(x: &mut [f32]) {
        for x in x.iter_mut() {
            let v = *x;
            let inner = GELU_TANH_SCALE * fma::<FMA>(0.044_715 * v * v, v, v);
            *x = 0.5 * v * (1.0 + tanh_lane::<FMA>(inner));
        }
    }
}

dispatched! {
    /// `x = gelu_tanh(x) * gate`: T5 v1.1's gated feed-forward.
    pub fn gelu_tanh_gate(x: &mut [f32], gate: &[f32]) {
        for (x, &gate) in x.iter_mut().zip(gate) {
            let v = *x;
            let inner = GELU_TANH_SCALE * fma::<FMA>(0.044_715 * v * v, v, v);
            *x = 0.5 * v * (1.0 + tanh_lane::<FMA>(inner)) * gate;
        }
    }
}

dispatched! {
    /// `x = gelu(x) * gate`, the exact form: ModernBERT's gated feed-forward.
    pub fn gelu_gate(x: &mut [f32], gate: &[f32]) {
        for (x, &gate) in x.iter_mut().zip(gate) {
            *x = gelu_lane::<FMA>(*x) * gate;
        }
    }
}

dispatched! {
    /// `x = max(x, 0)`.
    pub fn relu(x: &mut [f32]) {
        for x in x.iter_mut() {
            *x = if *x > 0.0 { *x } else { 0.0 };
        }
    }
}

dispatched! {
    /// `x = tanh(x)`.
    pub fn tanh(x: &mut [f32]) {
        for x in x.iter_mut() {
            *x = tanh_lane::<FMA>(*x);
        }
    }
}

dispatched! {
    /// `x = e^x`.
    pub fn exp(x: &mut [f32]) {
        for x in x.iter_mut() {
            *x = exp_lane::<FMA>(*x);
        }
    }
}

dispatched! {
    /// Forward and derivative of the exact GELU at once: `x` becomes gelu(x), `slope` gelu'(x).
    pub fn gelu_with_slope(x: &mut [f32], slope: &mut [f32]) {
        /// 1 / sqrt(2 pi)
        const DENSITY: f32 = 0.398_942_3;
        for (x, slope) in x.iter_mut().zip(slope) {
            let v = *x;
            let phi = 0.5 * (1.0 + erf_lane::<FMA>(v * std::f32::consts::FRAC_1_SQRT_2));
            *slope = fma::<FMA>(v * DENSITY, exp_lane::<FMA>(-0.5 * v * v), phi);
            *x = v * phi;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference;
    use crate::kernels::simd::lowered::at_every_level;

    fn grid(from: f32, to: f32) -> Vec<f32> {
        (0..=100_003).map(|i| from + (to - from) * i as f32 / 100_003.0).collect()
    }

    fn worst(f: impl Fn(&mut [f32]), exact: impl Fn(f64) -> f64, grid: &[f32], relative: bool) -> f64 {
        let mut y = grid.to_vec();
        f(&mut y);
        let error = |(&x, &y): (&f32, &f32)| {
            let exact = exact(f64::from(x));
            (f64::from(y) - exact).abs() / if relative { exact.abs().max(1e-37) } else { 1.0 }
        };
        grid.iter().zip(&y).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn functions_agree_with_f64() {
        at_every_level(check_functions);
    }

    fn check_functions() {
        let wide = grid(-12.0, 12.0);
        let table: [(&str, f64, f64); 5] = [
            ("exp", worst(exp, f64::exp, &grid(-87.0, 88.0), true), 2.5e-7),
            ("tanh", worst(tanh, f64::tanh, &wide, false), 4e-7),
            ("gelu", worst(gelu, reference::gelu_erf, &wide, false), 2e-6),
            ("gelu_tanh", worst(gelu_tanh, reference::gelu_tanh, &wide, false), 2e-6),
            ("relu", worst(relu, |x| x.max(0.0), &wide, false), 0.0),
        ];
        for (name, error, bound) in table {
            assert!(error <= bound, "{name}: error {error:e} above {bound:e}");
        }
        let gate = |x: &mut [f32]| gelu_gate(x, &vec![0.5; x.len()]);
        let error = worst(gate, |x| 0.5 * reference::gelu_erf(x), &wide, false);
        assert!(error <= 1e-6, "gelu_gate: error {error:e}");
        let mut extremes = [f32::NEG_INFINITY, -1000.0, 0.0];
        exp(&mut extremes);
        assert_eq!(extremes, [0.0, 0.0, 1.0]);
    }

    #[test]
    fn gelu_slope_is_the_derivative() {
        at_every_level(check_slope);
    }

    fn check_slope() {
        let x = grid(-6.0, 6.0);
        let (mut y, mut slope) = (x.clone(), vec![0.0; x.len()]);
        gelu_with_slope(&mut y, &mut slope);
        for ((&x, &y), &slope) in x.iter().zip(&y).zip(&slope) {
            let (x, h) = (f64::from(x), 1e-5);
            let expected = (reference::gelu_erf(x + h) - reference::gelu_erf(x - h)) / (2.0 * h);
            assert!((f64::from(slope) - expected).abs() < 2e-6, "slope at {x}: {slope} not {expected}");
            assert!((f64::from(y) - reference::gelu_erf(x)).abs() < 2e-6);
        }
    }
}
