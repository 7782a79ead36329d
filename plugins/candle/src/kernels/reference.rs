//! Plain f64 forms that the kernels are tested against.

/// `n` reproducible numbers in [-1, 1).
pub(crate) fn filled(n: usize, seed: u64) -> Vec<f32> {
    let key = cappy_plugin_abi::random::mix(seed);
    (0..n as u64)
        .map(|i| {
            (cappy_plugin_abi::random::uniform(cappy_plugin_abi::random::fold(key, i)) * 2.0 - 1.0) as f32
        })
        .collect()
}

/// erf by its Taylor series (|x| <= 3), by Lentz's continued fraction of erfc beyond.
pub(crate) fn erf(x: f64) -> f64 {
    if x.abs() <= 3.0 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-17 * sum.abs().max(1e-300) {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let z = x.abs();
    let mut fraction = 0.0;
    for i in (1..=60).rev() {
        fraction = f64::from(i) / 2.0 / (z + fraction);
    }
    x.signum() * (1.0 - (-z * z).exp() / ((z + fraction) * std::f64::consts::PI.sqrt()))
}

pub(crate) fn gelu_erf(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
}

pub(crate) fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}
