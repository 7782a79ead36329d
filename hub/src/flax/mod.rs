//! `flax_model.msgpack` to safetensors: [`msgpack`] finds the arrays in the file without loading them, [`names`] gives
//! them the names (and linear layers the orientation) that they have in PyTorch.

mod msgpack;
mod names;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::config::Architecture;
use crate::writer::{SourceTensor, write_safetensors};

/// A file that is not a tree of Flax parameters.
#[derive(Debug, thiserror::Error)]
pub enum FlaxError {
    /// It ends early.
    #[error("it is truncated: download it again")]
    Truncated,
    /// It is inconsistent.
    #[error("it is not a file of Flax parameters, or damaged: {0}")]
    Malformed(&'static str),
    /// It holds something that has no place in a tree of parameters.
    #[error("it holds {0} at byte {1}, which is no parameter")]
    Foreign(&'static str, u64),
    /// A number format that safetensors do not have.
    #[error("parameter `{parameter}` has dtype `{dtype}`, which is not supported")]
    Dtype {
        /// Path in the tree.
        parameter: String,
        /// As written.
        dtype: String,
    },
    /// Shape and number of bytes disagree.
    #[error("parameter `{0}`: its shape does not match its bytes")]
    Size(String),
    /// Two parameters become one tensor.
    #[error("two parameters are called `{0}` in PyTorch")]
    TensorTwice(String),
    /// The system refused.
    #[error("cannot be converted: {0}")]
    Io(#[from] std::io::Error),
}

/// Converts the files of a model (one, or shards) to one safetensors file.
///
/// # Errors
/// The index of the file at fault, and why. `output` then does not exist.
pub fn convert(
    files: &[PathBuf],
    architecture: Architecture,
    output: &Path,
) -> Result<(), (usize, FlaxError)> {
    let mut inputs = Vec::new();
    let mut tensors: BTreeMap<String, SourceTensor> = BTreeMap::new();
    for (at, path) in files.iter().enumerate() {
        let file = File::open(path).map_err(|error| (at, error.into()))?;
        let parameters = msgpack::read(&file).map_err(|error| (at, error))?;
        for parameter in parameters {
            let tensor = names::to_pytorch(parameter, architecture, at).map_err(|error| (at, error))?;
            let name = tensor.name.clone();
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err((at, FlaxError::TensorTwice(name)));
            }
        }
        inputs.push(file);
    }
    write_safetensors(&inputs, tensors.into_values().collect(), output).map_err(|error| (0, error.into()))
}
