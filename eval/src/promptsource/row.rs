//! One line of a PromptSource test file.

use serde::{Deserialize, Deserializer, Serialize};

/// One answer choice of one example under one template.
///
/// The reference implementation's test file has such a row for each (dataset, template, example, choice); fields
/// beyond these are ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PromptRow {
    /// The dataset as the results table calls it (`ANLI R1`).
    pub dataset_name: String,
    /// The template's name, unique within the dataset.
    pub template_name: String,
    /// Position of the example within the dataset, from 0.
    pub example_idx: u64,
    /// The rendered prompt.
    #[serde(default)]
    pub instruction: String,
    /// The answer choice.
    pub response: String,
    /// 1 for the right choice, 0 for the others.
    #[serde(deserialize_with = "right_or_wrong")]
    pub label: u8,
}

/// `0`, `1`, `0.0`, `1.0`, `true` and `false`: what tools write when a label goes through a data frame.
fn right_or_wrong<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Label {
        Flag(bool),
        Number(f64),
    }
    match Label::deserialize(deserializer) {
        Ok(Label::Flag(right)) => Ok(right.into()),
        Ok(Label::Number(x)) if x == 0.0 || x == 1.0 => Ok(x as u8),
        Ok(Label::Number(x)) => Err(serde::de::Error::custom(format!("label {x} is neither 0 nor 1"))),
        Err(_) => Err(serde::de::Error::custom("label is neither 0 nor 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_every_spelling_load_and_others_are_named() {
        let read = |label: &str| {
            let line = format!(
                r#"{{"dataset_name": "CB", "template_name": "t", "example_idx": 3, "instruction": "i",
                     "response": "Yes", "label": {label}, "extra": []}}"#
            );
            serde_json::from_str::<PromptRow>(&line)
        };
        for (label, expected) in [("1", 1), ("0", 0), ("1.0", 1), ("false", 0), ("true", 1)] {
            assert_eq!(read(label).unwrap().label, expected, "{label}");
        }
        for label in ["0.5", "2", "-1", "\"1\"", "null", "NaN"] {
            assert!(read(label).is_err(), "{label}");
        }
        assert!(read("2").unwrap_err().to_string().starts_with("label 2 is neither 0 nor 1"));
    }
}
