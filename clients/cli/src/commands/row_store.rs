//! Rows of a job on their way to the coordinator: the good rows of an input are copied as plain JSON Lines and
//! stored; a bad one is named by its line and counted, and the others go on unless `--strict`.

use std::{collections::HashSet, path::Path};

use cappy_eval::rows::{JsonLines, JsonLinesWriter, JsonStyle, ReadError};
use cappy_proto::v1::{Artifact, RowFile};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    cluster::Cluster,
    failure::{Context as _, Failure, Outcome},
    line_input::{Fields, explain},
    printer::Printer,
    progress::Rows,
    transfer,
};

/// Bad rows of one file that are named; more are only counted.
const NAMED_BAD_ROWS: u64 = 20;

/// Stores rows, and counts the bad ones.
pub struct RowStore<'a> {
    cluster: &'a Cluster,
    printer: &'a Printer,
    strict: bool,
    bad: u64,
}

impl<'a> RowStore<'a> {
    /// Nothing stored yet. `strict`: the first bad row ends the command.
    pub fn new(cluster: &'a Cluster, printer: &'a Printer, strict: bool) -> Self {
        Self { cluster, printer, strict, bad: 0 }
    }

    /// Bad rows of all files so far.
    pub fn bad(&self) -> u64 {
        self.bad
    }

    /// Stores the rows that `check` finds good. Rows that carry an `id` must each have their own.
    ///
    /// # Errors
    /// An input that cannot be read or has no good row; with `--strict` the first bad row.
    pub async fn rows(
        &mut self,
        path: &Path,
        mut check: impl FnMut(&Fields) -> Result<(), String>,
    ) -> Outcome<RowFile> {
        let mut ids = Ids::default();
        let checked = |fields: &Fields| {
            check(fields)?;
            ids.note(fields)
        };
        let (artifact, rows) = self.file(path, checked).await?;
        Ok(RowFile { name: name_of(path), artifact: Some(artifact), rows })
    }

    /// Stores the rows of a file of `T`; returns their number, too.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub async fn file<T: DeserializeOwned + Serialize>(
        &mut self,
        path: &Path,
        mut check: impl FnMut(&T) -> Result<(), String>,
    ) -> Outcome<(Artifact, u64)> {
        let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
        let copy = scratch.path().join("rows.jsonl");
        let mut writer =
            JsonLinesWriter::create(&copy, JsonStyle::Python).context("cannot write temporary rows")?;
        let mut bad = 0;
        let mut read = Rows::new(path.display().to_string(), self.printer);
        for row in JsonLines::<T>::open(path).map_err(|error| Failure::failed(explain(&error)))? {
            read.count();
            let told = match row {
                Ok(row) => match check(&row.value) {
                    Ok(()) => {
                        writer.write(&row.value).context("cannot write temporary rows")?;
                        continue;
                    }
                    Err(reason) => format!("{}:{}: {reason}", path.display(), row.line),
                },
                Err(ReadError::Bad(line)) => line.to_string(),
                Err(error) => return Err(Failure::failed(explain(&error))),
            };
            if self.strict {
                return Err(Failure::failed(told));
            }
            bad += 1;
            if bad <= NAMED_BAD_ROWS {
                self.printer.warning(told);
            }
        }
        drop(read);
        if bad > NAMED_BAD_ROWS {
            self.printer.warning(format!("{}: {bad} bad rows in all", path.display()));
        }
        self.bad += bad;
        let rows = writer.finish().context("cannot write temporary rows")?;
        if rows == 0 {
            let left = if bad > 0 { "no good row" } else { "no rows" };
            return Err(Failure::failed(format!("`{}` has {left}", path.display())));
        }
        Ok((transfer::upload(self.cluster, &copy, &path.display().to_string(), self.printer).await?, rows))
    }
}

/// What rows call themselves. A hash of 16 bytes stands for each, whatever its length.
#[derive(Default)]
struct Ids(HashSet<[u8; 16]>);

impl Ids {
    fn note(&mut self, fields: &Fields) -> Result<(), String> {
        let Some(id) = fields.get("id").filter(|id| !id.is_null()) else { return Ok(()) };
        let hash = Sha256::digest(id.to_string());
        let known = !self.0.insert(hash[..16].try_into().expect("a hash has 32 bytes"));
        if known { Err(format!("the `id` {id} is there twice")) } else { Ok(()) }
    }
}

