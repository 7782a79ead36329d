//! Zero-shot accuracy: the response that a scorer likes best, for each example under each template.

mod report;

use std::collections::HashMap;

use indexmap::IndexMap;

pub use report::{AccuracyReport, DatasetAccuracy, TemplateAccuracy};

use super::PromptRow;
use crate::text_key::{TextKey, text_key};

/// Why a scored row was refused; the row is not counted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccuracyError {
    /// A score that cannot be compared.
    #[error(
        "the score of example {example_idx} of `{dataset_name}` under `{template_name}` is not a number; the scorer's weights are broken"
    )]
    NotANumber {
        /// As in the row.
        dataset_name: String,
        /// As in the row.
        template_name: String,
        /// As in the row.
        example_idx: u64,
    },
    /// A label other than 0 and 1.
    #[error(
        "label {label} of example {example_idx} of `{dataset_name}` under `{template_name}` is neither 0 nor 1"
    )]
    Label {
        /// As in the row.
        dataset_name: String,
        /// As in the row.
        template_name: String,
        /// As in the row.
        example_idx: u64,
        /// As in the row.
        label: u8,
    },
}

/// Gathers scored rows and measures the choices.
///
/// Rows of one (dataset, template, example) are a group, wherever they stand in the file. The response with the
/// highest score is chosen, the first of them in the order in which they were added; it is right if its *text* is that
/// of a response labelled 1, as the reference implementation has it. Memory grows with the number of groups, not with
/// the length of texts.
///
/// ```
/// use cappy_eval::promptsource::{Accuracy, PromptRow};
///
/// let mut accuracy = Accuracy::new();
/// for (response, label, score) in [("Yes", 1, 0.75), ("No", 0, 0.25)] {
///     let row = PromptRow {
///         dataset_name: "RTE".into(),
///         template_name: "GPT-3 style".into(),
///         response: response.into(),
///         label,
///         ..PromptRow::default()
///     };
///     accuracy.add(&row, score).unwrap();
/// }
/// assert_eq!(accuracy.finish().average, Some(1.0));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Accuracy {
    datasets: IndexMap<String, IndexMap<String, HashMap<u64, Group>>>,
}

/// The rows of one example under one template, so far.
#[derive(Clone, Debug)]
struct Group {
    best_score: f32,
    best: TextKey,
    right: Right,
}

/// The responses labelled 1: nearly always one.
#[derive(Clone, Debug, Default)]
enum Right {
    #[default]
    None,
    One(TextKey),
    Several(Vec<TextKey>),
}

impl Accuracy {
    /// Nothing gathered yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one row with its score, a raw logit.
    ///
    /// # Errors
    /// [`AccuracyError`] if the score is not a number or the label neither 0 nor 1; the row is then left out.
    pub fn add(&mut self, row: &PromptRow, score: f32) -> Result<(), AccuracyError> {
        let PromptRow { dataset_name, template_name, example_idx, label, .. } = row;
        if score.is_nan() {
            return Err(AccuracyError::NotANumber {
                dataset_name: dataset_name.clone(),
                template_name: template_name.clone(),
                example_idx: *example_idx,
            });
        }
        if *label > 1 {
            return Err(AccuracyError::Label {
                dataset_name: dataset_name.clone(),
                template_name: template_name.clone(),
                example_idx: *example_idx,
                label: *label,
            });
        }
        let response = text_key([row.response.as_str()]);
        let group = entry(entry(&mut self.datasets, dataset_name), template_name)
            .entry(*example_idx)
            .or_insert_with(|| Group { best_score: score, best: response, right: Right::None });
        if score > group.best_score {
            group.best_score = score;
            group.best = response;
        }
        if *label == 1 {
            group.right.insert(response);
        }
        Ok(())
    }

    /// Measures what was gathered.
    pub fn finish(self) -> AccuracyReport {
        let examples_of = |(template, groups): (String, HashMap<u64, Group>)| {
            let mut outcomes: Vec<(u64, Option<bool>)> =
                groups.into_iter().map(|(example, group)| (example, group.is_right())).collect();
            outcomes.sort_unstable_by_key(|(example, _)| *example);
            (template, outcomes)
        };
        AccuracyReport::new(
            self.datasets
                .into_iter()
                .map(|(dataset, templates)| (dataset, templates.into_iter().map(examples_of).collect()))
                .collect(),
        )
    }
}

/// The entry of a name, which is copied only when it is new.
fn entry<'a, T: Default>(map: &'a mut IndexMap<String, T>, name: &str) -> &'a mut T {
    let index = match map.get_index_of(name) {
        Some(index) => index,
        None => map.insert_full(name.to_owned(), T::default()).0,
    };
    &mut map[index]
}

impl Group {
    /// Whether the chosen response is right; `None` if no response is.
    fn is_right(&self) -> Option<bool> {
        match &self.right {
            Right::None => None,
            Right::One(right) => Some(*right == self.best),
            Right::Several(right) => Some(right.contains(&self.best)),
        }
    }
}

impl Right {
    fn insert(&mut self, response: TextKey) {
        match self {
            Self::None => *self = Self::One(response),
            Self::One(known) if *known != response => *self = Self::Several(vec![*known, response]),
            Self::Several(known) if !known.contains(&response) => known.push(response),
            Self::One(_) | Self::Several(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
