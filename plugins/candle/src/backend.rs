//! What this library says about itself, and which loader takes a request.

use std::path::Path;

use candle_core::Device;
use cappy_plugin_abi::{
    Backend, Descriptor, Failure, GPU_SCORING_ONLY, Generator, Group, LoadRequest, ModelOptions, Scorer,
    Trainer, TrainerOptions,
};
use serde::de::DeserializeOwned;

use crate::encoder::config::EncoderConfig;
use crate::encoder::family::{Family, Identity};
use crate::encoder::scorer::EncoderScorer;
use crate::place::{self, Place};
use crate::t5;
use crate::trainer::EncoderTrainer;
use crate::weights::Checkpoint;

const NAME: &str = "candle";
const FEATURES: &[&str] =
    if cfg!(feature = "cuda") { &["training", GPU_SCORING_ONLY] } else { &["training"] };

/// The backend; it has no state of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct CandleBackend;

impl Backend for CandleBackend {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: NAME.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            engine_version: "candle 0.11.1".into(),
            devices: place::devices(),
            device_memory: place::memory(),
            dtypes: place::dtypes(),
            scorer_architectures: Family::ALL.iter().map(|family| family.model_type().into()).collect(),
            generator_architectures: vec![t5::ARCHITECTURE.into()],
            features: FEATURES.iter().map(|&feature| feature.into()).collect(),
        }
    }

    fn load_scorer(&self, request: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
        let place = Place::named(&request.device, &request.dtype)?;
        alone(request)?;
        let checkpoint = Checkpoint::open(Path::new(&request.model_dir))?;
        Ok(Box::new(EncoderScorer::load(&request.config_json, &checkpoint, place)?))
    }

    fn load_generator(&self, request: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
        alone(request)?;
        t5::load(request)
    }

    fn load_trainer(&self, request: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
        let Device::Cpu = Place::named(&request.device, &request.dtype)?.device else {
            return Err(Failure::unsupported(format!(
                "the candle backend trains on the cpu, not on `{}`",
                request.device
            )));
        };
        let options: TrainerOptions = options(request)?;
        Group::refuse(options.group.as_ref(), NAME)?;
        let family = Identity::parse(&request.config_json)?.family;
        if !family.is_like_bert() {
            let trained: Vec<&str> =
                Family::ALL.into_iter().filter(|f| f.is_like_bert()).map(Family::model_type).collect();
            return Err(Failure::unsupported(format!(
                "the candle backend does not fine-tune `{}` yet; start from one of {}",
                family.model_type(),
                trained.join(", ")
            )));
        }
        let config = EncoderConfig::parse(&request.config_json)?;
        let checkpoint = Checkpoint::open(Path::new(&request.model_dir))?;
        Ok(Box::new(EncoderTrainer::load(config, &checkpoint, options)?))
    }
}

/// A scorer's or generator's options: none but a group, which is refused.
fn alone(request: &LoadRequest) -> Result<(), Failure> {
    Group::refuse(options::<ModelOptions>(request)?.group.as_ref(), NAME)
}

/// Options of a request; an empty text means none are given.
fn options<T: DeserializeOwned>(request: &LoadRequest) -> Result<T, Failure> {
    let json = if request.options_json.is_empty() { "{}" } else { &request.options_json };
    serde_json::from_str(json)
        .map_err(|e| Failure::invalid_argument(format!("the options are not understood: {e}")))
}
