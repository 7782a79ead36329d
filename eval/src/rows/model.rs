//! What one row holds.

use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

/// One example of a benchmark subset.
///
/// Serialises as `{"dataset", "example_idx", "instruction", "references"}` followed by whatever else the row carried.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The subset, for example `auto_categorization`.
    #[serde(default)]
    pub dataset: String,
    /// Position within the subset's split, from 0.
    #[serde(default)]
    pub example_idx: u64,
    /// What the generator is asked.
    pub instruction: String,
    /// The right answers; may be empty.
    pub references: Vec<String>,
    /// Fields that Cappy does not know, in the order in which they came.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A [`Row`] with the generator's candidates: the reference implementation's generation files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GeneratedRow {
    /// The row that was answered.
    #[serde(flatten)]
    pub row: Row,
    /// Samples by decoding name, in the order in which the decodings ran.
    pub flan_samples: IndexMap<String, Vec<Sample>>,
}

impl GeneratedRow {
    /// All candidates of the row, decoding by decoding, sample by sample: the order in which scores are given and ties
    /// are broken.
    pub fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> {
        self.flan_samples.iter().flat_map(|(decoding, samples)| {
            samples.iter().enumerate().map(move |(index, sample)| Candidate { decoding, index, sample })
        })
    }
}

/// One candidate of a row, with its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate<'a> {
    /// The decoding that made it.
    pub decoding: &'a str,
    /// Its place among the samples of that decoding, from 0.
    pub index: usize,
    /// The text and its likelihoods.
    pub sample: &'a Sample,
}

/// One generated response.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The text, special tokens removed.
    pub response: String,
    /// Sum of the token log-probabilities under the generator, in nats.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "log_likelihood_out",
        deserialize_with = "log_likelihood_in"
    )]
    pub log_likelihood_sum: Option<f64>,
    /// That sum over the number of tokens.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "log_likelihood_out",
        deserialize_with = "log_likelihood_in"
    )]
    pub log_likelihood_mean: Option<f64>,
    /// Fields that Cappy does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Sample {
    /// A response without likelihoods.
    pub fn new(response: impl Into<String>) -> Self {
        Self { response: response.into(), ..Self::default() }
    }

    /// A response with its likelihoods.
    pub fn with_log_likelihood(response: impl Into<String>, sum: f64, mean: f64) -> Self {
        Self { log_likelihood_sum: Some(sum), log_likelihood_mean: Some(mean), ..Self::new(response) }
    }
}

/// One labelled pair of the scorer's training set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingExample {
    /// What was asked.
    pub instruction: String,
    /// One answer.
    pub response: String,
    /// How right the answer is, in `[0, 1]`.
    pub label: f64,
}

/// Python writes likelihoods that are not finite as bare `NaN` and `-Infinity`; [`super::reader`] hands them on as
/// strings, and strings are what a strict JSON writer gets.
fn log_likelihood_in<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Finite(f64),
        Named(String),
    }
    match Option::<Number>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Number::Finite(x)) => Ok(Some(x)),
        Some(Number::Named(name)) => match name.as_str() {
            "NaN" => Ok(Some(f64::NAN)),
            "Infinity" => Ok(Some(f64::INFINITY)),
            "-Infinity" => Ok(Some(f64::NEG_INFINITY)),
            _ => Err(de::Error::custom(format!("`{name}` is not a log-likelihood"))),
        },
    }
}

fn log_likelihood_out<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        // Python's scripts read what float() reads, so the sign and the name must be Python's.
        Some(x) if x.is_nan() => serializer.serialize_str("NaN"),
        Some(x) if x.is_infinite() && *x > 0.0 => serializer.serialize_str("Infinity"),
        Some(x) if x.is_infinite() => serializer.serialize_str("-Infinity"),
        Some(x) => serializer.serialize_f64(*x),
        None => serializer.serialize_none(),
    }
}
