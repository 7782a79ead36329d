//! The stored numbers, as `fixtures/make_encoders.py` and `fixtures/make_t5.py` wrote them.

use std::collections::BTreeMap;

use cappy_plugin_abi::{Decoding, LoadRequest, Method, MinLengthRule, TokenRows};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{batch_of, fixture_dir};

/// Classifiers, one a family and form.
pub const CLASSIFIERS: [&str; 8] = [
    "roberta",
    "xlm-roberta",
    "bert",
    "distilbert",
    "modernbert",
    "modernbert-mean",
    "deberta-v3",
    "deberta-v2",
];

/// T5 with one feed-forward matrix and tied logits, and with a gated one, untied and in two files.
pub const T5S: [&str; 2] = ["t5_v1_0", "t5_v1_1"];

/// Where a fixture lies, below the folder of all.
pub(super) fn folder(model: &str) -> String {
    if T5S.contains(&model) { model.into() } else { format!("encoders/{model}") }
}

fn read<T: DeserializeOwned>(model: &str, file: &str) -> T {
    let path = fixture_dir(&folder(model)).join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Rows and their logits.
#[derive(Deserialize)]
pub struct Batch {
    /// Token ids.
    pub rows: Vec<Vec<u32>>,
    /// As long as the rows, for families that have them.
    pub type_ids: Option<Vec<Vec<u8>>>,
    /// `[rows][labels]`.
    pub logits: Vec<Vec<f32>>,
}

impl Batch {
    /// All rows.
    pub fn batch(&self) -> TokenRows {
        self.of(&(0..self.rows.len()).collect::<Vec<_>>())
    }

    /// Some rows, any of them as often as wanted.
    pub fn of(&self, rows: &[usize]) -> TokenRows {
        let mut batch = batch_of(rows.iter().map(|&row| &self.rows[row]));
        if let Some(types) = &self.type_ids {
            batch.type_ids = rows.iter().flat_map(|&row| &types[row]).copied().collect();
        }
        batch
    }
}

/// Batches of a classifier, the fourth with all kinds of rows.
///
/// # Panics
/// When they are not there.
pub fn scores(model: &str) -> Vec<Batch> {
    #[derive(Deserialize)]
    struct Scores {
        batches: Vec<Batch>,
    }
    read::<Scores>(model, "scores.json").batches
}

/// The classifier of `request` with one of its `of` labels, as the worker's hub describes it.
///
/// # Panics
/// When its configuration is no JSON.
pub fn one_label(request: &LoadRequest, index: usize, of: usize) -> LoadRequest {
    let mut config: serde_json::Value = serde_json::from_str(&request.config_json).expect("valid JSON");
    config["id2label"] = serde_json::json!({"0": "entailment"});
    config["ranking_label"] = serde_json::json!({"name": "entailment", "index": index, "of": of});
    LoadRequest { config_json: config.to_string(), ..request.clone() }
}

/// A training run of PyTorch's: AdamW, without dropout.
#[derive(Deserialize)]
pub struct Training {
    /// In their order.
    pub micro_batches: Vec<MicroBatch>,
    /// How many make an update.
    pub accumulate: usize,
    /// Of each update.
    pub learning_rates: Vec<f64>,
    /// Mean loss of each update.
    pub losses: Vec<f64>,
    /// Of each update.
    pub gradient_norms: Vec<f64>,
    /// Of the first micro-batch's rows, after all.
    pub final_scores: Vec<f32>,
    /// The first elements of every parameter.
    pub final_weights: BTreeMap<String, Vec<f32>>,
}

/// Rows that are given together.
#[derive(Deserialize)]
pub struct MicroBatch {
    /// Token ids.
    pub rows: Vec<Vec<u32>>,
    /// One a row.
    pub labels: Vec<f32>,
}

impl MicroBatch {
    /// All rows.
    pub fn batch(&self) -> TokenRows {
        batch_of(&self.rows)
    }
}

/// Of `roberta` or `distilbert`.
///
/// # Panics
/// When it is not there.
pub fn training(model: &str) -> Training {
    read(model, "training.json")
}

/// What a T5 was asked, and said.
#[derive(Deserialize)]
pub struct Generation {
    /// Rows of the encoder.
    pub sources: Vec<Vec<u32>>,
    /// Buckets of the distances -300 to 300, bidirectional (encoder).
    pub bucket_bi: Vec<usize>,
    /// The same, unidirectional (decoder).
    pub bucket_uni: Vec<usize>,
    /// With likelihoods.
    pub targets: Vec<Target>,
    /// Of all sources, with several settings.
    pub beams: Vec<Beams>,
    /// With one beam.
    pub greedy: Beams,
    /// Distributions that samples are drawn from.
    pub warped: Vec<Warped>,
}

impl Generation {
    /// All targets, and the rows they belong to.
    pub fn target_rows(&self) -> (TokenRows, Vec<u32>) {
        (batch_of(self.targets.iter().map(|it| &it.tokens)), self.targets.iter().map(|it| it.row).collect())
    }

    /// Keys of the sources' rows.
    pub fn keys(&self) -> Vec<u64> {
        (0..self.sources.len() as u64).map(|row| row * 7 + 1).collect()
    }
}

/// A target of one source.
#[derive(Deserialize)]
pub struct Target {
    /// Which source.
    pub row: u32,
    /// Without the start token.
    pub tokens: Vec<u32>,
    /// One a token.
    pub log_probs: Vec<f64>,
    /// `[vocabulary]`, at the last token's place.
    pub last_logits: Vec<f64>,
}

/// What beam search gave.
#[derive(Deserialize)]
pub struct Beams {
    /// How it was asked.
    pub settings: Settings,
    /// Of every output: source by source, best first.
    pub tokens: Vec<Vec<u32>>,
    /// One a token.
    pub log_probs: Vec<Vec<f64>>,
}

/// transformers' generation settings.
#[derive(Deserialize)]
pub struct Settings {
    /// 1: greedy.
    pub num_beams: u32,
    /// In tokens, with the start token.
    pub min_length: u32,
    /// In tokens, with the start token.
    pub max_length: u32,
    /// Exponent of the length.
    #[serde(default = "one")]
    pub length_penalty: f64,
    /// Ends with the first `num_beams` finished.
    #[serde(default)]
    pub early_stopping: bool,
    /// Outputs a source; 1 when it is not set.
    pub num_return_sequences: Option<u32>,
}

fn one() -> f64 {
    1.0
}

impl Settings {
    /// The same as a backend is asked.
    pub fn decoding(&self) -> Decoding {
        Decoding {
            key: 0,
            method: Method::Beam {
                num_beams: self.num_beams,
                length_penalty: self.length_penalty,
                early_stopping: self.early_stopping,
            },
            num_samples: self.num_return_sequences.unwrap_or(1),
            min_length: self.min_length,
            max_length: self.max_length,
            min_length_rule: MinLengthRule::Pytorch,
        }
    }
}

/// One step's distribution, before and after warping.
#[derive(Deserialize)]
pub struct Warped {
    /// Above 0.
    pub temperature: f64,
    /// 0: all.
    pub top_k: usize,
    /// 1: all.
    pub top_p: f64,
    /// A token that may not come.
    pub forbidden: u32,
    /// `[vocabulary]`.
    pub logits: Vec<f32>,
    /// What is left, in the vocabulary's order.
    pub tokens: Vec<u32>,
    /// Of those.
    pub probs: Vec<f64>,
}

/// Of one of [`T5S`].
///
/// # Panics
/// When it is not there.
pub fn generation(model: &str) -> Generation {
    read(model, "expected.json")
}
