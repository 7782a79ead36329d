//! Classifiers against transformers (`scores.rs`) and PyTorch (`fine_tuning.rs`), whose numbers
//! `fixtures/make_encoders.py` stored, and through the conformance suite. Scores are computed on the tests' device;
//! T5 and training have only the CPU.

mod fine_tuning;
mod scores;

use std::path::PathBuf;

use candle_core::Device;
use cappy_plugin_abi::{TokenRows, builtin};
use cappy_plugin_candle::CandleBackend;
use cappy_plugin_candle::encoder::config::EncoderConfig;
use cappy_plugin_candle::weights::Checkpoint;
use cappy_plugin_suite::{Fixture, Model, fixture_dir};
use serde::Deserialize;

fn folder(name: &str) -> PathBuf {
    fixture_dir("encoders").join(name)
}

/// Where the plain form computes.
fn device() -> Device {
    match cappy_plugin_suite::device().as_str() {
        "cpu" => Device::Cpu,
        name => {
            let ordinal = name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
            Device::new_cuda(ordinal.unwrap_or_else(|| panic!("`{name}` is no `cpu` or `cuda:0`"))).unwrap()
        }
    }
}

fn open(name: &str) -> (EncoderConfig, Checkpoint) {
    let json = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
    (EncoderConfig::parse(&json).unwrap(), Checkpoint::open(&folder(name)).unwrap())
}

fn json<T: for<'a> Deserialize<'a>>(model: &str, file: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(folder(model).join(file)).unwrap()).unwrap()
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

fn ragged(rows: &[Vec<u32>], type_ids: Option<&Vec<Vec<u8>>>) -> TokenRows {
    let mut batch = TokenRows::new();
    rows.iter().for_each(|row| batch.push(row));
    batch.type_ids = type_ids.map(|types| types.concat()).unwrap_or_default();
    batch
}

fn close(got: &[f32], expected: &[f32], bound: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= bound, "{what}, element {i}: {got} not {expected}");
    }
}

fn config_json(model: &str) -> String {
    std::fs::read_to_string(folder(model).join("config.json")).unwrap()
}

/// The backend with one of its scorers.
fn with_scorer(model: &str) -> Fixture {
    Fixture::new(builtin(CandleBackend).expect("describes itself"))
        .scorer(Model::new(folder(model)))
        .generator(Model::new(fixture_dir("t5_v1_1")).on("cpu"))
        .trainer(trained("roberta"))
}

fn trained(model: &str) -> Model {
    Model { learning_rate: 2e-3, ..Model::new(folder(model)).on("cpu") }
}

cappy_plugin_suite::backend_suite!(linked, with_scorer("roberta"));
cappy_plugin_suite::backend_suite!(
    distilbert_suite,
    with_scorer("distilbert").trainer(trained("distilbert"))
);
cappy_plugin_suite::backend_suite!(modernbert_suite, with_scorer("modernbert"));
cappy_plugin_suite::backend_suite!(deberta_suite, with_scorer("deberta-v3"));
