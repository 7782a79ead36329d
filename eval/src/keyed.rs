//! Random numbers that depend on what they are for, never on the machine or the order of work.
//!
//! A stream is named by a seed and a purpose; draw `i` of a stream is a pure function of both, so that a training set
//! or a bootstrap interval can be made again anywhere.

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of random numbers with a key (SplitMix64: state += gamma, output = finalizer).
#[derive(Clone, Debug)]
pub struct Keyed {
    state: u64,
}

impl Keyed {
    /// The stream for one purpose under one seed.
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a, so that the stream of a purpose stays what it is when others are added.
        let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { state: finalize(seed.wrapping_add(GOLDEN_GAMMA)) ^ finalize(hash) }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        finalize(self.state)
    }

    /// A uniform index in `0..bound`.
    ///
    /// Unbiased (Lemire, "Fast random integer generation in an interval", 2019).
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "an index below 0 does not exist");
        let bound = bound as u64;
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// Shuffles in place (Fisher and Yates, from the end).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

fn finalize(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_uniform_and_streams_are_apart() {
        let mut stream = Keyed::new(11111, "test");
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[stream.below(7)] += 1;
        }
        // Standard deviation of one count is about 93.
        assert!(counts.iter().all(|&n| n.abs_diff(10_000) < 450), "{counts:?}");
        let first = |seed, purpose| Keyed::new(seed, purpose).next_u64();
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(2, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..1000).collect();
        Keyed::new(3, "shuffle").shuffle(&mut items);
        assert!(items.iter().enumerate().filter(|(i, x)| *i as u32 == **x).count() < 10);
        items.sort_unstable();
        assert!(items.iter().enumerate().all(|(i, x)| i as u32 == *x));
    }
}
