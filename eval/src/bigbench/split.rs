//! How many examples of a part are validation rows, and which.

use std::ops::Range;

use super::Split;

/// The seed of every shuffle in the published copy of the benchmark.
pub(super) const SEED: u32 = 42;

const VALIDATION_SHARE: f64 = 0.2;
const MIN_VALIDATION: usize = 16;

/// The places, in the shuffled order, of a split's examples. `examples` of a part, `parts` of its task.
///
/// `None` if nothing would be left to train on.
pub(super) fn places(examples: usize, parts: usize, split: Split) -> Option<Range<usize>> {
    let share = (VALIDATION_SHARE * examples as f64) as usize;
    let validation = share.max(MIN_VALIDATION / parts);
    let train = examples.checked_sub(validation).filter(|train| *train > 0)?;
    Some(match split {
        Split::Train => 0..train,
        Split::Validation => train..examples,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_but_not_too_few() {
        let sizes = |n, parts| {
            let of = |split| places(n, parts, split).map(|range| range.len());
            of(Split::Train).zip(of(Split::Validation))
        };
        assert_eq!(sizes(328, 1), Some((263, 65)));
        assert_eq!(sizes(30, 1), Some((14, 16)));
        assert_eq!(sizes(32, 246), Some((26, 6)));
        assert_eq!(sizes(10, 16), Some((8, 2)));
        assert_eq!(sizes(16, 1), None);
        assert_eq!(sizes(0, 300), None);
    }
}
