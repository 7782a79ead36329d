//! Linear layers in bf16 whose bias is added by the product's own kernel (cuBLASLt).
//!
//! candle's product and its broadcast sum are two kernels, and the second one reads and writes all of the result again.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Device, Layout, Result, Shape, bail};
use half::bf16;

/// `x . weight^T + bias`; `x`: `(m, k)`, `weight`: `(n, k)`, `bias`: `(n)`, each the whole of its memory, so that it is
/// aligned as cuBLASLt expects.
pub struct Biased(CudaBlasLT);

impl Biased {
    /// The operation for tensors of a GPU.
    ///
    /// # Errors
    /// candle's: the device is no GPU.
    pub fn on(device: &Device) -> Result<Arc<Box<dyn CustomOp3 + Send + Sync>>> {
        let library = CudaBlasLT::new(device.as_cuda_device()?.cuda_stream());
        Ok(Arc::new(Box::new(Self(library.map_err(candle_core::Error::wrap)?))))
    }
}

impl CustomOp3 for Biased {
    fn name(&self) -> &'static str {
        "biased-product"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("cuBLASLt multiplies on a GPU only")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_at: &Layout,
        weight: &CudaStorage,
        weight_at: &Layout,
        bias: &CudaStorage,
        bias_at: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let ((m, k), (n, width)) = (x_at.shape().dims2()?, weight_at.shape().dims2()?);
        let whole = |layout: &Layout| layout.is_contiguous() && layout.start_offset() == 0;
        if width != k || bias_at.shape().dims1()? != n || ![x_at, weight_at, bias_at].into_iter().all(whole) {
            bail!("no linear layer: {x_at:?}, {weight_at:?}, {bias_at:?}")
        }
        let (device, slices) = (x.device.clone(), [x, weight, bias].map(CudaStorage::as_cuda_slice::<bf16>));
        let [x, weight, bias] = slices;
        // cuBLASLt's matrices lie by columns: to it, the result is (n, m), the weight (k, n) and x (k, m).
        let layout = MatmulConfig {
            transa: true,
            transb: false,
            transc: false,
            m: n as u64,
            n: m as u64,
            k: k as u64,
            alpha: 1.0,
            beta: 0.0,
            lda: k as i64,
            ldb: k as i64,
            ldc: n as i64,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        // SAFETY: the product writes every number before any other work of the stream reads one; sizes were compared
        // with the layouts, which candle has compared with the memory.
        let out = unsafe {
            let mut out = device.alloc::<bf16>(m * n)?;
            let product = self.0.matmul(layout, weight?, x?, &mut out, Some(bias?), None);
            product.map_err(candle_core::Error::wrap)?;
            out
        };
        Ok((CudaStorage::wrap_cuda_slice(out, device), (m, n).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Tensor};

    /// On every GPU of the machine; without one there is nothing to compare.
    #[test]
    fn products_with_a_bias_are_candles() {
        for ordinal in 0..crate::kernels::cuda::count() {
            let device = crate::kernels::cuda::open(ordinal).unwrap();
            let op = Biased::on(&device).unwrap();
            for (m, k, n) in [(1, 32, 96), (7, 64, 37), (300, 1024, 4096), (16384, 768, 3072)] {
                let random = |shape: &[usize]| {
                    Tensor::randn(0_f32, 1.0, shape, &device).unwrap().to_dtype(DType::BF16).unwrap()
                };
                let (x, weight, bias) = (random(&[m, k]), random(&[n, k]), random(&[n]));
                let got = x.apply_op3_arc(&weight, &bias, op.clone()).unwrap();
                let expected = x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
                let to_f32 = |tensor: Tensor| tensor.to_dtype(DType::F32).unwrap();
                let difference = (to_f32(got) - to_f32(expected)).unwrap().abs().unwrap();
                let largest = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
                // Sums have a deviation of sqrt(k); bf16 has eight bits, of which candle's way loses one more.
                assert!(largest <= (k as f32).sqrt() * 0.04, "{m}, {k}, {n}: {largest}");
            }
        }
    }
}
