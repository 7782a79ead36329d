//! The published zero-shot accuracies, to stand beside ours.
//!
//! Source: the README of the Cappy repository; the baselines there are from OPT-IML (arXiv 2212.12017, section 5.2).

/// The systems, in the published order; the last is Cappy.
pub const SYSTEMS: [&str; 6] =
    ["OPT 30B", "OPT-IML 30B", "OPT 175B", "OPT-IML 175B", "T0 11B", "Cappy 0.36B"];

/// Accuracy in percent by dataset, one for each of [`SYSTEMS`].
const ACCURACIES: [(&str, [f64; 6]); 11] = [
    ("ANLI R1", [33.7, 37.1, 34.1, 42.2, 42.1, 34.3]),
    ("ANLI R2", [34.1, 35.4, 34.1, 38.5, 37.9, 33.9]),
    ("ANLI R3", [34.7, 36.6, 34.7, 39.6, 39.7, 34.7]),
    ("CB", [24.6, 43.2, 38.9, 56.4, 58.5, 59.4]),
    ("RTE", [56.4, 67.8, 54.0, 73.4, 80.2, 71.9]),
    ("StoryCloze", [55.5, 90.7, 57.0, 95.0, 96.7, 93.7]),
    ("WSC", [43.5, 58.2, 51.0, 59.2, 58.6, 63.8]),
    ("WiC", [50.8, 54.7, 49.7, 53.6, 56.0, 51.9]),
    ("Winogrande", [50.2, 53.4, 50.1, 56.6, 62.5, 51.7]),
    ("WinoGender", [54.9, 64.6, 53.9, 72.7, 83.8, 68.9]),
    ("Crows-Pairs", [85.5, 22.3, 85.5, 34.4, 24.0, 57.8]),
];

/// The means over all eleven datasets as published (of unrounded accuracies), in percent.
const AVERAGES: [f64; 6] = [47.6, 51.3, 49.3, 56.5, 58.2, 56.6];

/// The published accuracies on one dataset, in percent, one for each of [`SYSTEMS`].
pub fn accuracies(dataset: &str) -> Option<&'static [f64; 6]> {
    ACCURACIES.iter().find(|(name, _)| *name == dataset).map(|(_, accuracies)| accuracies)
}

/// The published means over exactly these datasets, in percent: the printed averages for all eleven, else means of the
/// printed accuracies; `None` if one of them has no published accuracy.
pub fn averages(datasets: &[&str]) -> Option<[f64; 6]> {
    let known: Vec<&[f64; 6]> = datasets.iter().map(|name| accuracies(name)).collect::<Option<_>>()?;
    match known.len() {
        0 => None,
        n if n == ACCURACIES.len() => Some(AVERAGES),
        n => Some(std::array::from_fn(|system| known.iter().map(|row| row[system]).sum::<f64>() / n as f64)),
    }
}

/// The position of a dataset in the published table; others come behind.
pub(super) fn place(dataset: &str) -> usize {
    ACCURACIES.iter().position(|(name, _)| *name == dataset).unwrap_or(ACCURACIES.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_averages_are_those_of_the_rounded_accuracies() {
        for (system, printed) in AVERAGES.iter().enumerate() {
            let mean = ACCURACIES.iter().map(|(_, row)| row[system]).sum::<f64>() / 11.0;
            assert!((mean - printed).abs() <= 0.1, "{}: {mean} {printed}", SYSTEMS[system]);
        }
        assert_eq!(averages(&["CB", "RTE"]).unwrap()[5], (59.4 + 71.9) / 2.0);
        assert_eq!(averages(&["CB", "mine"]), None);
        assert_eq!(averages(&[]), None);
    }
}
