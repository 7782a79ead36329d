//! Numbers on their way into tensors and out of them.
//!
//! Numbers are read (with positioned reads, so that a rank touches its slices of the files and nothing else) straight
//! into the memory of a tensor, which is then converted and moved if it has to be.

use std::ops::Range;

use cappy_plugin_abi::Failure;
use cappy_plugin_models::weights::Checkpoint;
use tch::{Device, Kind, Tensor};

use crate::engine::Result;

/// A tensor whose numbers `fill` writes, on a device and of a kind.
///
/// # Errors
/// Those of `fill`; `OutOfMemory`.
pub fn filled(
    shape: &[usize],
    device: Device,
    kind: Kind,
    fill: impl FnOnce(&mut [f32]) -> std::result::Result<(), Failure>,
) -> Result<Tensor> {
    let size: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    let tensor = Tensor::f_zeros(size.as_slice(), (Kind::Float, Device::Cpu))?;
    let count = shape.iter().product();
    if count > 0 {
        // SAFETY: the tensor was just made: contiguous, `count` f32 in this process's memory, and nobody else's.
        fill(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), count) })?;
    }
    Ok(tensor.f_to_kind(kind)?.f_to_device(device)?)
}

/// The numbers of a tensor, as f32.
///
/// # Errors
/// `OutOfMemory`.
pub fn numbers(of: &Tensor) -> Result<Vec<f32>> {
    let mut values = vec![0.0; of.numel()];
    let count = values.len();
    of.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_copy_data(&mut values, count)?;
    Ok(values)
}

/// Part `index` of `count` nearly equal parts of `0..whole`, as ranks share dimensions.
pub fn part(whole: usize, index: usize, count: usize) -> Range<usize> {
    whole * index / count..whole * (index + 1) / count
}

/// Reads tensors, and counts.
pub struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    device: Device,
    /// Parameters of the tensors asked for, whole.
    pub parameters: u64,
    /// Bytes of what was made of them.
    pub bytes: u64,
}

impl<'a> Reader<'a> {
    /// Reads from `checkpoint` to `device`.
    pub fn new(checkpoint: &'a Checkpoint, device: Device) -> Self {
        Self { checkpoint, device, parameters: 0, bytes: 0 }
    }

    /// A whole tensor.
    ///
    /// # Errors
    /// `BadModel` that names it, when it is missing or misshapen.
    pub fn whole(&mut self, name: &str, shape: &[usize], kind: Kind) -> Result<Tensor> {
        let width = shape.iter().skip(1).product();
        let size: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        Ok(self.block(&[name], shape, 0..shape[0], 0..width, kind)?.f_reshape(size.as_slice())?)
    }

    /// The same rows and columns of several `[rows, columns]` matrices, one matrix above the other.
    ///
    /// # Errors
    /// As [`Reader::whole`].
    pub fn block(
        &mut self,
        names: &[&str],
        shape: &[usize],
        rows: Range<usize>,
        columns: Range<usize>,
        kind: Kind,
    ) -> Result<Tensor> {
        let size = rows.len() * columns.len();
        let tensor = filled(&[names.len() * rows.len(), columns.len()], self.device, kind, |to| {
            for (name, to) in names.iter().zip(to.chunks_exact_mut(size)) {
                self.checkpoint.read_block_into(name, shape, rows.clone(), columns.clone(), to)?;
            }
            Ok(())
        })?;
        self.parameters += (names.len() * shape.iter().product::<usize>()) as u64;
        self.bytes += (tensor.numel() * kind.elt_size_in_bytes()) as u64;
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_whole_nearly_equally() {
        for (whole, count) in [(10, 3), (32128, 4), (2, 4), (7, 1)] {
            let parts: Vec<_> = (0..count).map(|i| part(whole, i, count)).collect();
            assert_eq!((parts[0].start, parts[count - 1].end), (0, whole));
            assert!(parts.windows(2).all(|w| w[0].end == w[1].start));
            assert!(
                parts
                    .iter()
                    .all(|p| p.len() <= whole.div_ceil(count) && p.len() + 1 >= whole.div_ceil(count))
            );
        }
    }
}
