//! What this library says about itself, and which loader takes a request.

use cappy_plugin_abi::{Backend, Descriptor, Failure, Generator, LoadRequest, Scorer, Trainer};

/// The backend; it has no state of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct LibtorchBackend;

impl Backend for LibtorchBackend {
    fn describe(&self) -> Descriptor {
        Descriptor {
            name: "libtorch".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            engine_version: "libtorch 2.11.0".into(),
            devices: vec!["cpu".into()],
            dtypes: vec!["f32".into()],
            ..Descriptor::default()
        }
    }

    fn load_scorer(&self, _: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
        Err(Failure::unsupported("`libtorch` loads no scorers"))
    }

    fn load_generator(&self, _: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
        Err(Failure::unsupported("`libtorch` loads no generators"))
    }

    fn load_trainer(&self, _: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
        Err(Failure::unsupported("`libtorch` loads no trainers"))
    }
}
