//! Names and orientation of Flax parameters in PyTorch.
//!
//! Source: transformers' `load_flax_weights_in_pytorch_model`.

use super::FlaxError;
use super::msgpack::Parameter;
use crate::config::Architecture;
use crate::header::Dtype;
use crate::writer::SourceTensor;

/// Modules of an encoder that a file of the bare model has at its root.
const BARE_MODULES: [&str; 4] = ["embeddings", "encoder", "transformer", "pooler"];

pub(super) fn to_pytorch(
    parameter: Parameter,
    architecture: Architecture,
    file: usize,
) -> Result<SourceTensor, FlaxError> {
    let path = parameter.path.join(".");
    let dtype = dtype_of(&parameter.dtype)
        .ok_or_else(|| FlaxError::Dtype { parameter: path.clone(), dtype: parameter.dtype.clone() })?;
    let count = parameter.shape.iter().try_fold(dtype.size(), |n, dim| n.checked_mul(*dim));
    let held = parameter.segments.iter().try_fold(0u64, |n, segment| n.checked_add(segment.bytes));
    if count.is_none() || count != held {
        return Err(FlaxError::Size(path));
    }
    let mut words = parameter.path;
    if words.first().is_some_and(|word| word == "params") {
        words.remove(0);
    }
    let bare = words.first().is_some_and(|word| BARE_MODULES.contains(&word.as_str()));
    if bare && let Some(prefix) = base_model(architecture) {
        words.insert(0, prefix.to_owned());
    }
    let Some(last) = words.last_mut() else { return Err(FlaxError::Size(path)) };
    let is_linear = last == "kernel" && parameter.shape.len() == 2;
    if matches!(last.as_str(), "kernel" | "scale" | "embedding") {
        *last = "weight".into();
    }
    // Flax keeps a linear layer as (in, out), PyTorch as (out, in).
    let (shape, strides) = match parameter.shape.as_slice() {
        [inputs, outputs] if is_linear => (vec![*outputs, *inputs], Some(vec![1, *outputs])),
        shape => (shape.to_vec(), None),
    };
    Ok(SourceTensor { name: words.join("."), dtype, shape, strides, file, segments: parameter.segments })
}

/// The module that holds the encoder below a classification head.
fn base_model(architecture: Architecture) -> Option<&'static str> {
    match architecture {
        Architecture::Roberta | Architecture::XlmRoberta => Some("roberta"),
        Architecture::Bert => Some("bert"),
        Architecture::DistilBert => Some("distilbert"),
        // Neither exists in Flax, nor has T5 a module below its head.
        Architecture::ModernBert | Architecture::DebertaV2 | Architecture::T5 => None,
    }
}

fn dtype_of(numpy: &str) -> Option<Dtype> {
    Some(match numpy {
        "float32" => Dtype::F32,
        "bfloat16" => Dtype::BF16,
        "float16" => Dtype::F16,
        "float64" => Dtype::F64,
        "int64" => Dtype::I64,
        "int32" => Dtype::I32,
        "int16" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint8" => Dtype::U8,
        "uint32" => Dtype::U32,
        "bool" => Dtype::Bool,
        _ => return None,
    })
}
