//! Where a model computes and in which numbers, by their names.

use std::sync::Arc;

use candle_core::{CustomOp3, DType, Device, Result as EngineResult};
use cappy_plugin_abi::Failure;

/// A device and a number format.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where tensors are.
    pub device: Device,
    /// What the encoder computes in; heads and scores are f32 whatever it is.
    pub dtype: DType,
}

impl From<Device> for Place {
    /// In f32.
    fn from(device: Device) -> Self {
        Self { device, dtype: DType::F32 }
    }
}

impl Place {
    /// The place of a request: `cpu`, `cuda` (the first GPU), `cuda:1`; `f32`, `bf16` (on a GPU), `auto`: bf16 on a GPU,
    /// f32 on the CPU.
    ///
    /// # Errors
    /// `Unsupported` naming what this build or machine has not.
    pub fn named(device: &str, dtype: &str) -> Result<Self, Failure> {
        let device = self::device(device)?;
        let dtype = match (dtype, &device) {
            ("auto" | "f32", Device::Cpu) | ("f32", _) => DType::F32,
            ("auto" | "bf16", Device::Cuda(_)) => DType::BF16,
            ("bf16", _) => {
                return Err(Failure::unsupported(
                    "the candle backend computes in `bf16` on a GPU only; use `f32` or `auto`",
                ));
            }
            (other, _) => {
                return Err(Failure::unsupported(format!(
                    "the candle backend does not compute in `{other}`; use `f32`, `auto`, or on a GPU `bf16`"
                )));
            }
        };
        Ok(Self { device, dtype })
    }

    /// `x . weight^T + bias` as one kernel, where there is one: in bf16 on a GPU.
    ///
    /// # Errors
    /// candle's.
    pub fn biased(&self) -> EngineResult<Option<Arc<Box<dyn CustomOp3 + Send + Sync>>>> {
        #[cfg(feature = "cuda")]
        if self.device.is_cuda() && self.dtype == DType::BF16 {
            return crate::kernels::cuda::Biased::on(&self.device).map(Some);
        }
        Ok(None)
    }
}

/// `cpu`, and with the feature `cuda` every GPU of the machine.
pub fn devices() -> Vec<String> {
    std::iter::once("cpu".into()).chain((0..gpus()).map(|i| format!("cuda:{i}"))).collect()
}

/// Bytes of memory of each of [`devices`]; 0: the machine's, or not known.
pub fn memory() -> Vec<u64> {
    std::iter::once(0).chain((0..gpus()).map(memory_of)).collect()
}

/// `f32`, and bf16 where there is a GPU.
pub fn dtypes() -> Vec<String> {
    let all = ["f32", "bf16"];
    all[..if gpus() > 0 { 2 } else { 1 }].iter().map(|&name| name.into()).collect()
}

fn device(name: &str) -> Result<Device, Failure> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let ordinal = match name {
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()),
    };
    match ordinal {
        Some(ordinal) => open(name, ordinal),
        None => Err(Failure::unsupported(format!("the candle backend has no device `{name}`"))),
    }
}

#[cfg(feature = "cuda")]
fn gpus() -> usize {
    crate::kernels::cuda::count()
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> usize {
    0
}

#[cfg(feature = "cuda")]
fn memory_of(ordinal: usize) -> u64 {
    crate::kernels::cuda::memory(ordinal).map_or(0, |bytes| bytes as u64)
}

#[cfg(not(feature = "cuda"))]
fn memory_of(_ordinal: usize) -> u64 {
    0
}

#[cfg(feature = "cuda")]
fn open(name: &str, ordinal: usize) -> Result<Device, Failure> {
    crate::kernels::cuda::open(ordinal).map_err(|e| {
        let text = e.to_string();
        let reason = text.lines().next().unwrap_or_default();
        Failure::unsupported(format!("device `{name}` cannot be opened: {reason}"))
    })
}

#[cfg(not(feature = "cuda"))]
fn open(name: &str, _ordinal: usize) -> Result<Device, Failure> {
    Err(Failure::unsupported(format!(
        "this build of the candle backend has no CUDA, so no device `{name}`; use `cpu`"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::Code;

    #[test]
    fn names_are_understood_or_refused() {
        for dtype in ["auto", "f32"] {
            let place = Place::named("cpu", dtype).unwrap();
            assert!(matches!(place.device, Device::Cpu) && place.dtype == DType::F32);
        }
        for (device, dtype, named) in [
            ("abacus", "f32", "abacus"),
            ("cuda:x", "f32", "cuda:x"),
            ("cuda:4096", "f32", "cuda:4096"),
            ("cpu", "bf16", "`bf16`"),
            ("cpu", "f12", "`f12`"),
        ] {
            let failure = Place::named(device, dtype).expect_err(named);
            assert!(failure.code == Code::Unsupported && failure.message.contains(named), "{failure}");
        }
        assert_eq!(devices()[0], "cpu");
        assert_eq!(dtypes().len(), if devices().len() > 1 { 2 } else { 1 });
    }
}
