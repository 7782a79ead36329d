//! `label` of a pretraining: labelled examples and generators' answers, each pair once, in an order that depends on the
//! pairs and the seed alone.
//!
//! Larger than memory: every pair gets a keyed random number, which is its place. Pairs are first spilled into buckets
//! by the number's highest bits; then bucket after bucket is read, sorted and written. Equal pairs have equal numbers,
//! so they meet in one bucket, where the one that came first stays.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Seek as _, SeekFrom, Write as _},
};

use cappy_eval::{
    keyed::Keyed,
    rouge::RougeScorer,
    rows::{GeneratedRow, JsonStyle, TrainingExample, write_json_line},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    ArtifactRef, LocalError,
    examples::{COUNTS, EXAMPLES, check_label, pair_key},
    output, rows, text_output,
};
use crate::{artifacts::ArtifactStore, store::NamedOutput};

/// Bytes of a bucket aimed at, and most buckets.
const BUCKET_BYTES: u64 = 64 * 1024 * 1024;
const MAX_BUCKETS: u64 = 256;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mix {
    /// What the examples are called, without `.jsonl`.
    pub(crate) name: String,
    /// `{"instruction","response","label"}`
    pub(crate) examples: Vec<ArtifactRef>,
    /// What the answered rows are called.
    pub(crate) prompts: String,
    /// Rows with `references` and `flan_samples`, of one generator behind the other.
    pub(crate) answered: Vec<ArtifactRef>,
    pub(crate) decodings: Vec<String>,
    pub(crate) seed: u64,
}

#[derive(Default)]
struct Counts {
    rows: u64,
    candidates: u64,
    unlabelled: u64,
    examples: u64,
    duplicates: u64,
    conflicting: u64,
}

impl Mix {
    pub(super) fn run(&self, artifacts: &ArtifactStore) -> Result<Vec<NamedOutput>, LocalError> {
        let bytes: u64 = self.examples.iter().chain(&self.answered).map(|part| part.size_bytes).sum();
        let mut buckets = Buckets::new(bytes.div_ceil(BUCKET_BYTES).clamp(1, MAX_BUCKETS), self.seed)?;
        let mut counts = Counts::default();
        let file = format!("{}.jsonl", self.name);
        for example in rows::lines::<TrainingExample>(artifacts, &file, &self.examples) {
            let example = example?;
            check_label(&file, counts.rows, example.label)?;
            buckets.spill(&example)?;
            counts.rows += 1;
        }
        let mut rouge = RougeScorer::new();
        let file = format!("{}.jsonl", self.prompts);
        for row in rows::lines::<GeneratedRow>(artifacts, &file, &self.answered) {
            let row = rows::in_order(row?, &self.decodings);
            for candidate in row.candidates() {
                let response = &candidate.sample.response;
                let Ok(label) = rouge.rouge_l(&row.row.references, response) else {
                    counts.unlabelled += 1;
                    continue;
                };
                let instruction = row.row.instruction.clone();
                buckets.spill(&TrainingExample { instruction, response: response.clone(), label })?;
                counts.candidates += 1;
            }
        }
        let mut writer = artifacts.writer()?;
        for bucket in buckets.files {
            let mut pairs = read_back(bucket, buckets.seed)?;
            // Stable: of equal pairs the first stays.
            pairs.sort_by_key(|(place, _)| *place);
            let mut last: Option<(u128, f64)> = None;
            for (place, example) in pairs {
                if let Some((same, label)) = last.filter(|(last, _)| *last == place) {
                    debug_assert_eq!(same, place);
                    counts.duplicates += 1;
                    counts.conflicting += u64::from(label.to_bits() != example.label.to_bits());
                    continue;
                }
                last = Some((place, example.label));
                counts.examples += 1;
                write_json_line(&mut writer, &example, JsonStyle::Compact).map_err(std::io::Error::from)?;
            }
        }
        if counts.examples == 0 {
            return Err(LocalError::Bad("the mixture has no pair to learn from".into()));
        }
        let mut shown = Map::new();
        for (name, count) in [
            ("rows", counts.rows),
            ("candidates", counts.candidates),
            ("unlabelled", counts.unlabelled),
            ("examples", counts.examples),
            ("duplicates", counts.duplicates),
            ("conflicting_duplicates", counts.conflicting),
        ] {
            shown.insert(name.into(), count.into());
        }
        let shown = format!("{:#}\n", Value::Object(shown));
        Ok(vec![output(writer, EXAMPLES)?, text_output(artifacts, COUNTS, &shown)?])
    }
}

/// Files without names, which the system removes whatever happens.
struct Buckets {
    files: Vec<BufWriter<File>>,
    seed: u64,
}

