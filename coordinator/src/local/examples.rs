//! `label`: labelled pairs from own rows, which bring labels or references.

use std::collections::HashMap;

use cappy_eval::{
    rows::{GeneratedRow, JsonStyle, Row, Sample, TrainingExample, write_json_line},
    training_set,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{ArtifactRef, LocalError, output, rows, text_output};
use crate::{artifacts::ArtifactStore, store::NamedOutput};

/// Pairs that are remembered to find those that stand twice; beyond, memory would grow with the file.
const REMEMBERED_PAIRS: usize = 4_000_000;
/// Repeated pairs that are named.
const NAMED: usize = 20;
/// Name of the pairs' file.
pub(super) const EXAMPLES: &str = "examples.jsonl";
/// Name of the counts' file.
pub(super) const COUNTS: &str = "counts.json";

/// What the rows bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Form {
    /// `{"instruction","response","label"}`
    Labelled,
    /// `{"instruction","references"}` and candidates in `flan_samples` or `responses`, or none.
    References,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Examples {
    /// What the rows are called, without `.jsonl`.
    pub(crate) name: String,
    pub(crate) form: Form,
    pub(crate) rows: Vec<ArtifactRef>,
    /// Which candidates of `flan_samples`, in which order; none: all.
    pub(crate) decodings: Vec<String>,
    pub(crate) seed: u64,
}

impl Examples {
    pub(super) fn run(&self, artifacts: &ArtifactStore) -> Result<Vec<NamedOutput>, LocalError> {
        let file = format!("{}.jsonl", self.name);
        match self.form {
            Form::Labelled => self.labelled(artifacts, &file),
            Form::References => self.measured(artifacts, &file),
        }
    }

    /// The rows as they are, in their order: whoever gives a pair twice weighs it twice. They stream through.
    fn labelled(&self, artifacts: &ArtifactStore, file: &str) -> Result<Vec<NamedOutput>, LocalError> {
        let mut writer = artifacts.writer()?;
        let mut seen = Seen::default();
        let mut count = 0_u64;
        for example in rows::lines::<TrainingExample>(artifacts, file, &self.rows) {
            let example = example?;
            check_label(file, count, example.label)?;
            seen.look(count, &example);
            write_json_line(&mut writer, &example, JsonStyle::Compact).map_err(std::io::Error::from)?;
            count += 1;
        }
        if count == 0 {
            return Err(LocalError::Bad(format!("{file} has no rows to learn from")));
        }
        let mut counts = Map::new();
        counts.insert("rows".into(), count.into());
        counts.insert("examples".into(), count.into());
        counts.insert("duplicates".into(), seen.duplicates.into());
        counts.insert("conflicting_duplicates".into(), seen.conflicting.into());
        counts.insert("named_duplicates".into(), seen.named.into());
        finish(artifacts, writer, counts)
    }

    /// Labels as the method makes them.
    fn measured(&self, artifacts: &ArtifactStore, file: &str) -> Result<Vec<NamedOutput>, LocalError> {
        let mut rows = Vec::new();
        for row in rows::lines::<ReferenceRow>(artifacts, file, &self.rows) {
            rows.push(rows::in_order(row?.into(), &self.decodings));
        }
        let set = training_set::build(&rows, self.seed)
            .map_err(|error| LocalError::Bad(format!("{file}: {error}")))?;
        let count = rows.len() as u64;
        drop(rows);
        let mut writer = artifacts.writer()?;
        for example in &set.examples {
            write_json_line(&mut writer, example, JsonStyle::Compact).map_err(std::io::Error::from)?;
        }
        let mut counts = Map::new();
        counts.insert("rows".into(), count.into());
        counts.insert("examples".into(), set.examples.len().into());
        counts.insert("references".into(), set.references.into());
        counts.insert("mismatched".into(), set.mismatched.into());
        counts.insert("candidates".into(), set.candidates.into());
        counts.insert("unlabelled".into(), set.unlabelled.into());
        finish(artifacts, writer, counts)
    }
}

fn finish(
    artifacts: &ArtifactStore,
    writer: crate::artifacts::ArtifactWriter,
    counts: Map<String, Value>,
) -> Result<Vec<NamedOutput>, LocalError> {
    let counts = format!("{:#}\n", Value::Object(counts));
    Ok(vec![output(writer, EXAMPLES)?, text_output(artifacts, COUNTS, &counts)?])
}

/// Refuses a label out of `[0, 1]`; one that is not a number is out of it too.
pub(super) fn check_label(file: &str, row: u64, label: f64) -> Result<(), LocalError> {
    if (0.0..=1.0).contains(&label) {
        return Ok(());
    }
    Err(LocalError::Bad(format!("{file}: row {row} (from 0): label {label} is not between 0 and 1")))
}

/// Pairs met before, by hash.
#[derive(Default)]
struct Seen {
    /// Row and label of the first.
    pairs: HashMap<u128, (u64, f64)>,
    duplicates: u64,
    /// Those with another label than the first.
    conflicting: u64,
    named: Vec<String>,
}

impl Seen {
    fn look(&mut self, row: u64, example: &TrainingExample) {
        let key = pair_key(&example.instruction, &example.response);
        if let Some((first, label)) = self.pairs.get(&key) {
            let same = label.to_bits() == example.label.to_bits();
            self.duplicates += 1;
            self.conflicting += u64::from(!same);
            if self.named.len() < NAMED {
                let as_before = if same { "" } else { ", with another label" };
                self.named.push(format!("row {row} repeats row {first}{as_before}"));
            }
        } else if self.pairs.len() < REMEMBERED_PAIRS {
            self.pairs.insert(key, (row, example.label));
        }
    }
}

/// Equal for equal pairs, and for others never in practice.
pub(super) fn pair_key(instruction: &str, response: &str) -> u128 {
    let mut hash = Sha256::new();
    hash.update((instruction.len() as u64).to_be_bytes());
    hash.update(instruction);
    hash.update(response);
    let digest = hash.finalize();
    u128::from_be_bytes(digest[..16].try_into().expect("a digest has 32 bytes"))
}

/// A row with references, whose candidates may be plain `responses`.
#[derive(Deserialize)]
struct ReferenceRow {
    #[serde(flatten)]
    row: Row,
}

impl From<ReferenceRow> for GeneratedRow {
    fn from(ReferenceRow { mut row }: ReferenceRow) -> Self {
        let samples =
            row.extra.remove("flan_samples").and_then(|samples| serde_json::from_value(samples).ok());
        let flan_samples = samples.unwrap_or_else(|| {
            let responses = row.extra.remove("responses");
            let list = responses.iter().filter_map(Value::as_array).flatten();
            let samples: Vec<Sample> = list.filter_map(Value::as_str).map(Sample::new).collect();
            [("responses".to_owned(), samples)].into_iter().collect()
        });
        Self { row, flan_samples }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::testing::Files, *};

    fn task(form: Form, rows: Vec<ArtifactRef>) -> Examples {
        Examples { name: "mine".into(), form, rows, decodings: vec![], seed: 1 }
    }

    #[tokio::test]
    async fn labelled_rows_keep_their_order_and_repetitions_are_named() {
        let files = Files::new();
        let row =
            |response: &str, label: f64| json!({"instruction": "i", "response": response, "label": label});
        let rows = [row("a", 0.5), row("b", 1.0), row("a", 0.5), row("b", 0.0)];
        let task = task(Form::Labelled, vec![files.lines(&rows).await]);
        let made = files.run(move |store| task.run(store)).await.unwrap();
        let written = files.text(&made[0]).await;
        assert_eq!(written.lines().nth(3).unwrap(), r#"{"instruction":"i","response":"b","label":0.0}"#);
        let counts: Value = serde_json::from_str(&files.text(&made[1]).await).unwrap();
        assert_eq!(
            counts,
            json!({"rows": 4, "examples": 4, "duplicates": 2, "conflicting_duplicates": 1,
                   "named_duplicates": ["row 2 repeats row 0", "row 3 repeats row 1, with another label"]})
        );
    }

    #[tokio::test]
    async fn bad_labels_are_named_by_row() {
        let files = Files::new();
        for label in ["1.5", "-0.1", "NaN", "Infinity", "\"high\"", "null"] {
            let text = format!(
                "{{\"instruction\":\"i\",\"response\":\"r\",\"label\":0}}\n\
                 {{\"instruction\":\"i\",\"response\":\"r\",\"label\":{label}}}\n"
            );
            let task = task(Form::Labelled, vec![files.store(text.as_bytes()).await]);
            let error = files.run(move |store| task.run(store)).await.unwrap_err().to_string();
            assert!(
                error.contains("mine.jsonl") && (error.contains("row 1") || error.contains(":2:")),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn references_with_plain_responses_are_measured() {
        let files = Files::new();
        let rows = [
            json!({"instruction": "a", "references": ["red bird"], "responses": ["a bird", "red bird"]}),
            json!({"instruction": "b", "references": ["fish"]}),
            json!({"instruction": "c", "references": ["fish"], "flan_samples": {"s": [{"response": "a fish"}]}}),
        ];
        let task = task(Form::References, vec![files.lines(&rows).await]);
        let made = files.run(move |store| task.run(store)).await.unwrap();
        let counts: Value = serde_json::from_str(&files.text(&made[1]).await).unwrap();
        assert_eq!((&counts["references"], &counts["candidates"]), (&json!(3), &json!(2)));
        let written = files.text(&made[0]).await;
        assert!(written.contains(r#"{"instruction":"a","response":"a bird","label":0.5}"#), "{written}");
    }
}
