//! Devices and number formats by their names.

use cappy_plugin_abi::Failure;
use tch::{Cuda, Device, Kind};

use crate::cuda;

unsafe extern "C" {
    fn cappy_full_precision();
}

/// Names of the devices that there are.
pub fn names() -> Vec<String> {
    std::iter::once("cpu".into()).chain((0..Cuda::device_count()).map(|i| format!("cuda:{i}"))).collect()
}

/// Bytes of memory of each of [`names`]; 0: the machine's, or not known.
pub fn memory() -> Vec<u64> {
    let gpus = (0..Cuda::device_count()).map(|i| cuda::memory(i as usize).unwrap_or(0));
    std::iter::once(0).chain(gpus).collect()
}

/// The device of a name: `cpu`, `cuda` (the first), `cuda:1`.
///
/// # Errors
/// `Unsupported` naming it.
pub fn device(name: &str) -> Result<Device, Failure> {
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok()),
    };
    let Some(index) = index else {
        return Err(Failure::unsupported(format!("the libtorch backend has no device `{name}`")));
    };
    if (index as i64) < Cuda::device_count() {
        // SAFETY: it changes one setting.
        unsafe { cappy_full_precision() };
        return Ok(Device::Cuda(index));
    }
    Err(Failure::unsupported(format!(
        "libtorch sees no device `{name}` here, only {}; use one of these",
        names().join(", ")
    )))
}

/// The number format of a name. `auto` is bf16 on a GPU and f32 on the CPU.
///
/// # Errors
/// `Unsupported` naming it.
pub fn kind(name: &str, device: Device) -> Result<Kind, Failure> {
    match name {
        "auto" if device.is_cuda() => Ok(Kind::BFloat16),
        "auto" | "f32" => Ok(Kind::Float),
        "bf16" => Ok(Kind::BFloat16),
        other => Err(Failure::unsupported(format!(
            "the libtorch backend does not compute in `{other}`; use `f32`, `bf16` or `auto`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::Code;

    #[test]
    fn names_are_understood_or_refused() {
        assert_eq!(device("cpu"), Ok(Device::Cpu));
        for name in ["abacus", "cuda:x", "cuda:4096"] {
            let failure = device(name).expect_err(name);
            assert!(failure.code == Code::Unsupported && failure.message.contains(name), "{failure}");
        }
        assert_eq!(kind("auto", Device::Cpu), Ok(Kind::Float));
        assert_eq!(kind("auto", Device::Cuda(0)), Ok(Kind::BFloat16));
        assert_eq!(kind("bf16", Device::Cpu), Ok(Kind::BFloat16));
        assert!(kind("int8", Device::Cpu).expect_err("int8").message.contains("`int8`"));
    }
}
