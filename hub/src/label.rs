//! A classifier of several labels ranks by one of them: the one that was named behind the model (`NAME#LABEL`), or the
//! one that can only be meant.
//!
//! The choice becomes part of the model's directory: its `config.json` then describes a classifier of that label alone,
//! with `ranking_label` saying which row of the stored head it is. So fingerprints, caches and backends tell a model
//! that ranks by one label from the same model that ranks by another, and nothing between here and the backend needs
//! to know about labels.

use std::path::Path;

use serde_json::{Map, Value, json};

/// A label that cannot be ranked by.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LabelError {
    /// Several labels, and none is clearly the one to rank by.
    #[error(
        "it has {} labels ({}): say which one ranks, as NAME#LABEL (a label or its number)",
        labels.len(),
        listed(labels)
    )]
    Ambiguous {
        /// In the order of the head.
        labels: Vec<String>,
    },
    /// There is no such label.
    #[error("it has no label `{wanted}`; it has {}", listed(labels))]
    Unknown {
        /// As asked for.
        wanted: String,
        /// In the order of the head.
        labels: Vec<String>,
    },
    /// Nothing follows the `#`.
    #[error("nothing follows `#`: give the label to rank by, as NAME#LABEL, or leave `#` out")]
    Empty,
    /// A generator was given a label.
    #[error("`#{0}` names a label to rank by, but a {1} is no classifier")]
    NoClassifier(String, crate::config::Architecture),
}

/// The label that scores are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankingLabel {
    /// Its name.
    pub name: String,
    /// Its row in the head.
    pub index: usize,
    /// Rows of the head.
    pub of: usize,
}

/// Names that say that a response fits, of which a classifier has at most one.
const FITTING: [&str; 6] = ["entailment", "relevant", "positive", "acceptable", "yes", "true"];

/// transformers' name of the second label where nobody named them: the class that is looked for.
const SECOND_OF_UNNAMED: &str = "LABEL_1";

fn listed(labels: &[String]) -> String {
    labels.iter().enumerate().map(|(i, label)| format!("{i} {label}")).collect::<Vec<_>>().join(", ")
}

/// Splits `NAME#LABEL`. A directory may have a `#` in its name.
///
/// # Errors
/// [`LabelError::Empty`].
pub fn split(name: &str) -> Result<(&str, Option<&str>), LabelError> {
    match name.rsplit_once('#') {
        Some((_, _)) if Path::new(name).exists() => Ok((name, None)),
        Some((_, "")) => Err(LabelError::Empty),
        Some((model, label)) => Ok((model, Some(label))),
        None => Ok((name, None)),
    }
}

/// Which of a head's labels ranks; `None` where there is only one.
///
/// # Errors
/// [`LabelError`] that lists the labels.
pub fn choose(labels: &[String], wanted: Option<&str>) -> Result<Option<RankingLabel>, LabelError> {
    let found = match wanted {
        Some(wanted) => Some(
            find(labels, wanted)
                .ok_or_else(|| LabelError::Unknown { wanted: wanted.to_owned(), labels: labels.to_vec() })?,
        ),
        None if labels.len() < 2 => None,
        None => Some(fitting(labels).ok_or_else(|| LabelError::Ambiguous { labels: labels.to_vec() })?),
    };
    let ranking = |index: usize| RankingLabel { name: labels[index].clone(), index, of: labels.len() };
    Ok(found.filter(|_| labels.len() > 1).map(ranking))
}

/// By name, then by name in another case, then by number.
fn find(labels: &[String], wanted: &str) -> Option<usize> {
    if let Some(index) = labels.iter().position(|label| label == wanted) {
        return Some(index);
    }
    let mut alike = (0..labels.len()).filter(|i| labels[*i].eq_ignore_ascii_case(wanted));
    match (alike.next(), alike.next()) {
        (Some(index), None) => Some(index),
        _ => wanted.parse().ok().filter(|index| *index < labels.len()),
    }
}

fn fitting(labels: &[String]) -> Option<usize> {
    if let [_, second] = labels
        && second == SECOND_OF_UNNAMED
    {
        return Some(1);
    }
    let mut found =
        (0..labels.len()).filter(|i| FITTING.iter().any(|name| labels[*i].eq_ignore_ascii_case(name)));
    match (found.next(), found.next()) {
        (Some(index), None) => Some(index),
        _ => None,
    }
}

