//! Files of a trainer: the model as transformers reads it, and the checkpoint to go on from.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use cappy_plugin_abi::Failure;
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, View, serialize_to_file};

use crate::encoder::slots::Slots;
use crate::weights::SINGLE;

/// Name of the checkpoint file.
const CHECKPOINT: &str = "trainer.safetensors";
/// Version of its content.
const FORMAT: &str = "cappy-candle-trainer-1";

/// The bytes of numbers, as safetensors stores them.
#[cfg(target_endian = "little")]
fn bytes_of(numbers: &[f32]) -> &[u8] {
    // SAFETY: every byte of an f32 is initialised, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// A tensor in our memory, for writing.
struct Borrowed<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
}

impl View for Borrowed<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytes_of(self.values))
    }
    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

/// Writes tensors into a directory that exists: under a temporary name, flushes them to the disk, and renames.
fn write(
    dir: &Path,
    name: &str,
    tensors: Vec<(String, Borrowed<'_>)>,
    metadata: HashMap<String, String>,
) -> Result<(), Failure> {
    let failed = |e: String| Failure::internal(format!("`{name}` cannot be written: {e}"));
    let temporary = dir.join(format!(".{name}.{}.part", std::process::id()));
    let result = serialize_to_file(tensors, Some(metadata), &temporary)
        .map_err(|e| e.to_string())
        .and_then(|()| File::open(&temporary).and_then(|f| f.sync_all()).map_err(|e| e.to_string()))
        .and_then(|()| std::fs::rename(&temporary, dir.join(name)).map_err(|e| e.to_string()));
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result.map_err(failed)
}

/// Writes `model.safetensors` with transformers' names.
pub fn save_model(dir: &Path, slots: &Slots, weights: &[f32]) -> Result<(), Failure> {
    let tensors = slots
        .list()
        .iter()
        .map(|slot| {
            (slot.name.clone(), Borrowed { shape: slot.shape.clone(), values: &weights[slot.range.clone()] })
        })
        .collect();
    write(dir, SINGLE, tensors, HashMap::from([("format".into(), "pt".into())]))
}

/// The state between two updates.
pub struct State<'a> {
    /// Parameters, in the layout's order.
    pub weights: &'a mut [f32],
    /// AdamW's first moment.
    pub moment1: &'a mut [f32],
    /// AdamW's second moment.
    pub moment2: &'a mut [f32],
}

impl State<'_> {
    fn parts(&mut self) -> [(&'static str, &mut [f32]); 3] {
        [("weights", self.weights), ("moment1", self.moment1), ("moment2", self.moment2)]
    }

    /// Writes the state after `updates` updates.
    pub fn save(mut self, dir: &Path, updates: u64) -> Result<(), Failure> {
        let tensors = self
            .parts()
            .into_iter()
            .map(|(name, values)| (name.to_string(), Borrowed { shape: vec![values.len()], values }))
            .collect();
        let metadata =
            HashMap::from([("format".into(), FORMAT.into()), ("updates".into(), updates.to_string())]);
        write(dir, CHECKPOINT, tensors, metadata)
    }

    /// Reads a state; returns its number of updates. Nothing is changed on failure.
    pub fn load(mut self, dir: &Path) -> Result<u64, Failure> {
        let bad = |what: String| Failure::bad_model(format!("checkpoint `{CHECKPOINT}` {what}"));
        let file = File::open(dir.join(CHECKPOINT)).map_err(|e| bad(format!("cannot be opened: {e}")))?;
        // SAFETY: checkpoints are replaced by renaming, never written in place.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| bad(format!("cannot be mapped: {e}")))?;
        let damaged = |e: safetensors::SafeTensorError| bad(format!("is damaged: {e}"));
        let (_, metadata) = SafeTensors::read_metadata(&map).map_err(damaged)?;
        let tensors = SafeTensors::deserialize(&map).map_err(damaged)?;
        let entry = |key: &str| metadata.metadata().as_ref().and_then(|m| m.get(key)).cloned();
        if entry("format").as_deref() != Some(FORMAT) {
            return Err(bad(format!("has format {:?}, this backend reads `{FORMAT}`", entry("format"))));
        }
        let updates = entry("updates")
            .and_then(|u| u.parse().ok())
            .ok_or_else(|| bad("does not say after how many updates it was written".into()))?;
        for (name, to) in self.parts() {
            let found = tensors.tensor(name).map_err(damaged)?;
            if found.dtype() != Dtype::F32 || found.data().len() != size_of_val(to) {
                return Err(bad(format!(
                    "is of another model: `{name}` has shape {:?}, this one {} parameters",
                    found.shape(),
                    to.len()
                )));
            }
        }
        for (name, to) in self.parts() {
            let found = tensors.tensor(name).map_err(damaged)?;
            for (to, from) in to.iter_mut().zip(found.data().as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*from);
            }
        }
        Ok(updates)
    }
}
