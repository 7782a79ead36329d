//! Dropout whose mask is a function of a key, so that a retry, a resumed run and the backward pass see the same one.

use cappy_plugin_abi::random::fold;

use crate::simd::dispatched;

/// Places of dropout, as transformers has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// RoBERTa's head, before its dense layer.
    HeadInput,
    /// Before the last projection.
    HeadInner,
    /// Behind their normalisation.
    Embeddings,
    /// A layer's attention weights.
    Attention(usize),
    /// What a layer's attention adds to the stream.
    AttentionOutput(usize),
    /// What a layer's feed-forward network adds to the stream; in ModernBERT its inner states.
    FeedForward(usize),
    /// DeBERTa's position embeddings, as a layer sees them.
    Positions(usize),
    /// DeBERTa's convolution over the embeddings.
    Convolution,
}

impl Site {
    fn number(self) -> u64 {
        match self {
            Self::HeadInput => 0,
            Self::HeadInner => 1,
            Self::Embeddings => 2,
            Self::Attention(layer) => 3 + 3 * layer as u64,
            Self::AttentionOutput(layer) => 4 + 3 * layer as u64,
            Self::FeedForward(layer) => 5 + 3 * layer as u64,
            // Beyond the last layer of any model.
            Self::Positions(layer) => (1 << 32) + layer as u64,
            Self::Convolution => 1 << 33,
        }
    }
}

/// Zeroes elements with probability `threshold / 65536` and scales the others so that the mean stays.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    threshold: u64,
    scale: f32,
    key: u64,
}

impl Dropout {
    /// `probability` in [0, 1), rounded to a multiple of 1/65536; `key` covers seed and step.
    pub fn new(probability: f64, key: u64) -> Self {
        let threshold = (probability * 65_536.0).round();
        Self { threshold: threshold as u64, scale: (65_536.0 / (65_536.0 - threshold)) as f32, key }
    }

    /// The key of a place in the model; fold the row's index into it for [`Dropout::apply`].
    pub fn site(&self, site: Site) -> u64 {
        fold(self.key, site.number())
    }

    /// Whether anything is dropped at all.
    pub fn active(&self) -> bool {
        self.threshold > 0
    }

    /// An element is kept when its 16 bits are at least this.
    pub fn threshold(&self) -> u64 {
        self.threshold
    }

    /// What kept elements are multiplied with.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Applies the mask of a row: element `i` draws from 16 bits of `fold(row_key, i / 4)`.
    pub fn apply(&self, row: &mut [f32], row_key: u64) {
        if self.active() {
            apply(row, row_key, self.threshold, self.scale);
        }
    }
}

dispatched! {
    fn apply(row: &mut [f32], key: u64, threshold: u64, scale: f32) {
        let (groups, rest) = row.as_chunks_mut::<4>();
        let first_of_rest = groups.len() as u64;
        for (group, values) in groups.iter_mut().enumerate() {
            let bits = fold(key, group as u64);
            for (lane, value) in values.iter_mut().enumerate() {
                let kept = (bits >> (16 * lane)) & 0xffff >= threshold;
                *value *= if kept { scale } else { 0.0 };
            }
        }
        let bits = fold(key, first_of_rest);
        for (lane, value) in rest.iter_mut().enumerate() {
            let kept = (bits >> (16 * lane)) & 0xffff >= threshold;
            *value *= if kept { scale } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::lowered::at_every_level;

    #[test]
    fn masks_are_keyed_and_have_the_right_rate() {
        at_every_level(check_masks);
    }

    fn check_masks() {
        let dropout = Dropout::new(0.1, 42);
        let mask = |row: u64, len: usize| {
            let mut x = vec![1.0; len];
            dropout.apply(&mut x, fold(dropout.site(Site::Attention(0)), row));
            x
        };
        let zeros = (0..200).map(|row| mask(row, 1000).iter().filter(|&&x| x == 0.0).count()).sum::<usize>();
        assert!((zeros as f64 / 200_000.0 - 0.1).abs() < 0.003, "{zeros} of 200000 dropped");
        let mean = (0..200).flat_map(|row| mask(row, 1000)).sum::<f32>() / 200_000.0;
        assert!((mean - 1.0).abs() < 0.005);
        assert_eq!(mask(7, 1001), mask(7, 1001));
        assert_eq!(mask(7, 1001)[..998], mask(7, 998));
        assert_ne!(mask(7, 100), mask(8, 100));
        let mut untouched = [1.5, 2.5];
        Dropout::new(0.0, 1).apply(&mut untouched, 5);
        assert_eq!(untouched, [1.5, 2.5]);
    }
}
