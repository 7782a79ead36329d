//! Examples as template variables.

use minijinja::value::Value;
use serde_json::{Map, Value as Json};

use super::Scratch;
use super::scratch::Shared;

/// What stands for `|||` within an example while its rendering is cut at `|||`.
///
/// Source: `Template.pipe_protector` of the promptsource package.
const PIPE_PROTECTOR: &str = "3ed2dface8203c4c9dfb1a5dc58e41e0";
/// Cuts a rendering into instruction and target, and choices from each other.
pub(in super::super) const SEPARATOR: &str = "|||";

/// The columns of an example as variables, separators in their texts protected.
///
/// Like the promptsource package, only columns that are texts themselves are protected, not texts within lists.
pub(in super::super) fn context_of(example: &Map<String, Json>, scratch: &Scratch) -> Vec<(String, Value)> {
    let shared = scratch.shared();
    example
        .iter()
        .map(|(column, value)| {
            let value = match value {
                Json::String(text) if text.contains(SEPARATOR) => {
                    Value::from(text.replace(SEPARATOR, PIPE_PROTECTOR))
                }
                value => value_of(value, shared),
            };
            (column.clone(), value)
        })
        .collect()
}

/// Puts the separators back.
pub(in super::super) fn unprotect(text: &str) -> String {
    text.replace(PIPE_PROTECTOR, SEPARATOR)
}

fn value_of(json: &Json, shared: &Shared) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(x), _) => Value::from(x),
            (None, Some(x)) => Value::from(x),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => shared.list(items.iter().map(|item| value_of(item, shared)).collect()),
        Json::Object(entries) => shared.dict(
            entries
                .iter()
                .map(|(key, value)| (Value::from(key.as_str()), value_of(value, shared)))
                .collect::<Vec<_>>(),
        ),
    }
}
