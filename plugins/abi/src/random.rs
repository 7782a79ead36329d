//! Randomness that depends on what is computed, never on where or in which batch.
//!
//! Every draw has a key: (job seed, row, decoding, sample, step) for generation, (seed, step, site, element) for
//! dropout. The same key gives the same number in every backend.

/// Mixes 64 bits (the finalizer of SplitMix64).
pub const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Combines a key with one more part.
pub const fn fold(key: u64, part: u64) -> u64 {
    mix(key ^ mix(part))
}

/// The key of a name (FNV-1a, mixed): a decoding, or a row as `namespace` folded with its index.
pub fn key_of(name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(hash)
}

/// A uniform number in [0, 1) with 53 random bits.
pub fn uniform(key: u64) -> f64 {
    (mix(key) >> 11) as f64 / (1u64 << 53) as f64
}

/// The draw of one generated token.
pub fn token_draw(seed: u64, row_key: u64, decoding_key: u64, sample: u32, step: u32) -> f64 {
    uniform(fold(fold(fold(fold(mix(seed), row_key), decoding_key), u64::from(sample)), u64::from(step)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_uniform_and_keyed() {
        let n = 100_000;
        let draws: Vec<f64> =
            (0..n).map(|i| token_draw(11111, key_of("row"), key_of("sampling"), i % 4, i)).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let var = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5).abs() < 0.005 && (var - 1.0 / 12.0).abs() < 0.002, "mean {mean} variance {var}");
        assert!(draws.iter().all(|x| (0.0..1.0).contains(x)));
        assert_ne!(token_draw(1, 2, 3, 0, 1), token_draw(1, 2, 3, 1, 0));
        assert_eq!(token_draw(1, 2, 3, 4, 5), token_draw(1, 2, 3, 4, 5));
    }
}
