//! One `task.json`, read from front to back: prefixes are kept, examples go to the spool as they come, duplicates are
//! dropped. Neither the file nor its examples are ever in memory as a whole.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::io::{self, Read};

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::mersenne::numpy_permutation;
use super::split::SEED;
use super::spool::{Example, Place, Spool};
use crate::python_json;

/// One value of a file may take this much of it; more is an attack or an accident.
const MAX_VALUE_BYTES: u64 = 128 << 20;

/// What a `task.json` says.
#[derive(Debug, Default)]
pub(super) struct TaskFile {
    pub(super) name: Option<String>,
    pub(super) frame: Frame,
    /// `None` if the file has no `examples`.
    pub(super) examples: Option<Examples>,
}

/// The examples of one part.
#[derive(Debug, Default)]
pub(super) struct Examples {
    /// In file order, without duplicates.
    pub(super) places: Vec<Place>,
    /// Whether any example says its answer in so many words, not only by scoring choices.
    pub(super) generative: bool,
    /// Examples without an input or an answer.
    pub(super) malformed: usize,
}

/// The text around an input.
#[derive(Debug)]
pub(super) struct Frame {
    task_prefix: String,
    input_prefix: String,
    output_prefix: String,
    choice_prefix: String,
    append_choices: bool,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            task_prefix: String::new(),
            input_prefix: "\nQ: ".into(),
            output_prefix: "\nA: ".into(),
            choice_prefix: "\n  choice: ".into(),
            append_choices: true,
        }
    }
}

impl Frame {
    /// Instruction and references of an example.
    pub(super) fn apply(&self, example: &Example) -> (String, Vec<String>) {
        let mut text = [&self.task_prefix, &self.input_prefix, &example.input].map(String::as_str).concat();
        if self.append_choices {
            let mut choices: Vec<&str> = example.choices.iter().map(String::as_str).collect();
            // UTF-8 sorts as code points do, which is how Python sorts.
            choices.sort_unstable();
            for at in numpy_permutation(SEED, choices.len()) {
                text.push_str(&self.choice_prefix);
                text.push_str(choices[at]);
            }
        }
        text.push_str(&self.output_prefix);
        (python_strip(&text).to_owned(), example.targets.iter().map(|t| python_strip(t).to_owned()).collect())
    }
}

/// Reads a `task.json`.
pub(super) fn read_task(reader: impl Read, spool: &mut Spool) -> Result<TaskFile, TaskError> {
    let budget = Cell::new(MAX_VALUE_BYTES);
    let reader = io::BufReader::with_capacity(64 * 1024, Budgeted { inner: reader, budget: &budget });
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    let task =
        TaskSeed { spool: &mut *spool, budget: &budget }.deserialize(&mut deserializer).and_then(|task| {
            deserializer.end()?;
            Ok(task)
        });
    task.map_err(|error| match (spool.failure(), error.classify()) {
        (Some(failure), _) => TaskError::Spool(failure),
        (None, serde_json::error::Category::Io) => TaskError::of_source(error.into()),
        (None, _) => TaskError::Json(error),
    })
}

/// Why a `task.json` gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum TaskError {
    /// The file is not a task: the next one may be.
    #[error("not a task in JSON: {0}")]
    Json(serde_json::Error),
    /// The same, by sheer size.
    #[error("one value takes more than {} MiB", MAX_VALUE_BYTES >> 20)]
    ValueTooLarge,
    /// The source itself failed.
    #[error(transparent)]
    Source(io::Error),
    /// There is no room to set examples aside.
    #[error(transparent)]
    Spool(io::Error),
}

impl TaskError {
    fn of_source(error: io::Error) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<OverBudget>()) {
            Self::ValueTooLarge
        } else {
            Self::Source(error)
        }
    }
}

/// A reader that gives up when one value takes too many bytes.
struct Budgeted<'a, R> {
    inner: R,
    budget: &'a Cell<u64>,
}

/// Marks the error of a [`Budgeted`] reader, so that it is told from one of the disk.
#[derive(Debug, thiserror::Error)]
#[error("over budget")]
struct OverBudget;

impl<R: Read> Read for Budgeted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        match self.budget.get().checked_sub(n as u64) {
            Some(left) => self.budget.set(left),
            None => return Err(io::Error::other(OverBudget)),
        }
        Ok(n)
    }
}

