//! T5 as a generator: against stored outputs of transformers (`parity.rs`; the candle backend's fixtures), against the
//! candle backend itself (`agreement.rs`), and what holds whatever the numbers are (`contract.rs`).

mod agreement;
mod contract;
mod parity;

use super::{T5, load};
use cappy_plugin_abi::{
    Decoding, EncodingId, Failure, Generated, Generator, LoadRequest, Method, MinLengthRule, TokenRows,
    Unattended,
};
use serde::Deserialize;
use std::path::PathBuf;
use tch::{Device, Kind};

const MODELS: [&str; 2] = ["t5_v1_0", "t5_v1_1"];

#[derive(Deserialize)]
struct Expected {
    sources: Vec<Vec<u32>>,
    targets: Vec<Target>,
    beams: Vec<Beams>,
    greedy: Beams,
}

#[derive(Deserialize)]
struct Target {
    row: u32,
    tokens: Vec<u32>,
    log_probs: Vec<f64>,
}

#[derive(Deserialize)]
struct Beams {
    settings: Settings,
    tokens: Vec<Vec<u32>>,
    log_probs: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Settings {
    num_beams: u32,
    min_length: u32,
    max_length: u32,
    #[serde(default = "one")]
    length_penalty: f64,
    #[serde(default)]
    early_stopping: bool,
    num_return_sequences: Option<u32>,
}

fn one() -> f64 {
    1.0
}

fn folder(model: &str) -> PathBuf {
    cappy_plugin_suite::fixture_dir(model)
}

fn expected(model: &str) -> Expected {
    let text = std::fs::read_to_string(folder(model).join("expected.json")).expect("fixture");
    serde_json::from_str(&text).expect("fixture")
}

fn request(model: &str) -> LoadRequest {
    // These models are tiny and tests run side by side: threads of libtorch's own would only wait for a core.
    tch::set_num_threads(1);
    LoadRequest {
        model_dir: folder(model).to_str().expect("utf-8 path").into(),
        config_json: std::fs::read_to_string(folder(model).join("config.json")).expect("fixture"),
        device: cappy_plugin_suite::device(),
        dtype: "auto".into(),
        options_json: "{}".into(),
    }
}

fn device() -> Device {
    crate::device::device(&cappy_plugin_suite::device()).expect("the tests' device")
}

fn open_as(request: &LoadRequest, kind: Kind) -> Result<T5, Failure> {
    T5::open(request, device(), kind, None)
}

fn open(model: &str) -> T5 {
    open_as(&request(model), Kind::Float).expect("model")
}

fn rows<'a>(rows: impl IntoIterator<Item = &'a Vec<u32>>) -> TokenRows {
    let mut made = TokenRows::new();
    for row in rows {
        made.push(row);
    }
    made
}

fn encoded(model: &str, sources: &[Vec<u32>]) -> (Box<dyn Generator>, EncodingId) {
    let mut generator = load(&request(model), device(), Kind::Float, None).expect("model");
    let id = generator.encode(rows(sources).view(), &Unattended).expect("encode");
    (generator, id)
}

fn sequences(generated: &Generated) -> Vec<&[u32]> {
    generated.offsets.windows(2).map(|w| &generated.tokens[w[0] as usize..w[1] as usize]).collect()
}

fn beam(settings: &Settings) -> Decoding {
    Decoding {
        key: 0,
        method: Method::Beam {
            num_beams: settings.num_beams,
            length_penalty: settings.length_penalty,
            early_stopping: settings.early_stopping,
        },
        num_samples: settings.num_return_sequences.unwrap_or(1),
        min_length: settings.min_length,
        max_length: settings.max_length,
        min_length_rule: MinLengthRule::Pytorch,
    }
}

fn sampling(key: u64, temperature: f64, top_k: u32, top_p: f64, max_length: u32) -> Decoding {
    Decoding {
        key,
        method: Method::Sample { temperature, top_k, top_p },
        num_samples: 4,
        min_length: 3,
        max_length,
        min_length_rule: MinLengthRule::Pytorch,
    }
}

/// The seed's five decodings: 17 outputs a row.
fn five() -> Vec<Decoding> {
    let settings = Settings {
        num_beams: 4,
        min_length: 3,
        max_length: 64,
        length_penalty: 1.0,
        early_stopping: false,
        num_return_sequences: None,
    };
    vec![
        beam(&settings),
        sampling(1, 1.0, 50, 1.0, 64),
        sampling(2, 0.9, 50, 1.0, 64),
        sampling(3, 1.0, 40, 1.0, 64),
        sampling(4, 1.0, 50, 0.95, 64),
    ]
}
