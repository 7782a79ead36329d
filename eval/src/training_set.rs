//! The scorer's training set for one subset: labelled text pairs from the generated train rows.
//!
//! 1. Every reference of every row is right: label 1.
//! 2. For each of those, a reference drawn from all references of the subset is wrong (label 0), unless the pair is
//!    already there.
//! 3. Every candidate whose pair is not there yet is as right as its ROUGE-L against the row's references says.
//! 4. The list is shuffled, then repeated and cut to the wanted size.
//!
//! Source: the reference implementation's training-set construction; its draws depend on process state, ours on a seed.

use std::collections::HashSet;

use indexmap::IndexSet;

use crate::keyed::Keyed;
use crate::rouge::RougeScorer;
use crate::rows::{GeneratedRow, TrainingExample};

/// The reference implementation's size of a training set, in examples after repetition.
pub const DEFAULT_TRAIN_SIZE: usize = 102_400;

/// Why there is no training set.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TrainingSetError {
    /// No row has a reference or a candidate to learn from.
    #[error(
        "no train row has a reference or a candidate, so there is nothing to train on; check the train split"
    )]
    Empty,
}

/// The examples of one subset, shuffled, not repeated.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingSet {
    /// The shuffled list; never empty.
    pub examples: Vec<TrainingExample>,
    /// How many of them are references with label 1.
    pub references: usize,
    /// How many are references of other rows with label 0.
    pub mismatched: usize,
    /// How many are candidates labelled by ROUGE-L.
    pub candidates: usize,
    /// Candidates left out because their row has no references to measure them against.
    pub unlabelled: usize,
}

impl TrainingSet {
    /// Where example `i` of the endlessly repeated list stands in [`Self::examples`].
    pub fn index_of(&self, i: usize) -> usize {
        i % self.examples.len()
    }

    /// Example `i` of the endlessly repeated list; a training set of size n is examples `0..n`.
    pub fn repeated(&self, i: usize) -> &TrainingExample {
        &self.examples[self.index_of(i)]
    }
}

/// Builds the training set of one subset from its generated train rows, in file order.
///
/// # Errors
/// [`TrainingSetError::Empty`] if the rows hold neither references nor candidates.
pub fn build(rows: &[GeneratedRow], seed: u64) -> Result<TrainingSet, TrainingSetError> {
    let mut present: HashSet<(&str, &str)> = HashSet::new();
    let mut examples = Vec::new();
    let mut add = |instruction: &str, response: &str, label: f64| {
        examples.push(TrainingExample { instruction: instruction.into(), response: response.into(), label });
    };

    // Rows repeated word for word keep their weight, so presence is not asked here.
    let mut all_references: IndexSet<&str> = IndexSet::new();
    let mut references = 0;
    for (row, reference) in right_pairs(rows) {
        all_references.insert(reference);
        present.insert((&row.row.instruction, reference));
        add(&row.row.instruction, reference, 1.0);
        references += 1;
    }

    let mut draws = Keyed::new(seed, "training-set/mismatched");
    let mut mismatched = 0;
    for (row, _) in right_pairs(rows) {
        let response = all_references[draws.below(all_references.len())];
        if present.insert((&row.row.instruction, response)) {
            add(&row.row.instruction, response, 0.0);
            mismatched += 1;
        }
    }

    let mut rouge = RougeScorer::new();
    let (mut candidates, mut unlabelled) = (0, 0);
    for row in rows {
        for candidate in row.candidates() {
            let response = candidate.sample.response.as_str();
            if present.contains(&(row.row.instruction.as_str(), response)) {
                continue;
            }
            let Ok(label) = rouge.rouge_l(&row.row.references, response) else {
                unlabelled += 1;
                continue;
            };
            present.insert((&row.row.instruction, response));
            add(&row.row.instruction, response, label);
            candidates += 1;
        }
    }

    if examples.is_empty() {
        return Err(TrainingSetError::Empty);
    }
    Keyed::new(seed, "training-set/order").shuffle(&mut examples);
    Ok(TrainingSet { examples, references, mismatched, candidates, unlabelled })
}