struct TaskSeed<'a> {
    spool: &'a mut Spool,
    budget: &'a Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for TaskSeed<'_> {
    type Value = TaskFile;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<TaskFile, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TaskSeed<'_> {
    type Value = TaskFile;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<TaskFile, A::Error> {
        let mut task = TaskFile::default();
        let text = |value: Value, slot: &mut String| {
            if let Value::String(text) = value {
                *slot = text;
            }
        };
        while let Some(field) = fields.next_key::<String>()? {
            self.budget.set(MAX_VALUE_BYTES);
            match field.as_str() {
                "examples" => {
                    let seed = ExamplesSeed { spool: self.spool, budget: self.budget };
                    task.examples = Some(fields.next_value_seed(seed)?);
                }
                "name" => task.name = fields.next_value::<Value>()?.as_str().map(str::to_owned),
                "task_prefix" => text(fields.next_value()?, &mut task.frame.task_prefix),
                "example_input_prefix" => text(fields.next_value()?, &mut task.frame.input_prefix),
                "example_output_prefix" => text(fields.next_value()?, &mut task.frame.output_prefix),
                "choice_prefix" => text(fields.next_value()?, &mut task.frame.choice_prefix),
                "append_choices_to_input" => {
                    task.frame.append_choices = fields.next_value::<Value>()?.as_bool().unwrap_or(true);
                }
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(task)
    }
}

struct ExamplesSeed<'a> {
    spool: &'a mut Spool,
    budget: &'a Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for ExamplesSeed<'_> {
    type Value = Examples;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Examples, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ExamplesSeed<'_> {
    type Value = Examples;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`examples` to be a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Examples, A::Error> {
        let mut examples = Examples::default();
        let mut seen = HashSet::new();
        while let Some(item) = items.next_element::<Value>()? {
            self.budget.set(MAX_VALUE_BYTES);
            if !seen.insert(text_hash(&item)) {
                continue;
            }
            match example_of(item) {
                Some((example, generative)) => {
                    examples.generative |= generative;
                    let place = self.spool.push(&example);
                    examples.places.push(place.ok_or_else(|| A::Error::custom("the spool failed"))?);
                }
                None => examples.malformed += 1,
            }
        }
        Ok(examples)
    }
}

/// Stands for the exact text of Python's `json.dumps(example)`.
fn text_hash(item: &Value) -> [u8; 32] {
    struct Hashing(Sha256);
    impl io::Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut hashing = Hashing(Sha256::new());
    python_json::to_writer(io::BufWriter::new(&mut hashing), item).expect("a parsed value serialises");
    hashing.0.finalize().into()
}

/// The example, and whether its answer is given in words; `None` without an input or an answer.
fn example_of(item: Value) -> Option<(Example, bool)> {
    let Value::Object(mut fields) = item else { return None };
    let input = python_str(fields.remove("input")?)?;
    let scores = match fields.remove("target_scores") {
        Some(Value::Object(scores)) => scores,
        _ => Map::new(),
    };
    let (targets, generative) = match fields.remove("target") {
        Some(Value::Array(items)) => (items.into_iter().map(python_str).collect::<Option<_>>()?, true),
        None | Some(Value::Null) => (vec![best_choice(&scores)?.to_owned()], false),
        Some(item) => (vec![python_str(item)?], true),
    };
    let choices = scores.into_iter().map(|(choice, _)| choice).collect();
    Some((Example { input, targets, choices }, generative))
}

/// The first choice with the highest score.
fn best_choice(scores: &Map<String, Value>) -> Option<&str> {
    let mut best: Option<(&str, f64)> = None;
    for (choice, score) in scores {
        let score = score.as_f64()?;
        if best.is_none_or(|(_, highest)| score > highest) {
            best = Some((choice, score));
        }
    }
    best.map(|(choice, _)| choice)
}

/// Python's `str` of a scalar.
fn python_str(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Bool(true) => Some("True".into()),
        Value::Bool(false) => Some("False".into()),
        Value::Number(number) if number.is_f64() => number.as_f64().map(python_json::float_repr),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Python's `str.strip`: Unicode white space and the four ASCII separators.
pub(super) fn python_strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rows = Vec<(String, Vec<String>)>;

    fn rows(json: &str) -> Result<Rows, TaskError> {
        let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
        let task = read_task(json.as_bytes(), &mut spool)?;
        let places = task.examples.unwrap_or_default().places;
        Ok(places.into_iter().map(|place| task.frame.apply(&spool.get(place).unwrap())).collect())
    }

    #[test]
    fn prefixes_wrap_inputs_wherever_they_stand() {
        let json = r#"{"examples": [{"input": " a\u001c", "target": "\u00a0x\u001f"}, {"input": "b", "target": ["y", " z "]},
                       {"input": " a\u001c", "target": "\u00a0x\u001f"}, {"target": "x", "input": " a"}],
                       "task_prefix": " T", "example_output_prefix": "\n=\u3000", "n": [{}]}"#;
        assert_eq!(
            rows(json).unwrap(),
            [
                ("T\nQ:  a\u{1c}\n=".to_owned(), vec!["x".to_owned()]),
                ("T\nQ: b\n=".to_owned(), vec!["y".to_owned(), "z".to_owned()]),
                ("T\nQ:  a\n=".to_owned(), vec!["x".to_owned()]),
            ]
        );
    }

    #[test]
    fn choices_come_sorted_and_permuted() {
        let json =
            r#"{"examples": [{"input": "i", "target_scores": {"e": 0, "b": 1, "a": 1, "d": 0, "c": 0}}]}"#;
        // numpy's permutation of five is 1 4 2 0 3.
        let expected = "Q: i\n  choice: b\n  choice: e\n  choice: c\n  choice: a\n  choice: d\nA:";
        assert_eq!(rows(json).unwrap(), [(expected.to_owned(), vec!["b".to_owned()])]);
        let without = json.replacen('{', r#"{"append_choices_to_input": false, "#, 1);
        assert_eq!(rows(&without).unwrap()[0].0, "Q: i\nA:");
    }

    #[test]
    fn what_is_no_task_is_said_to_be_none() {
        for (json, complaint) in [
            ("", "EOF"),
            ("[1]", "expected an object"),
            (r#"{"examples": 3}"#, "expected `examples` to be a list"),
            (r#"{"examples": [{"input": "a""#, "EOF"),
            (r#"{"examples": []} x"#, "trailing characters"),
        ] {
            let error = rows(json).unwrap_err().to_string();
            assert!(error.starts_with("not a task in JSON") && error.contains(complaint), "{json}: {error}");
        }
        let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
        let odd = br#"{"examples": [{"input": "a"}, {"target": "b"}, 7, {"input": "a", "target": [{}]}]}"#;
        let examples = read_task(&odd[..], &mut spool).unwrap().examples.unwrap();
        assert_eq!((examples.places.len(), examples.malformed), (0, 4));
    }

    #[test]
    fn a_value_without_end_is_given_up() {
        let endless = br#"{"examples": [{"input": ""#.chain(io::repeat(b'x'));
        let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
        assert!(matches!(read_task(endless, &mut spool), Err(TaskError::ValueTooLarge)));
    }
}