impl Buckets {
    fn new(count: u64, seed: u64) -> Result<Self, LocalError> {
        let files =
            (0..count).map(|_| Ok(BufWriter::new(tempfile::tempfile()?))).collect::<std::io::Result<_>>()?;
        Ok(Self { files, seed })
    }

    fn spill(&mut self, example: &TrainingExample) -> Result<(), LocalError> {
        let place = place(self.seed, example);
        let bucket = (((place >> 64) * self.files.len() as u128) >> 64) as usize;
        write_json_line(&mut self.files[bucket], example, JsonStyle::Compact)
            .map_err(std::io::Error::from)?;
        Ok(())
    }
}

/// The pair's place in the whole order: a permutation of 128-bit keys that depends on the seed.
fn place(seed: u64, example: &TrainingExample) -> u128 {
    let key = pair_key(&example.instruction, &example.response);
    let high = Keyed::new(seed ^ (key >> 64) as u64, "mixture/order").next_u64();
    (u128::from(high) << 64) | (key & u128::from(u64::MAX))
}

fn read_back(bucket: BufWriter<File>, seed: u64) -> Result<Vec<(u128, TrainingExample)>, LocalError> {
    let mut file = bucket.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.flush()?;
    file.seek(SeekFrom::Start(0))?;
    let mut pairs = Vec::new();
    for line in BufReader::with_capacity(256 * 1024, file).lines() {
        let example: TrainingExample =
            serde_json::from_str(&line?).map_err(|error| LocalError::Io(std::io::Error::other(error)))?;
        pairs.push((place(seed, &example), example));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::json;

    use super::{super::testing::Files, *};

    #[test]
    fn buckets_are_in_the_order_of_places() {
        let pairs: Vec<TrainingExample> = (0..500)
            .map(|i| TrainingExample { instruction: format!("i{i}"), response: "r".into(), label: 0.5 })
            .collect();
        let order = |count| {
            let mut buckets = Buckets::new(count, 3).unwrap();
            pairs.iter().for_each(|pair| buckets.spill(pair).unwrap());
            let mut all = Vec::new();
            for bucket in buckets.files {
                let mut pairs = read_back(bucket, 3).unwrap();
                assert!(pairs.len() < 500 || count == 1);
                pairs.sort_by_key(|(place, _)| *place);
                all.extend(pairs.into_iter().map(|(_, pair)| pair.instruction));
            }
            all
        };
        assert_eq!(order(1), order(7), "the order does not depend on how many buckets there are");
        assert_ne!(
            order(1)[..20],
            pairs.iter().map(|pair| pair.instruction.clone()).collect::<Vec<_>>()[..20]
        );
    }

    #[tokio::test]
    async fn each_pair_stands_once_in_an_order_of_its_own() {
        let files = Files::new();
        let row =
            |i: usize, label: f64| json!({"instruction": format!("i{i}"), "response": "r", "label": label});
        let mut rows: Vec<Value> = (0..50).map(|i| row(i, 1.0)).collect();
        rows.push(row(3, 1.0));
        rows.push(row(4, 0.0));
        let answered = [
            json!({"instruction": "q", "references": ["red bird"],
                   "flan_samples": {"s": [{"response": "bird"}, {"response": "red bird"}]}}),
            json!({"instruction": "i5", "references": ["r"], "flan_samples": {"s": [{"response": "r"}]}}),
            json!({"instruction": "z", "references": [], "flan_samples": {"s": [{"response": "r"}]}}),
        ];
        let (examples, answers) = (files.lines(&rows).await, files.lines(&answered).await);
        let mix = |seed| Mix {
            name: "mix".into(),
            examples: vec![examples.clone()],
            prompts: "asked".into(),
            answered: vec![answers.clone()],
            decodings: vec!["s".into()],
            seed,
        };
        let (first, again, other) = (mix(1), mix(1), mix(2));
        let made = files.run(move |store| first.run(store)).await.unwrap();
        let text = files.text(&made[0]).await;
        let lines: HashSet<&str> = text.lines().collect();
        assert_eq!((lines.len(), text.lines().count()), (52, 52));
        assert!(
            lines.contains(r#"{"instruction":"i4","response":"r","label":1.0}"#),
            "the first label stays"
        );
        assert!(
            lines.iter().any(|line| line.starts_with(r#"{"instruction":"q","response":"bird","label":0.66"#))
        );
        let counts: Value = serde_json::from_str(&files.text(&made[1]).await).unwrap();
        assert_eq!(
            counts,
            json!({"rows": 52, "candidates": 3, "unlabelled": 1, "examples": 52, "duplicates": 3,
                   "conflicting_duplicates": 1})
        );
        assert_eq!(files.run(move |store| again.run(store)).await.unwrap(), made);
        assert_ne!(files.run(move |store| other.run(store)).await.unwrap()[0].id, made[0].id);
    }
}
