//! Input rows: JSONL over several files, read as one list, each row named by its index when it is wrong.
//!
//! `reader.rs` reads them in order or by their places, `index.rs` remembers where they start, here is what they say.

mod index;
mod reader;

use serde_json::{Map, Value};

use super::ExecutionError;

pub use index::RowIndex;
pub use reader::{Place, RowFiles, RowReader};

/// One JSON object.
pub type Row = Map<String, Value>;

/// A wrong row: the shard fails everywhere.
pub fn bad_row(index: u64, reason: impl std::fmt::Display) -> ExecutionError {
    ExecutionError::permanent("invalid_argument", format!("row {index} of the input (from 0): {reason}"))
}

/// A line as a JSON object.
///
/// # Errors
/// Names the row.
pub fn parse(index: u64, line: &[u8]) -> Result<Row, ExecutionError> {
    match serde_json::from_slice::<Value>(line) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(_) => Err(bad_row(index, "not a JSON object")),
        Err(error) => Err(bad_row(index, format!("not JSON: {}", without_line(&error)))),
    }
}

/// serde_json counts lines within the row, which would be read as the file's.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    format!("{reason} at byte {}", error.column())
}

/// A field that must be text.
///
/// # Errors
/// Names row and field.
pub fn text<'a>(index: u64, row: &'a Row, field: &str) -> Result<&'a str, ExecutionError> {
    match row.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(bad_row(index, format!("`{field}` is not text"))),
        None => Err(bad_row(index, format!("`{field}` is missing"))),
    }
}

/// The candidates of a row: `responses`, a single `response`, or `flan_samples` flattened in the order of `decodings`
/// (none named: in the row's own order).
///
/// # Errors
/// Names the row, and what is missing.
pub fn responses(index: u64, row: &Row, decodings: &[String]) -> Result<Vec<String>, ExecutionError> {
    if let Some(samples) = row.get("flan_samples") {
        let Value::Object(samples) = samples else {
            return Err(bad_row(index, "`flan_samples` is not an object"));
        };
        let named: Vec<&String> =
            if decodings.is_empty() { samples.keys().collect() } else { decodings.iter().collect() };
        let mut all = Vec::new();
        for name in named {
            let list = match samples.get(name) {
                Some(Value::Array(list)) => list,
                Some(_) => return Err(bad_row(index, format!("`flan_samples.{name}` is not a list"))),
                None => return Err(bad_row(index, format!("`flan_samples` lacks the decoding `{name}`"))),
            };
            for sample in list {
                let Some(response) = sample.get("response").and_then(Value::as_str) else {
                    return Err(bad_row(index, format!("a sample of `{name}` has no text `response`")));
                };
                all.push(response.to_owned());
            }
        }
        return Ok(all);
    }
    match row.get("responses") {
        Some(Value::Array(list)) => list
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| bad_row(index, "`responses` holds something that is not text")),
        Some(_) => Err(bad_row(index, "`responses` is not a list")),
        None if row.contains_key("response") => Ok(vec![text(index, row, "response")?.to_owned()]),
        None => Err(bad_row(index, "neither `responses` nor `flan_samples` is there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_row_is_named() {
        for (line, words) in [
            (r#"{"instruction": "a""#, "row 7 of the input (from 0): not JSON: EOF"),
            ("[1]", "not a JSON object"),
            (r#"{"responses": "x"}"#, "`responses` is not a list"),
            (r#"{"responses": [1]}"#, "not text"),
            (r#"{"flan_samples": {"sampling": []}}"#, "lacks the decoding `beam4`"),
            (r#"{"flan_samples": {"beam4": [{"text": "x"}]}}"#, "a sample of `beam4`"),
            ("{}", "neither `responses` nor `flan_samples`"),
        ] {
            let error = parse(7, line.as_bytes())
                .and_then(|row| responses(7, &row, &["beam4".to_owned()]))
                .unwrap_err();
            assert!(error.message.contains(words), "{line}: {error}");
            assert_eq!(error.class, super::super::FailureClass::Permanent);
        }
        let invalid = parse(0, b"{\"instruction\": \"\xff\"}").unwrap_err();
        assert!(invalid.message.contains("row 0"), "{invalid}");
    }

    #[test]
    fn candidates_come_in_the_order_of_the_decodings() {
        let line =
            br#"{"flan_samples": {"b": [{"response": "3"}], "a": [{"response": "1"}, {"response": ""}]}}"#;
        let row = parse(0, line).unwrap();
        assert_eq!(responses(0, &row, &["a".into(), "b".into()]).unwrap(), ["1", "", "3"]);
        assert_eq!(responses(0, &row, &[]).unwrap(), ["3", "1", ""]);
    }
}
