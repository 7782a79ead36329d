//! AdamW over flat arrays, in place. Source: Loshchilov & Hutter, arXiv 1711.05101; the arithmetic is PyTorch's.

use cappy_plugin_abi::TrainerOptions;
use rayon::prelude::*;

use crate::kernels::simd::{dispatched, fma};

/// Elements updated by one task, and summed before partial sums are added in order.
const CHUNK: usize = 1 << 14;

/// What one update does to an element.
#[derive(Clone, Copy)]
struct Step {
    /// Makes the accumulated gradient a mean.
    gradient_scale: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    /// 1 - learning rate * weight decay.
    keep: f32,
    /// learning rate / (1 - beta1^t).
    step_size: f32,
    /// 1 / sqrt(1 - beta2^t).
    second_scale: f32,
}

/// Applies update number `t` (from 1) with the mean of `count` accumulated gradients, which become 0.
#[expect(clippy::too_many_arguments, reason = "the state of one optimizer step, used once")]
pub(super) fn update(
    weights: &mut [f32],
    gradients: &mut [f32],
    moment1: &mut [f32],
    moment2: &mut [f32],
    options: &TrainerOptions,
    learning_rate: f64,
    t: u64,
    count: u64,
) {
    let t = t as f64;
    let step = Step {
        gradient_scale: (1.0 / count as f64) as f32,
        beta1: options.beta1 as f32,
        beta2: options.beta2 as f32,
        epsilon: options.epsilon as f32,
        keep: (1.0 - learning_rate * options.weight_decay) as f32,
        step_size: (learning_rate / (1.0 - options.beta1.powf(t))) as f32,
        second_scale: (1.0 / (1.0 - options.beta2.powf(t)).sqrt()) as f32,
    };
    weights
        .par_chunks_mut(CHUNK)
        .zip(gradients.par_chunks_mut(CHUNK))
        .zip(moment1.par_chunks_mut(CHUNK))
        .zip(moment2.par_chunks_mut(CHUNK))
        .for_each(|(((w, g), m), v)| apply(w, g, m, v, step));
}

dispatched! {
    fn apply(w: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32], step: Step) {
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            let gradient = *g * step.gradient_scale;
            *g = 0.0;
            *m = fma::<FMA>(1.0 - step.beta1, gradient - *m, *m);
            *v = fma::<FMA>((1.0 - step.beta2) * gradient, gradient, step.beta2 * *v);
            let denominator = fma::<FMA>(v.sqrt(), step.second_scale, step.epsilon);
            *w = *w * step.keep - step.step_size * *m / denominator;
        }
    }
}

/// Euclidean norm, summed in a fixed order.
pub(super) fn norm(x: &[f32]) -> f64 {
    let sums: Vec<f64> =
        x.par_chunks(CHUNK).map(|x| x.iter().map(|&x| f64::from(x) * f64::from(x)).sum()).collect();
    sums.iter().sum::<f64>().sqrt()
}
