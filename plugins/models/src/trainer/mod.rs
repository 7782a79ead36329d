//! What trainers of any engine have alike: options, the weights that a new head starts with, files.

pub mod checkpoint;

use cappy_plugin_abi::random::{fold, key_of, mix, uniform};
use cappy_plugin_abi::{Failure, TrainerOptions};

use crate::encoder::layout::Slot;

/// Standard deviation of weights that the checkpoint lacks: transformers' `initializer_range`.
const INITIAL_DEVIATION: f64 = 0.02;

/// Refuses options out of range.
///
/// # Errors
/// `InvalidArgument` that names the option.
pub fn check_options(options: &TrainerOptions) -> Result<(), Failure> {
    let beta = |b: f64| (0.0..1.0).contains(&b);
    for (name, value, valid) in [
        ("dropout", options.dropout, (0.0..0.999).contains(&options.dropout)),
        ("beta1", options.beta1, beta(options.beta1)),
        ("beta2", options.beta2, beta(options.beta2)),
        ("epsilon", options.epsilon, options.epsilon > 0.0 && options.epsilon.is_finite()),
        (
            "weight_decay",
            options.weight_decay,
            options.weight_decay >= 0.0 && options.weight_decay.is_finite(),
        ),
    ] {
        if !valid {
            return Err(Failure::invalid_argument(format!(
                "trainer option `{name}` is {value}, which is out of range"
            )));
        }
    }
    Ok(())
}

/// Biases 0, normalisations 1, weights normal with transformers' deviation, keyed by (seed, name, element).
pub fn initialise(slot: &Slot, seed: u64, to: &mut [f32]) {
    if slot.shape.len() == 1 {
        to.fill(if slot.name.to_lowercase().ends_with("norm.weight") { 1.0 } else { 0.0 });
        return;
    }
    let key = fold(mix(seed), key_of(&slot.name));
    for (i, to) in to.iter_mut().enumerate() {
        let key = fold(key, i as u64);
        // Box-Muller, with the first draw in (0, 1].
        let (u, v) = (1.0 - uniform(fold(key, 0)), uniform(fold(key, 1)));
        let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        *to = (normal * INITIAL_DEVIATION) as f32;
    }
}
