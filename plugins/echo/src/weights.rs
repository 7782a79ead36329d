//! `model.safetensors` with its one tensor, and how files are written.

use std::fs;
use std::path::Path;

use cappy_plugin_abi::Failure;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

const MODEL_FILE: &str = "model.safetensors";

/// The bias of a model.
pub(crate) fn load(dir: &Path) -> Result<f32, Failure> {
    let bytes = read(dir, MODEL_FILE)?;
    let [bias] = numbers(&parse(&bytes, MODEL_FILE)?, "bias", MODEL_FILE, f32::from_le_bytes)?;
    Ok(bias)
}

pub(crate) fn save(dir: &Path, bias: f32) -> Result<(), Failure> {
    write_tensors(&dir.join(MODEL_FILE), &[("bias", Dtype::F32, &bias.to_le_bytes())])
}

pub(crate) fn read(dir: &Path, file: &str) -> Result<Vec<u8>, Failure> {
    // The directory's name is the host's business: messages travel to clients.
    fs::read(dir.join(file)).map_err(|error| Failure::bad_model(format!("{file}: {error}")))
}

pub(crate) fn parse<'a>(bytes: &'a [u8], file: &str) -> Result<SafeTensors<'a>, Failure> {
    SafeTensors::deserialize(bytes).map_err(|error| Failure::bad_model(format!("{file}: {error}")))
}

/// The `N` numbers of `W` bytes of a tensor.
pub(crate) fn numbers<T, const N: usize, const W: usize>(
    tensors: &SafeTensors<'_>,
    name: &str,
    file: &str,
    decode: impl Fn([u8; W]) -> T,
) -> Result<[T; N], Failure> {
    let tensor = tensors.tensor(name).map_err(|error| Failure::bad_model(format!("{file}: {error}")))?;
    let (values, rest) = tensor.data().as_chunks::<W>();
    let values: Option<[[u8; W]; N]> = values.try_into().ok().filter(|_| rest.is_empty());
    let wrong =
        || Failure::bad_model(format!("{file}: tensor `{name}` does not hold {N} numbers of {W} bytes"));
    Ok(values.ok_or_else(wrong)?.map(decode))
}

pub(crate) fn write_tensors(path: &Path, tensors: &[(&str, Dtype, &[u8])]) -> Result<(), Failure> {
    let internal = |error: safetensors::SafeTensorError| Failure::internal(error.to_string());
    let mut views = Vec::new();
    for &(name, dtype, data) in tensors {
        let shape = vec![data.len() * 8 / dtype.bitsize()];
        views.push((name, TensorView::new(dtype, shape, data).map_err(internal)?));
    }
    write(path, &safetensors::serialize(views, None).map_err(internal)?)
}

/// Under another name first: a reader, or a crash, never meets half a file.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let part = path.with_extension("part");
    fs::write(&part, bytes).and_then(|()| fs::rename(&part, path)).map_err(|error| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Failure::invalid_argument(format!("cannot write {name}: {error}"))
    })
}