fn right_pairs(rows: &[GeneratedRow]) -> impl Iterator<Item = (&GeneratedRow, &str)> {
    rows.iter().flat_map(|row| row.row.references.iter().map(move |reference| (row, reference.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{Row, Sample};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn row(instruction: &str, references: &[&str], responses: &[&str]) -> GeneratedRow {
        GeneratedRow {
            row: Row {
                instruction: instruction.into(),
                references: references.iter().map(|r| (*r).into()).collect(),
                ..Row::default()
            },
            flan_samples: [("beam4".to_owned(), responses.iter().map(|r| Sample::new(*r)).collect())].into(),
        }
    }

    fn sorted(set: &TrainingSet) -> Vec<(&str, &str, f64)> {
        let mut pairs: Vec<_> =
            set.examples.iter().map(|e| (e.instruction.as_str(), e.response.as_str(), e.label)).collect();
        pairs.sort_by(|a, b| a.partial_cmp(b).unwrap());
        pairs
    }

    #[test]
    fn each_rule_adds_what_it_should() {
        // One reference in the whole subset, so that every draw hits a pair that is already there, but for "other".
        let rows = [
            row("fly", &["red bird"], &["red bird", "a bird", "a bird", "A bird"]),
            row("fly", &["red bird"], &["fish"]),
            row("none", &[], &["unmeasured"]),
        ];
        let set = build(&rows, 1).unwrap();
        assert_eq!(
            sorted(&set),
            [
                ("fly", "A bird", 0.5),
                ("fly", "a bird", 0.5),
                ("fly", "fish", 0.0),
                ("fly", "red bird", 1.0),
                ("fly", "red bird", 1.0),
            ]
        );
        assert_eq!((set.references, set.mismatched, set.candidates, set.unlabelled), (2, 0, 3, 1));
        assert_eq!(set.repeated(5), &set.examples[0]);
        assert_eq!(set.repeated(13), &set.examples[3]);
    }

    #[test]
    fn a_mismatched_reference_wins_over_the_same_candidate() {
        let rows = [row("a", &["x"], &["y", "x"]), row("b", &["y"], &["x", "y"])];
        let sets: Vec<_> = (0..40).map(|seed| build(&rows, seed).unwrap()).collect();
        // Whether drawn as wrong or measured as a candidate, the four pairs and their labels are these.
        for set in &sets {
            assert_eq!(sorted(set), [("a", "x", 1.0), ("a", "y", 0.0), ("b", "x", 0.0), ("b", "y", 1.0)]);
            assert_eq!(set.mismatched + set.candidates, 2);
        }
        assert!(sets.iter().any(|set| set.mismatched == 2) && sets.iter().any(|set| set.mismatched == 0));
        assert!(sets.iter().any(|set| set.examples != sets[0].examples), "the order depends on the seed");
    }

    #[test]
    fn nothing_to_learn_from_is_an_error() {
        assert_eq!(build(&[], 0), Err(TrainingSetError::Empty));
        assert_eq!(build(&[row("a", &[], &["x"])], 0), Err(TrainingSetError::Empty));
    }

    proptest! {
        #[test]
        fn labels_and_presence_hold(
            rows in vec(("[ab]", vec("[xyz]{1,2}( [xyz])?", 0..3), vec("[xyz]{1,2}( [xyz])?", 0..5)), 1..12), seed: u64
        ) {
            let rows: Vec<GeneratedRow> = rows
                .iter()
                .map(|(i, r, s)| {
                    let (r, s): (Vec<&str>, Vec<&str>) =
                        (r.iter().map(String::as_str).collect(), s.iter().map(String::as_str).collect());
                    row(i, &r, &s)
                })
                .collect();
            let Ok(set) = build(&rows, seed) else {
                prop_assert!(rows.iter().all(|row| row.row.references.is_empty()));
                return Ok(());
            };
            prop_assert_eq!(&set, &build(&rows, seed).unwrap());
            prop_assert_eq!(set.examples.len(), set.references + set.mismatched + set.candidates);
            prop_assert_eq!(set.references, rows.iter().map(|row| row.row.references.len()).sum::<usize>());
            prop_assert_eq!(set.examples.iter().filter(|e| e.label == 1.0).count() >= set.references, true);
            let mut others = HashSet::new();
            let right: HashSet<_> = right_pairs(&rows).map(|(row, r)| (row.row.instruction.as_str(), r)).collect();
            for example in &set.examples {
                prop_assert!((0.0..=1.0).contains(&example.label));
                let pair = (example.instruction.as_str(), example.response.as_str());
                if right.contains(&pair) {
                    prop_assert_eq!(example.label, 1.0);
                } else {
                    prop_assert!(others.insert(pair), "{:?} stands twice", pair);
                }
            }
        }
    }
}
