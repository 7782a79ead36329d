//! Estimates over rows: bootstrap intervals and rank correlation.

use crate::keyed::Keyed;

/// A 95% bootstrap interval of the mean over groups of the mean over rows: rows are drawn again within each group.
///
/// `groups`: per-row values of each subset, none empty. One group gives the interval of its mean.
/// Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, percentile intervals.
///
/// # Panics
/// If there is no group, no resample, or an empty group.
pub fn bootstrap_mean(groups: &[&[f64]], resamples: usize, seed: u64) -> [f64; 2] {
    assert!(resamples > 0 && !groups.is_empty() && groups.iter().all(|rows| !rows.is_empty()));
    let mut draws = Keyed::new(seed, "bootstrap");
    let means: Vec<f64> = (0..resamples)
        .map(|_| {
            let of_group = |rows: &&[f64]| {
                (0..rows.len()).map(|_| rows[draws.below(rows.len())]).sum::<f64>() / rows.len() as f64
            };
            groups.iter().map(of_group).sum::<f64>() / groups.len() as f64
        })
        .collect();
    percentile_interval(means)
}

/// The middle 95% of resampled estimates.
///
/// # Panics
/// If there are none.
pub fn percentile_interval(mut estimates: Vec<f64>) -> [f64; 2] {
    estimates.sort_unstable_by(f64::total_cmp);
    [quantile(&estimates, 0.025), quantile(&estimates, 0.975)]
}

/// Linear interpolation between order statistics (numpy's default).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let (below, part) = (position.floor() as usize, position.fract());
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * part
}

/// Spearman's rank correlation, ties sharing their mean rank; `None` if either side does not vary.
///
/// # Panics
/// If the two have different lengths.
pub fn spearman(xs: impl Iterator<Item = f64>, ys: impl Iterator<Item = f64>) -> Option<f64> {
    let (xs, ys) = (ranks(&xs.collect::<Vec<_>>()), ranks(&ys.collect::<Vec<_>>()));
    assert_eq!(xs.len(), ys.len(), "every score has its measure");
    // Ranks always average to this, ties or not.
    let mean = (xs.len() as f64 + 1.0) / 2.0;
    let (mut covariance, mut x_variance, mut y_variance) = (0.0, 0.0, 0.0);
    for (x, y) in xs.iter().zip(&ys) {
        covariance += (x - mean) * (y - mean);
        x_variance += (x - mean).powi(2);
        y_variance += (y - mean).powi(2);
    }
    let scale = (x_variance * y_variance).sqrt();
    (scale > 0.0).then(|| covariance / scale)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = f64::from(before) + (tied.len() as f64 + 1.0) / 2.0;
        tied.iter().for_each(|&at| ranks[at] = rank);
        before += tied.len() as u32;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values follow from the ranks by hand.
    #[test]
    fn spearman_shares_ranks_between_ties() {
        let rho = |x: &[f64], y: &[f64]| spearman(x.iter().copied(), y.iter().copied());
        assert_eq!(rho(&[1.0, 2.0, 3.0], &[10.0, 20.0, 15.0]), Some(0.5));
        assert_eq!(rho(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), Some(-1.0));
        let tied = rho(&[1.0, 2.0, 2.0, 3.0], &[1.0, 1.0, 2.0, 3.0]).unwrap();
        assert!((tied - 0.8333333333333334).abs() < 1e-12, "{tied}");
        assert_eq!(rho(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(rho(&[], &[]), None);
    }

    #[test]
    fn an_interval_holds_the_mean_and_shrinks_with_rows() {
        let rows = |n: u32| (0..n).map(|i| f64::from(i % 2)).collect::<Vec<f64>>();
        let width = |n| {
            let [low, high] = bootstrap_mean(&[&rows(n)], 1000, 7);
            assert!(low < 0.5 && 0.5 < high, "{low} {high}");
            high - low
        };
        // Twice 1.96 standard errors: 0.5 / sqrt(n).
        assert!((width(100) - 0.196).abs() < 0.03);
        assert!((width(10_000) - 0.0196).abs() < 0.003);
        let constant = bootstrap_mean(&[&[0.25; 9], &[0.75; 3]], 50, 7);
        assert_eq!(constant, [0.5, 0.5], "groups weigh the same, whatever their size");
    }
}
