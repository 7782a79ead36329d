//! Classifiers against transformers (`scores.rs`) and PyTorch (`fine_tuning.rs`), whose numbers are stored beside the
//! candle backend.

mod agreement;
mod fine_tuning;
mod scores;

use std::path::PathBuf;

use cappy_plugin_abi::{LoadRequest, TokenRows};
use serde::Deserialize;

fn folder(name: &str) -> PathBuf {
    cappy_plugin_suite::fixture_dir("encoders").join(name)
}

fn json<T: for<'a> Deserialize<'a>>(model: &str, file: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(folder(model).join(file)).unwrap()).unwrap()
}

fn request(model: &str) -> LoadRequest {
    // These models are tiny and tests run side by side: threads of libtorch's own would only wait for a core.
    tch::set_num_threads(1);
    LoadRequest {
        model_dir: folder(model).to_str().unwrap().into(),
        config_json: std::fs::read_to_string(folder(model).join("config.json")).unwrap(),
        device: cappy_plugin_suite::device(),
        dtype: "f32".into(),
        options_json: String::new(),
    }
}

/// The same for the candle backend.
fn on_the_cpu(request: &LoadRequest) -> LoadRequest {
    LoadRequest { device: "cpu".into(), ..request.clone() }
}

#[derive(Deserialize)]
struct Scores {
    batches: Vec<Batch>,
}

#[derive(Deserialize)]
struct Batch {
    rows: Vec<Vec<u32>>,
    type_ids: Option<Vec<Vec<u8>>>,
    logits: Vec<Vec<f32>>,
}

impl Batch {
    fn rows(&self) -> TokenRows {
        ragged(&self.rows, self.type_ids.as_deref())
    }
}

/// What PyTorch found.
#[derive(Deserialize)]
struct Training {
    micro_batches: Vec<MicroBatch>,
    accumulate: usize,
    learning_rates: Vec<f64>,
    losses: Vec<f64>,
    gradient_norms: Vec<f64>,
    final_scores: Vec<f32>,
    final_weights: std::collections::BTreeMap<String, Vec<f32>>,
}

#[derive(Deserialize)]
struct MicroBatch {
    rows: Vec<Vec<u32>>,
    labels: Vec<f32>,
}

fn ragged(rows: &[Vec<u32>], type_ids: Option<&[Vec<u8>]>) -> TokenRows {
    let mut batch = TokenRows::new();
    rows.iter().for_each(|row| batch.push(row));
    batch.type_ids = type_ids.map(<[_]>::concat).unwrap_or_default();
    batch
}

#[track_caller]
fn close(got: &[f32], expected: &[f32], bound: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= bound, "{what}, element {i}: {got} not {expected}");
    }
}
