//! The smallest backend that is complete: copy it to write your own.
//!
//! A backend is a type with the four methods of [`Backend`] and one `export_backend!` line; everything else is
//! numbers. One request: the host reads [`Echo::describe`](Backend::describe), picks this backend for a model whose
//! `config.json` says `"model_type": "echo"`, and calls [`Echo::load_scorer`](Backend::load_scorer). `config.rs`
//! refuses what this backend cannot do, `weights.rs` reads `model.safetensors`, and `scorer.rs`, `generator.rs` or
//! `trainer.rs` does the work:
//!
//! - the **scorer** gives a row `bias + mean(ids) / vocab_size`;
//! - the **generator** repeats its source, then ends;
//! - the **trainer** fits the bias, by AdamW.
//!
//! What a backend need not do, because the host's side of the border did it before the call: check offsets, ids, row
//! lengths, labels and decodings, know which encodings exist, look for NaN in its results, catch its panics.
//!
//! What it must do: poll [`Control`](cappy_plugin_abi::Control), give a row the same result in every batch, refuse
//! with the right [`Code`](cappy_plugin_abi::Code). `tests/conformance.rs` shows how the suite checks that.

mod config;
mod generator;
mod scorer;
mod trainer;
mod weights;

use std::path::Path;

use cappy_plugin_abi::{
    Backend, Descriptor, Failure, Generator, Group, LoadRequest, ModelOptions, Scorer, Trainer,
    TrainerOptions,
};

use config::Config;

cappy_plugin_abi::export_backend!(Echo);

/// The backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Backend for Echo {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: "echo".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            engine_version: concat!("echo ", env!("CARGO_PKG_VERSION")).into(),
            devices: vec![config::DEVICE.into()],
            device_memory: Vec::new(),
            dtypes: vec![config::DTYPE.into()],
            scorer_architectures: vec![config::ARCHITECTURE.into()],
            generator_architectures: vec![config::ARCHITECTURE.into()],
            features: vec!["training".into()],
        }
    }

    fn load_scorer(&self, request: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
        let config = Config::of(request)?;
        let options: ModelOptions = config::options(request)?;
        Group::refuse(options.group.as_ref(), config::ARCHITECTURE)?;
        Ok(Box::new(scorer::EchoScorer { config, bias: weights::load(Path::new(&request.model_dir))? }))
    }

    fn load_generator(&self, request: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
        let config = Config::of(request)?;
        let options: ModelOptions = config::options(request)?;
        Group::refuse(options.group.as_ref(), config::ARCHITECTURE)?;
        // The bias has no use here, but a directory without weights is a mistake that wants to be told.
        weights::load(Path::new(&request.model_dir))?;
        Ok(Box::new(generator::EchoGenerator::new(config)))
    }

    fn load_trainer(&self, request: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
        let config = Config::of(request)?;
        let options: TrainerOptions = config::options(request)?;
        Group::refuse(options.group.as_ref(), config::ARCHITECTURE)?;
        let bias = weights::load(Path::new(&request.model_dir))?;
        Ok(Box::new(trainer::EchoTrainer::new(config, options, bias)))
    }
}

/// Makes a model: `config.json` and `model.safetensors` in `dir`, which exists.
///
/// # Errors
/// `InvalidArgument` when a file cannot be written.
pub fn write_model(dir: &Path, vocab_size: u32, max_tokens: u32, bias: f32) -> Result<(), Failure> {
    let config = Config { model_type: config::ARCHITECTURE.into(), vocab_size, max_tokens };
    let json = serde_json::to_vec(&config).map_err(|error| Failure::internal(error.to_string()))?;
    weights::write(&dir.join("config.json"), &json)?;
    weights::save(dir, bias)
}