/// What a file is called in results and stage names: letters, digits, `_`, `-`, `.`.
pub fn name_of(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = [".gz", ".zst"].iter().find_map(|packed| file.strip_suffix(packed)).unwrap_or(&file);
    let stem = stem.strip_suffix(".jsonl").unwrap_or(stem);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let name: String = stem.chars().map(|c| if plain(c) { c } else { '-' }).collect();
    match name.trim_matches(['.', '-']) {
        "" => "rows".to_owned(),
        name => name.chars().take(100).collect(),
    }
}

/// The candidates of a row: `responses`, or `flan_samples`; at least one.
///
/// # Errors
/// What is wrong with them.
pub fn candidates(fields: &Fields) -> Result<(), String> {
    if let Some(samples) = fields.get("flan_samples") {
        let samples = samples.as_object().ok_or("`flan_samples` is not an object")?;
        let mut count = 0;
        for (decoding, list) in samples {
            let list = list.as_array().ok_or_else(|| format!("`flan_samples.{decoding}` is not a list"))?;
            if list.iter().any(|sample| !sample["response"].is_string()) {
                return Err(format!("a sample of `flan_samples.{decoding}` has no text `response`"));
            }
            count += list.len();
        }
        return if count > 0 { Ok(()) } else { Err("`flan_samples` holds no candidate".to_owned()) };
    }
    match crate::line_input::texts(fields, "responses")?.is_empty() {
        true => Err("`responses` is empty".to_owned()),
        false => Ok(()),
    }
}

/// A number in [0, 1].
///
/// # Errors
/// What it is instead.
pub fn label(fields: &Fields) -> Result<f64, String> {
    let value = fields.get("label").ok_or("there is no `label`")?;
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(label) if (0.0..=1.0).contains(&label) => Ok(label),
            _ => Err(format!("`label` is {number}, not in [0, 1]")),
        },
        // What Python writes for a number that is not finite comes here as text.
        Value::String(name) if matches!(name.as_str(), "NaN" | "Infinity" | "-Infinity") => {
            Err(format!("`label` is {name}, not in [0, 1]"))
        }
        _ => Err("`label` is not a number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_plain() {
        for (path, name) in [
            ("data/tense_train.jsonl", "tense_train"),
            ("x.jsonl.gz", "x"),
            ("my rows (1).jsonl.zst", "my-rows--1"),
            ("-", "rows"),
            ("..", "rows"),
            ("naïve.json", "na-ve.json"),
        ] {
            assert_eq!(name_of(Path::new(path)), name, "{path}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_row_is_told() {
        let fields = |value: Value| value.as_object().cloned().unwrap();
        for (row, words) in [
            (json!({}), "no `label`"),
            (json!({ "label": 1.5 }), "`label` is 1.5, not in [0, 1]"),
            (json!({ "label": -1 }), "`label` is -1"),
            (json!({ "label": "NaN" }), "`label` is NaN"),
            (json!({ "label": "good" }), "not a number"),
        ] {
            assert!(label(&fields(row.clone())).unwrap_err().contains(words), "{row}");
        }
        assert_eq!(label(&fields(json!({ "label": 1 }))), Ok(1.0));
        for (row, words) in [
            (json!({}), "no `responses`"),
            (json!({ "responses": "x" }), "not a list"),
            (json!({ "responses": [] }), "is empty"),
            (json!({ "responses": [1] }), "not a text"),
            (json!({ "flan_samples": [] }), "not an object"),
            (json!({ "flan_samples": { "beam4": [] } }), "no candidate"),
            (json!({ "flan_samples": { "beam4": [{}] } }), "`flan_samples.beam4`"),
        ] {
            assert!(candidates(&fields(row.clone())).unwrap_err().contains(words), "{row}");
        }
        assert_eq!(candidates(&fields(json!({ "flan_samples": { "beam4": [{ "response": "" }] } }))), Ok(()));

        let mut ids = Ids::default();
        for (row, good) in [
            (json!({ "id": 1 }), true),
            (json!({ "id": "1" }), true),
            (json!({ "id": null }), true),
            (json!({ "id": null }), true),
            (json!({}), true),
            (json!({ "id": 1, "instruction": "another" }), false),
        ] {
            assert_eq!(ids.note(&fields(row.clone())).is_ok(), good, "{row}");
        }
    }
}
