//! Cutting a batch into pieces of whole rows whose activations fit a budget.

use std::ops::Range;

/// Consecutive ranges of rows with at most `budget` tokens each (a longer row alone), of nearly equal size.
///
/// `offsets`: `[rows + 1]`, as in a ragged batch.
pub fn pieces(offsets: &[u32], budget: usize) -> Vec<Range<usize>> {
    let rows = offsets.len().saturating_sub(1);
    let total = offsets.last().copied().unwrap_or(0) as usize;
    // Even pieces: 2100 tokens make two of 1050 rather than 2048 and 52.
    let target = total.div_ceil(total.div_ceil(budget).max(1));
    let mut out = Vec::new();
    let mut start = 0;
    for end in 1..=rows {
        let tokens = |end: usize| (offsets[end] - offsets[start]) as usize;
        if end == rows || tokens(end) >= target || tokens(end + 1) > budget {
            out.push(start..end);
            start = end;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn pieces_cover_all_rows_within_the_budget() {
        assert_eq!(pieces(&[0], 10), Vec::<std::ops::Range<usize>>::new());
        assert_eq!(pieces(&[0, 5], 10), vec![std::ops::Range { start: 0, end: 1 }]);
        assert_eq!(pieces(&[0, 50, 52, 60], 10), [0..1, 1..3]);
        let offsets: Vec<u32> = (0..=41).map(|i| i * 50).collect();
        let cut = pieces(&offsets, 1024);
        assert_eq!(cut.first().unwrap().start, 0);
        assert_eq!(cut.last().unwrap().end, 41);
        assert!(cut.windows(2).all(|w| w[0].end == w[1].start));
        assert!(cut.iter().all(|r| r.len() * 50 <= 1024 && !r.is_empty()), "{cut:?}");
    }
}
