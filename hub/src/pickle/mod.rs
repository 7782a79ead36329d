//! `pytorch_model.bin` without Python: a restricted unpickler ([`machine`]) finds the tensors, [`container`] where
//! their bytes are in the file, and what is written is safetensors. The file's code never runs, because nothing here
//! can run code.

mod container;
mod globals;
mod machine;
mod view;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use machine::{Machine, Value};
use view::View;

use crate::writer::{Segment, SourceTensor, write_safetensors};

/// A file that is not a state dict of tensors, or asks for more.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// It names a class or function that has no place in a state dict.
    #[error(
        "it would load `{0}`, which is not a tensor; nothing was executed. Only state dicts are accepted: get the model's safetensors, or save its state_dict() again"
    )]
    ForbiddenGlobal(String),
    /// It uses a pickle operation that `torch.save` never does.
    #[error("it uses the pickle operation {0:#04x}, which torch.save does not; nothing was executed")]
    ForbiddenOpcode(u8),
    /// It ends early.
    #[error("it is truncated: download it again")]
    Truncated,
    /// It is inconsistent.
    #[error("it is not a PyTorch checkpoint, or damaged: {0}")]
    Malformed(&'static str),
    /// The archive around it is damaged.
    #[error("it is not a PyTorch checkpoint, or damaged: {0}")]
    Archive(String),
    /// A tensor reaches outside its storage, or repeats its elements.
    #[error("a tensor reaches outside its storage `{0}`")]
    OutsideStorage(String),
    /// A storage is absent or shorter than the pickle says.
    #[error("storage `{0}` is missing or shorter than its tensors: download the file again")]
    Storage(String),
    /// There is something else than tensors.
    #[error("`{0}` is not a tensor: only state dicts are accepted")]
    NotATensor(String),
    /// Two files hold the same tensor.
    #[error("tensor `{0}` is in another file too")]
    TensorTwice(String),
    /// The tensors share storages so often that the output would be many times as large as the input.
    #[error("its tensors are {0} times as large as the file itself")]
    Inflated(u64),
    /// The system refused.
    #[error("cannot be converted: {0}")]
    Io(#[from] std::io::Error),
}

/// Tied weights are written once for each name; a T5 has four. More is an attack.
const MAX_INFLATION: u64 = 8;

/// Converts the files of a model (one, or shards) to one safetensors file.
///
/// # Errors
/// The index of the file at fault, and why. `output` then does not exist.
pub fn convert(files: &[PathBuf], output: &Path) -> Result<(), (usize, PickleError)> {
    let mut inputs = Vec::new();
    let mut tensors: BTreeMap<String, SourceTensor> = BTreeMap::new();
    for (at, path) in files.iter().enumerate() {
        let file = File::open(path).map_err(|error| (at, error.into()))?;
        for tensor in read_tensors(&file, at).map_err(|error| (at, error))? {
            let name = tensor.name.clone();
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err((at, PickleError::TensorTwice(name)));
            }
        }
        inputs.push(file);
    }
    drop_tied_embeddings(&mut tensors);
    write_safetensors(&inputs, tensors.into_values().collect(), output).map_err(|error| (0, error.into()))
}

/// T5's encoder and decoder name the shared embedding again; safetensors of T5 hold it once.
fn drop_tied_embeddings(tensors: &mut BTreeMap<String, SourceTensor>) {
    for tied in ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] {
        let same = match (tensors.get("shared.weight"), tensors.get(tied)) {
            (Some(shared), Some(other)) => {
                SourceTensor { name: other.name.clone(), ..shared.clone() } == *other
            }
            _ => false,
        };
        if same {
            tensors.remove(tied);
        }
    }
}

fn read_tensors(file: &File, at: usize) -> Result<Vec<SourceTensor>, PickleError> {
    let mut machine = Machine::default();
    let (root, storages) = container::read(file, &mut machine)?;
    let entries = machine.dict(&root).ok_or(PickleError::Malformed("it does not hold a dict"))?;
    let mut named: BTreeMap<String, &View> = BTreeMap::new();
    for (key, value) in entries {
        let Value::Text(key) = key else {
            return Err(PickleError::Malformed("a tensor's name is not text"));
        };
        let view = machine.tensor(value).ok_or_else(|| PickleError::NotATensor(key.to_string()))?;
        // As in a Python dict, the last of equal keys counts.
        named.insert(current_name(key), view);
    }
    let mut tensors = Vec::new();
    let mut bytes = 0u64;
    for (name, view) in named {
        let size = view.storage.dtype.size();
        let storage =
            storages.get(&view.storage.key).ok_or_else(|| PickleError::Storage(view.storage.key.clone()))?;
        let (skip, length) = (view.offset * size, view.span * size);
        if skip + length > storage.bytes {
            return Err(PickleError::Storage(view.storage.key.clone()));
        }
        bytes = bytes.saturating_add(length);
        tensors.push(SourceTensor {
            name,
            dtype: view.storage.dtype,
            shape: view.shape.clone(),
            strides: (!view.is_row_major()).then(|| view.strides.clone()),
            file: at,
            segments: vec![Segment { offset: storage.offset + skip, bytes: length }],
        });
    }
    let held = file.metadata()?.len().max(1);
    if bytes / held > MAX_INFLATION {
        return Err(PickleError::Inflated(bytes / held));
    }
    Ok(tensors)
}

/// Checkpoints converted from TensorFlow call the parameters of a layer norm otherwise.
fn current_name(name: &str) -> String {
    for (old, new) in [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")] {
        if let Some(stem) = name.strip_suffix(old) {
            return format!("{stem}{new}");
        }
    }
    name.to_owned()
}
