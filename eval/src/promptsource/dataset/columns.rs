//! The columns of the eleven tasks whose types their templates depend on.
//!
//! Source: the dataset cards on the Hugging Face hub; the order of class names is theirs.

use serde_json::Value;

use super::Example;

enum Kind {
    /// A class: its number, whatever the file has of it.
    Class(&'static [&'static str]),
    /// A whole number.
    Integer,
    /// A text, even if it looks like a number.
    Text,
}

use Kind::{Class, Integer, Text};

const FALSE_TRUE: Kind = Class(&["false", "true"]);
const ENTAILMENT: Kind = Class(&["entailment", "not_entailment"]);

const COLUMNS: [(&str, &str, Kind); 14] = [
    ("anli", "label", Class(&["entailment", "neutral", "contradiction"])),
    ("super_glue/cb", "label", Class(&["entailment", "contradiction", "neutral"])),
    ("super_glue/rte", "label", ENTAILMENT),
    ("super_glue/axg", "label", ENTAILMENT),
    ("super_glue/wic", "label", FALSE_TRUE),
    ("super_glue/wsc.fixed", "label", FALSE_TRUE),
    ("super_glue/wsc.fixed", "span1_index", Integer),
    ("super_glue/wsc.fixed", "span2_index", Integer),
    ("super_glue/wsc.fixed", "span1_text", Text),
    ("super_glue/wsc.fixed", "span2_text", Text),
    ("story_cloze/2016", "answer_right_ending", Integer),
    ("winogrande/winogrande_xl", "answer", Text),
    ("crows_pairs", "stereo_antistereo", Class(&["stereo", "antistereo"])),
    (
        "crows_pairs",
        "bias_type",
        Class(&[
            "race-color",
            "socioeconomic",
            "gender",
            "disability",
            "nationality",
            "sexual-orientation",
            "physical-appearance",
            "religion",
            "age",
        ]),
    ),
];

/// Gives the known columns of a dataset their types.
///
/// # Errors
/// The column and what is wrong with it.
pub(super) fn settle(folder: &str, example: &mut Example) -> Result<(), String> {
    for (_, column, kind) in COLUMNS.iter().filter(|(of, _, _)| *of == folder) {
        let Some(value) = example.get_mut(*column) else { continue };
        let settled = match kind {
            Text => as_text(value),
            Integer => as_integer(value),
            Class(names) => as_integer(value).or_else(|| as_class(value, names)),
        };
        *value = settled.ok_or_else(|| format!("column `{column}`: {value} is not {}", described(kind)))?;
    }
    Ok(())
}

fn as_text(value: &Value) -> Option<Value> {
    match value {
        Value::String(_) | Value::Null => Some(value.clone()),
        Value::Number(number) => Some(number.to_string().into()),
        _ => None,
    }
}

fn as_integer(value: &Value) -> Option<Value> {
    match value {
        Value::Number(number) if number.is_i64() => Some(value.clone()),
        Value::Number(number) => {
            let x = number.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e15)?;
            Some((x as i64).into())
        }
        Value::String(text) => text.trim().parse::<i64>().ok().map(Value::from),
        _ => None,
    }
}

fn as_class(value: &Value, names: &[&str]) -> Option<Value> {
    match value {
        Value::Bool(flag) => names.iter().position(|name| *name == flag.to_string()),
        Value::String(text) => {
            let text = text.trim().to_lowercase();
            names.iter().position(|name| *name == text)
        }
        _ => None,
    }
    .map(Value::from)
}

fn described(kind: &Kind) -> String {
    match kind {
        Text => "a text".to_owned(),
        Integer => "a whole number".to_owned(),
        Class(names) => format!("a class (0 to {}, or {})", names.len() - 1, names.join(", ")),
    }
}
