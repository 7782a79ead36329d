//! What this library says about itself, and which loader takes a request.

use cappy_plugin_abi::{Backend, Descriptor, Failure, Generator, LoadRequest, Scorer, Trainer};

/// The backend; it has no state of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct LibtorchBackend;

const NAME: &str = "libtorch";

#[cfg(feature = "torch")]
mod torch {
    use super::{
        Backend, Descriptor, Failure, Generator, LibtorchBackend, LoadRequest, NAME, Scorer, Trainer,
    };
    use cappy_plugin_abi::{DATA_PARALLEL, Group, ModelOptions, TENSOR_PARALLEL};
    use cappy_plugin_models::encoder::family::Family;
    use serde::de::DeserializeOwned;

    use crate::group::Seat;
    use crate::{device, encoder, t5, trainer};

    impl Backend for LibtorchBackend {
        fn describe(&self) -> Descriptor {
            Descriptor {
                name: NAME.into(),
                version: env!("CARGO_PKG_VERSION").into(),
                engine_version: "libtorch 2.11.0".into(),
                devices: device::names(),
                device_memory: device::memory(),
                dtypes: vec!["f32".into(), "bf16".into()],
                scorer_architectures: Family::ALL.iter().map(|family| family.model_type().into()).collect(),
                generator_architectures: vec![t5::ARCHITECTURE.into()],
                features: ["training", DATA_PARALLEL, TENSOR_PARALLEL].map(Into::into).into(),
            }
        }

        fn load_scorer(&self, request: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
            let device = device::device(&request.device)?;
            let kind = device::kind(&request.dtype, device)?;
            let ModelOptions { group } = options(request)?;
            Group::refuse(group.as_ref(), "libtorch scorer's")?;
            encoder::scorer::load(request, device, kind)
        }

        fn load_generator(&self, request: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
            let ModelOptions { group } = options(request)?;
            let seat = group.map(Seat::take);
            let device = device::device(&request.device)?;
            let kind = device::kind(&request.dtype, device)?;
            t5::load(request, device, kind, seat)
        }

        fn load_trainer(&self, request: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
            trainer::load(request, options(request)?)
        }
    }

    /// Options of a request; an empty text means none are given.
    fn options<T: DeserializeOwned>(request: &LoadRequest) -> Result<T, Failure> {
        let json = if request.options_json.is_empty() { "{}" } else { &request.options_json };
        serde_json::from_str(json)
            .map_err(|e| Failure::invalid_argument(format!("the options are not understood: {e}")))
    }
}

/// Built without its engine, so that the workspace builds where no libtorch is laid out.
#[cfg(not(feature = "torch"))]
mod without {
    use super::{
        Backend, Descriptor, Failure, Generator, LibtorchBackend, LoadRequest, NAME, Scorer, Trainer,
    };

    fn refusal() -> Failure {
        Failure::unsupported(
            "this build of the libtorch backend lacks its engine; run `cargo xtask libtorch` and build it with \
             `--features torch`",
        )
    }

    impl Backend for LibtorchBackend {
        fn describe(&self) -> Descriptor {
            Descriptor {
                name: NAME.into(),
                version: env!("CARGO_PKG_VERSION").into(),
                engine_version: "none".into(),
                ..Descriptor::default()
            }
        }

        fn load_scorer(&self, _: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
            Err(refusal())
        }

        fn load_generator(&self, _: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
            Err(refusal())
        }

        fn load_trainer(&self, _: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
            Err(refusal())
        }
    }
}
