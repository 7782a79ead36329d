//! Masks of dropout in operations of the device: a GPU makes them where they are needed, and the same bits as the CPU.
//!
//! Sixteen bits for each element, four elements a number, as [`Dropout::apply`] says. torch's integers have signs, but
//! products wrap all the same, and a shift that copies the sign loses it to a mask.

use cappy_plugin_abi::random::mix;
use cappy_plugin_models::dropout::Dropout;
use tch::{Device, Kind, Tensor};

use crate::engine::Result;

/// Elements that share a number.
const LANES: usize = 4;

/// Factors by `keys`, one for each line: `(keys, width)`, f32.
///
/// # Errors
/// `OutOfMemory`.
pub fn on_device(dropout: Dropout, keys: &[u64], width: usize, device: Device) -> Result<Tensor> {
    let signed = |values: &mut dyn Iterator<Item = u64>| -> Result<Tensor> {
        let values: Vec<i64> = values.map(|value| value as i64).collect();
        Ok(Tensor::f_from_slice(&values)?.f_to_device(device)?)
    };
    let keys = signed(&mut keys.iter().copied())?.f_unsqueeze(1)?;
    let parts = signed(&mut (0..width.div_ceil(LANES) as u64).map(mix))?;
    // fold(key, part), written out.
    let bits = mixed(keys.f_bitwise_xor_tensor(&parts)?)?.f_unsqueeze(2)?;
    let shifts = signed(&mut (0..LANES as u64).map(|lane| 16 * lane))?;
    let draws = bits.f_bitwise_right_shift(&shifts)?.f_bitwise_and(0xffff)?;
    let kept = draws.f_ge(dropout.threshold() as i64)?.f_flatten(1, 2)?.f_narrow(1, 0, width as i64)?;
    Ok(kept.f_to_kind(Kind::Float)?.f_mul_scalar(f64::from(dropout.scale()))?)
}

/// [`mix`] of each number.
fn mixed(x: Tensor) -> Result<Tensor> {
    let x = x.f_add_scalar(0x9e37_79b9_7f4a_7c15_u64 as i64)?;
    let x = shifted(&x, 30)?.f_mul_scalar(0xbf58_476d_1ce4_e5b9_u64 as i64)?;
    let x = shifted(&x, 27)?.f_mul_scalar(0x94d0_49bb_1331_11eb_u64 as i64)?;
    shifted(&x, 31)
}

/// `x ^ (x >> by)`, where zeros come in.
fn shifted(x: &Tensor, by: u32) -> Result<Tensor> {
    let shift = Tensor::f_from_slice(&[i64::from(by)])?.f_to_device(x.device())?;
    let right = x.f_bitwise_right_shift(&shift)?.f_bitwise_and((u64::MAX >> by) as i64)?;
    Ok(x.f_bitwise_xor_tensor(&right)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::random::fold;
    use cappy_plugin_models::dropout::Site;

    #[test]
    fn a_device_draws_what_the_cpu_draws() {
        let dropout = Dropout::new(0.1, 42);
        let site = dropout.site(Site::Attention(3));
        let keys: Vec<u64> = (0..50).map(|row| fold(site, row)).collect();
        for width in [1, 7, 64, 1001] {
            let made = on_device(dropout, &keys, width, Device::Cpu).expect("a mask");
            let found: Vec<f32> = Vec::try_from(made.flatten(0, 1)).expect("numbers");
            for (key, found) in keys.iter().zip(found.chunks_exact(width)) {
                let mut wanted = vec![1.0; width];
                dropout.apply(&mut wanted, *key);
                assert_eq!(found, wanted, "{width}");
            }
        }
    }
}