/// The labels of a classifier's configuration in the order of its head; empty for what is no classifier.
pub(crate) fn labels_of(config: &Map<String, Value>) -> Vec<String> {
    let class = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let named = config.get("id2label").and_then(Value::as_object);
    let count =
        config.get("num_labels").and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
    let count = count.or(named.map(Map::len));
    let count = match class {
        Some(class) if !class.ends_with("ForSequenceClassification") => return Vec::new(),
        // transformers' default.
        _ => count.unwrap_or(2),
    };
    let name = |index: usize| {
        let named = named.and_then(|named| named.get(&index.to_string())).and_then(Value::as_str);
        named.map_or_else(|| format!("LABEL_{index}"), str::to_owned)
    };
    (0..count.min(MAX_LABELS)).map(name).collect()
}

/// Of a head whose labels are listed.
const MAX_LABELS: usize = 10_000;

/// The configuration of a classifier of one label, which is one row of a head that has more.
pub(crate) fn config_of(config_json: &str, label: &RankingLabel) -> String {
    let mut config: Map<String, Value> = serde_json::from_str(config_json).unwrap_or_default();
    config.shift_remove("problem_type");
    config.insert("num_labels".into(), json!(1));
    config.insert("id2label".into(), json!({ "0": label.name }));
    config.insert("label2id".into(), json!({ &label.name: 0 }));
    config
        .insert("ranking_label".into(), json!({ "name": label.name, "index": label.index, "of": label.of }));
    Value::Object(config).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_at_the_last_mark() {
        assert_eq!(split("org/nli"), Ok(("org/nli", None)));
        assert_eq!(split("org/nli@v1#entailment"), Ok(("org/nli@v1", Some("entailment"))));
        assert_eq!(split("/x#1/y#2"), Ok(("/x#1/y", Some("2"))));
        assert_eq!(split("org/nli#"), Err(LabelError::Empty));
        let dir = tempfile::Builder::new().prefix("a#b").tempdir().unwrap();
        let there = dir.path().to_str().unwrap();
        assert_eq!(split(there), Ok((there, None)));
    }

    #[test]
    fn the_label_is_named_or_can_only_be_meant() {
        type Case<'a> = (&'a [&'a str], Option<&'a str>, Result<Option<usize>, &'a str>);
        let table: [Case<'_>; 15] = [
            (&["LABEL_0"], None, Ok(None)),
            (&["LABEL_0"], Some("0"), Ok(None)),
            (&["LABEL_0"], Some("1"), Err("it has no label `1`; it has 0 LABEL_0")),
            (&[], None, Ok(None)),
            (&["LABEL_0", "LABEL_1"], None, Ok(Some(1))),
            (&["LABEL_0", "LABEL_1"], Some("LABEL_0"), Ok(Some(0))),
            (&["entailment", "not_entailment"], None, Ok(Some(0))),
            (&["contradiction", "ENTAILMENT", "neutral"], None, Ok(Some(1))),
            (&["contradiction", "ENTAILMENT", "neutral"], Some("Neutral"), Ok(Some(2))),
            (&["contradiction", "ENTAILMENT", "neutral"], Some("2"), Ok(Some(2))),
            (&["contradiction", "ENTAILMENT", "neutral"], Some("3"), Err("no label `3`")),
            (&["1", "0"], Some("1"), Ok(Some(0))),
            (&["bad", "good"], None, Err("2 labels (0 bad, 1 good): say which one ranks, as NAME#LABEL")),
            (&["yes", "true"], None, Err("say which one ranks")),
            (&["LABEL_0", "LABEL_1", "LABEL_2"], None, Err("say which one ranks")),
        ];
        for (labels, wanted, expected) in table {
            let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
            match (choose(&labels, wanted), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.map(|label| label.index), expected),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (found, expected) => panic!("{labels:?} {wanted:?}: {found:?} not {expected:?}"),
            }
        }
    }

    #[test]
    fn a_configuration_of_one_label_keeps_the_rest() {
        let json = r#"{"architectures":["BertForSequenceClassification"],"problem_type":"single_label_classification",
            "id2label":{"0":"contradiction","1":"entailment"},"label2id":{"contradiction":0,"entailment":1}}"#;
        let labels = labels_of(&serde_json::from_str(json).unwrap());
        assert_eq!(labels, ["contradiction", "entailment"]);
        let label = choose(&labels, None).unwrap().unwrap();
        assert_eq!(
            config_of(json, &label),
            r#"{"architectures":["BertForSequenceClassification"],"id2label":{"0":"entailment"},"label2id":{"entailment":0},"num_labels":1,"ranking_label":{"name":"entailment","index":1,"of":2}}"#
        );
        let none = serde_json::from_str(r#"{"architectures":["RobertaForMaskedLM"]}"#).unwrap();
        assert!(labels_of(&none).is_empty());
    }
}
