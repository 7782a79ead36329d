//! The figures of the reference implementation, to stand beside ours.
//!
//! Source: the results files and the README of the Cappy repository (runs on A10G GPUs).

use crate::selection::{SELF_SCORE_MEAN, SELF_SCORE_SUM};

/// Lines of `subset`, then ROUGE-L in `[0, 1]` per generator.
const SCORES: &str = include_str!("../../data/published_scores.tsv");

/// The name under which the scorer's own row goes among the methods.
pub const CAPPY: &str = "cappy";
/// The name of the best candidate's row.
pub const ORACLE: &str = "oracle";

/// The generators, smallest first.
pub const MODELS: [&str; 5] = ["flan-t5-small", "flan-t5-base", "flan-t5-large", "flan-t5-xl", "flan-t5-xxl"];

/// Means over the 45 subsets, times 100, by method and generator.
const MEANS: [(&str, [f64; 5]); 8] = [
    ("beam4", [16.4025, 19.8594, 23.4802, 26.1177, 29.6608]),
    ("sampling", [11.4317, 15.7909, 19.6248, 23.2191, 25.7273]),
    ("temp0.9", [12.0126, 17.0571, 20.0481, 24.2702, 27.0985]),
    ("topk40", [11.5157, 15.7481, 19.7634, 22.6692, 25.8226]),
    ("topp0.95", [11.9171, 16.6174, 20.1986, 24.1654, 26.9036]),
    (SELF_SCORE_SUM, [15.0806, 20.711, 24.1224, 28.4665, 32.0156]),
    (SELF_SCORE_MEAN, [16.4223, 20.1317, 23.7828, 26.7694, 30.246]),
    (CAPPY, [23.6543, 27.6178, 30.3802, 33.2775, 37.1678]),
];

/// The published ROUGE-L of Cappy on one subset, in `[0, 1]`.
pub fn score(model: &str, subset: &str) -> Option<f64> {
    let column = model_index(model)?;
    let mut fields = SCORES.lines().map(|line| line.split('\t')).find_map(|mut fields| {
        // Not a filter: the iterator must stand behind the name.
        (fields.next() == Some(subset)).then_some(fields)
    })?;
    fields.nth(column)?.parse().ok()
}

/// The published mean of a method over the 45 subsets, times 100.
pub fn mean(model: &str, method: &str) -> Option<f64> {
    let column = model_index(model)?;
    MEANS.iter().find(|(name, _)| *name == method).map(|(_, means)| means[column])
}

/// The position of a generator among the published ones; others come behind.
pub(super) fn place(model: &str) -> usize {
    model_index(model).unwrap_or(MODELS.len())
}

fn model_index(model: &str) -> Option<usize> {
    let name = model.strip_prefix("google/").unwrap_or(model);
    MODELS.iter().position(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bigbench::GENERATIVE_SUBSETS;

    #[test]
    fn the_means_are_those_of_the_scores() {
        for model in MODELS {
            let scores = GENERATIVE_SUBSETS.map(|subset| score(model, subset).expect(subset));
            let mean_of_scores = 100.0 * scores.iter().sum::<f64>() / scores.len() as f64;
            let published = mean(model, CAPPY).unwrap();
            assert!((mean_of_scores - published).abs() < 6e-5, "{model}: {mean_of_scores} {published}");
        }
        assert_eq!(score("google/flan-t5-xl", "auto_categorization"), Some(0.567130647130647));
        assert_eq!(score("demo", "tense"), None);
        assert_eq!(mean("flan-t5-small", ORACLE), None);
    }
}
