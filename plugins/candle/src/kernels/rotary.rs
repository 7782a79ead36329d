//! Rotary position embeddings: queries and keys turned by angles that grow with their position.
//!
//! Number `i` of a head and number `i + head_dim / 2` are one pair, turned by `position * theta^(-2i / head_dim)`.
//! Source: Su et al., arXiv 2104.09864; the pairing is transformers' `rotate_half`.

use rayon::prelude::*;

use super::attention::Heads;
use super::simd::{dispatched, fma};

/// Tokens turned by one task.
const TOKENS: usize = 32;

/// Cosines and sines of the positions seen so far.
#[derive(Clone, Debug)]
pub struct Rotary {
    frequencies: Vec<f32>,
    /// `(positions, head_dim / 2)`.
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rotary {
    /// For heads of `head_dim` numbers (even) and base period `theta`.
    pub fn new(head_dim: usize, theta: f64) -> Self {
        assert!(head_dim.is_multiple_of(2), "numbers are turned in pairs");
        let frequency = |i| theta.powf(-2.0 * i as f64 / head_dim as f64) as f32;
        let frequencies = (0..head_dim / 2).map(frequency).collect();
        Self { frequencies, cosines: Vec::new(), sines: Vec::new() }
    }

    /// Makes positions below `positions` known.
    pub fn reserve(&mut self, positions: usize) {
        for position in self.cosines.len() / self.frequencies.len()..positions {
            for frequency in &self.frequencies {
                // The product is rounded to f32, as the reference implementation has it.
                let angle = f64::from(position as f32 * frequency);
                self.cosines.push(angle.cos() as f32);
                self.sines.push(angle.sin() as f32);
            }
        }
    }

    /// Turns the queries and keys of `qkv`, `(tokens, 3 * hidden)`. A row's first token has position 0; the longest
    /// row's positions must have been reserved.
    pub fn turn(&self, qkv: &mut [f32], shape: Heads<'_>) {
        let (hidden, d) = (shape.hidden(), shape.head_dim);
        let mut positions = Vec::with_capacity(shape.tokens());
        shape.offsets.windows(2).for_each(|w| positions.extend(0..w[1] - w[0]));
        let tokens = qkv.par_chunks_mut(TOKENS * 3 * hidden).zip(positions.par_chunks(TOKENS));
        tokens.for_each(|(qkv, positions)| {
            for (token, &position) in qkv.chunks_exact_mut(3 * hidden).zip(positions) {
                let at = position * d / 2..(position + 1) * d / 2;
                let (cosines, sines) = (&self.cosines[at.clone()], &self.sines[at]);
                for head in token[..2 * hidden].chunks_exact_mut(d) {
                    let (left, right) = head.split_at_mut(d / 2);
                    turn_pairs(left, right, cosines, sines);
                }
            }
        });
    }
}

dispatched! {
    /// Turns each pair `(left[i], right[i])`.
    fn turn_pairs(left: &mut [f32], right: &mut [f32], cosines: &[f32], sines: &[f32]) {
        for (((x, y), &cosine), &sine) in left.iter_mut().zip(right).zip(cosines).zip(sines) {
            let (a, b) = (*x, *y);
            *x = fma::<FMA>(a, cosine, -(b * sine));
            *y = fma::<FMA>(b, cosine, a * sine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::filled;
    use crate::kernels::simd::lowered::at_every_level;

    #[test]
    fn pairs_are_turned_by_position() {
        at_every_level(|| {
            let offsets = [0, 3, 70];
            let shape = Heads { offsets: &offsets, heads: 2, head_dim: 10 };
            let before = filled(70 * 60, 1);
            let mut after = before.clone();
            let mut rotary = Rotary::new(10, 100.0);
            rotary.reserve(2);
            rotary.reserve(67);
            rotary.turn(&mut after, shape);
            for (t, (before, after)) in before.chunks(60).zip(after.chunks(60)).enumerate() {
                let position = if t < 3 { t } else { t - 3 };
                assert_eq!(before[40..], after[40..], "values stay");
                for head in (0..40).step_by(10) {
                    for i in 0..5 {
                        let angle = position as f64 * 100.0_f64.powf(-2.0 * i as f64 / 10.0);
                        let (x, y) = (f64::from(before[head + i]), f64::from(before[head + 5 + i]));
                        let expected = (x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin());
                        assert!((f64::from(after[head + i]) - expected.0).abs() < 1e-5);
                        assert!((f64::from(after[head + 5 + i]) - expected.1).abs() < 1e-5);
                    }
                }
            }
        });
    }
}
