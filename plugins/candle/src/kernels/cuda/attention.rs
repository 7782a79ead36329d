//! The kernels of `attention.cu` as candle's operations, in f32 and bf16.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor,
    WithDType, bail,
};
use half::bf16;

const MODULE: &str = "cappy-attention";
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"));

/// Numbers that a thread of most kernels takes at once; sizes are multiples of it.
const FOUR: usize = 4;
/// Lines of a softmax that a block makes, a warp each.
const LINES: u32 = 4;

/// Whether [`split_heads`] and [`join_heads`] take heads of `d` numbers, or [`gated`] a network of that width.
pub fn takes(x: &Tensor, d: usize) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::BF16) && d.is_multiple_of(FOUR)
}

/// `x`, `(rows, length, width)`, whose columns from `first` on are `heads` of `d` each: `(rows, heads, length, d)`, times
/// `scale`.
///
/// # Errors
/// candle's; shapes that do not fit.
pub fn split_heads(x: &Tensor, first: usize, heads: usize, d: usize, scale: f64) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Split { first, heads, d, scale: scale as f32 })
}

/// `x`, `(rows, heads, length, d)`: `(rows, length, heads * d)`.
///
/// # Errors
/// candle's.
pub fn join_heads(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Join)
}

/// The softmax of `scores`, `(rows, heads, queries, keys)`, over the first `lengths` keys of each row, `(rows)` in u32,
/// and where `window` is given of those at most so far away from the query. The other weights are 0.
///
/// # Errors
/// candle's.
pub fn softmax(scores: &Tensor, lengths: &Tensor, window: Option<usize>) -> Result<Tensor> {
    let window = window.map_or(-1, |window| i32::try_from(window).unwrap_or(i32::MAX / 2));
    scores.contiguous()?.apply_op2_no_bwd(lengths, &Softmax { window })
}

/// `x`, `(.., 2 * width)`: `gelu(first half) * second half`, `(.., width)`.
///
/// # Errors
/// candle's.
pub fn gated(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1_no_bwd(&Gated)
}

struct Split {
    first: usize,
    heads: usize,
    d: usize,
    scale: f32,
}

struct Join;

struct Softmax {
    window: i32,
}

struct Gated;

/// An argument after the tensors.
#[derive(Clone, Copy)]
enum Number {
    Count(u32),
    Distance(i32),
    Scale(f32),
}

/// A count, as kernels take it.
fn count(n: usize) -> Result<Number> {
    match u32::try_from(n) {
        Ok(n) => Ok(Number::Count(n)),
        Err(_) => bail!("a tensor of {n} numbers is too large for a kernel; use shorter rows"),
    }
}

/// A kernel over `x`, and where it is given `lengths`, that makes `made` numbers.
struct Launch<'a> {
    name: &'static str,
    x: (&'a CudaStorage, &'a Layout),
    lengths: Option<(&'a CudaStorage, &'a Layout)>,
    made: usize,
    grid: LaunchConfig,
    numbers: Vec<Number>,
}

impl Launch<'_> {
    fn run(&self) -> Result<CudaStorage> {
        match self.x.0.dtype() {
            DType::F32 => self.run_in::<f32>(),
            DType::BF16 => self.run_in::<bf16>(),
            other => bail!("the kernel `{}` takes no {other:?}", self.name),
        }
    }

    fn run_in<T: WithDType + CudaDType + DeviceRepr>(&self) -> Result<CudaStorage> {
        let device: &CudaDevice = self.x.0.device();
        let x = part::<T>(self.x)?;
        let lengths = self.lengths.map(part::<u32>).transpose()?;
        let function =
            device.get_or_load_custom_func(&format!("{}_{}", self.name, T::DTYPE.as_str()), MODULE, PTX)?;
        // SAFETY: the kernel writes every number, before any other work of the stream reads one.
        let mut out = unsafe { device.alloc::<T>(self.made)? };
        let mut launch = function.builder();
        launch.arg(&x);
        if let Some(lengths) = &lengths {
            launch.arg(lengths);
        }
        launch.arg(&mut out);
        for number in &self.numbers {
            match number {
                Number::Count(n) => launch.arg(n),
                Number::Distance(n) => launch.arg(n),
                Number::Scale(x) => launch.arg(x),
            };
        }
        // SAFETY: arguments are the kernel's in `attention.cu`, in its order; what it reads and writes follows from
        // counts that the operations below take from the tensors' shapes.
        unsafe { launch.launch(self.grid) }.map_err(candle_core::Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
    }
}

/// The numbers of a tensor that is one piece, where kernels can take four at once.
fn part<'a, T: CudaDType>((storage, layout): (&'a CudaStorage, &Layout)) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((from, to)) if from.is_multiple_of(FOUR) => Ok(storage.as_cuda_slice::<T>()?.slice(from..to)),
        _ => bail!("a kernel takes no tensor that lies as {layout:?}"),
    }
}

impl CustomOp1 for Split {
    fn name(&self) -> &'static str {
        "split-heads"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs")
    }

    fn cuda_fwd(&self, x: &CudaStorage, at: &Layout) -> Result<(CudaStorage, Shape)> {
        let &Self { first, heads, d, scale } = self;
        let (rows, length, width) = at.shape().dims3()?;
        if first + heads * d > width || [first, d, width].iter().any(|n| !n.is_multiple_of(FOUR)) {
            bail!(
                "{heads} heads of {d} from {first} on are not in {width} columns, or not in groups of {FOUR}"
            )
        }
        let made = rows * length * heads * d;
        let numbers = vec![
            count(made / FOUR)?,
            count(length)?,
            count(heads)?,
            count(d / FOUR)?,
            count(width / FOUR)?,
            count(first / FOUR)?,
            Number::Scale(scale),
        ];
        let grid = LaunchConfig::for_num_elems((made / FOUR) as u32);
        let launch = Launch { name: "split", x: (x, at), lengths: None, made, grid, numbers };
        Ok((launch.run()?, (rows, heads, length, d).into()))
    }
}

impl CustomOp1 for Join {
    fn name(&self) -> &'static str {
        "join-heads"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs")
    }

    fn cuda_fwd(&self, x: &CudaStorage, at: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, heads, length, d) = at.shape().dims4()?;
        if !d.is_multiple_of(FOUR) {
            bail!("heads of {d} are not in groups of {FOUR}")
        }
        let made = rows * length * heads * d;
        let numbers = vec![count(made / FOUR)?, count(length)?, count(heads)?, count(d / FOUR)?];
        let grid = LaunchConfig::for_num_elems((made / FOUR) as u32);
        let launch = Launch { name: "join", x: (x, at), lengths: None, made, grid, numbers };
        Ok((launch.run()?, (rows, length, heads * d).into()))
    }
}

impl CustomOp2 for Softmax {
    fn name(&self) -> &'static str {
        "seen-softmax"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        at: &Layout,
        lengths: &CudaStorage,
        lengths_at: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (rows, heads, queries, keys) = at.shape().dims4()?;
        if lengths_at.shape().dims1()? != rows {
            bail!("{rows} rows have the lengths {lengths_at:?}")
        }
        let lines = rows * heads * queries;
        let numbers = vec![
            count(lines)?,
            count(heads * queries)?,
            count(queries)?,
            count(keys)?,
            Number::Distance(self.window),
        ];
        let grid = LaunchConfig {
            grid_dim: ((lines as u32).div_ceil(LINES), 1, 1),
            block_dim: (32, LINES, 1),
            shared_mem_bytes: 0,
        };
        let lengths = Some((lengths, lengths_at));
        let launch = Launch { name: "softmax", x: (x, at), lengths, made: lines * keys, grid, numbers };
        Ok((launch.run()?, at.shape().clone()))
    }
}

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated-gelu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("a kernel for GPUs")
    }

    fn cuda_fwd(&self, x: &CudaStorage, at: &Layout) -> Result<(CudaStorage, Shape)> {
        let mut shape = at.dims().to_vec();
        let Some(width) = shape.last_mut() else { bail!("a number is not gated") };
        *width /= 2;
        let width = *width;
        if !width.is_multiple_of(FOUR) {
            bail!("halves of {width} are not in groups of {FOUR}")
        }
        let made = at.shape().elem_count() / 2;
        let numbers = vec![count(made / FOUR)?, count(width / FOUR)?];
        let grid = LaunchConfig::for_num_elems((made / FOUR) as u32);
        let launch = Launch { name: "gated", x: (x, at), lengths: None, made, grid, numbers };
        Ok((launch.run()?, shape.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device};

    /// On every GPU of the machine; without one there is nothing to compare.
    fn on_gpus(test: impl Fn(&Device, DType, f32)) {
        for ordinal in 0..crate::kernels::cuda::count() {
            let device = crate::kernels::cuda::open(ordinal).unwrap();
            test(&device, DType::F32, 2e-6);
            test(&device, DType::BF16, 1.6e-2);
        }
    }

    fn random(shape: &[usize], device: &Device, dtype: DType) -> Tensor {
        Tensor::randn(0_f32, 1.0, shape, device).unwrap().to_dtype(dtype).unwrap()
    }

    fn close(got: &Tensor, expected: &Tensor, bound: f32, what: &str) {
        assert_eq!((got.dims(), got.dtype()), (expected.dims(), expected.dtype()), "{what}");
        let [got, expected] = [got, expected]
            .map(|it| it.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let allowed = bound * expected.abs().max(1.0);
            assert!((got - expected).abs() <= allowed, "{what}, number {i}: {got} not {expected}");
        }
    }

    #[test]
    fn heads_are_split_and_joined() {
        on_gpus(|device, dtype, bound| {
            for (rows, length, heads, d, parts) in [(3, 5, 2, 8, 3), (1, 1, 4, 4, 1), (2, 300, 16, 64, 3)] {
                let x = random(&[rows, length, parts * heads * d], device, dtype);
                for part in 0..parts {
                    let got = split_heads(&x, part * heads * d, heads, d, 0.125).unwrap();
                    let expected = x.reshape((rows, length, parts, heads, d)).unwrap().narrow(2, part, 1);
                    let expected = expected.unwrap().squeeze(2).unwrap().transpose(1, 2).unwrap();
                    let expected = (expected.contiguous().unwrap() * 0.125).unwrap();
                    close(&got, &expected, bound, "split");
                    let expected = got.transpose(1, 2).unwrap().contiguous().unwrap();
                    let expected = expected.reshape((rows, length, heads * d)).unwrap();
                    close(&join_heads(&got).unwrap(), &expected, 0.0, "joined");
                }
            }
        });
    }

    #[test]
    fn weights_are_the_softmax_of_what_is_seen() {
        on_gpus(|device, dtype, bound| {
            let tables: [(&[u32], usize, usize, usize); 4] =
                [(&[5, 3, 1], 2, 5, 5), (&[7], 1, 7, 7), (&[33, 100], 4, 1, 100), (&[300, 177], 3, 300, 300)];
            for (lengths, heads, queries, keys) in tables {
                for window in [None, Some(2), Some(64)] {
                    let scores = random(&[lengths.len(), heads, queries, keys], device, dtype);
                    let of_rows = Tensor::new(lengths, device).unwrap();
                    let got = softmax(&scores, &of_rows, window).unwrap();
                    let scores = scores.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
                    let scores = scores.to_vec1::<f32>().unwrap();
                    let mut expected = Vec::new();
                    for (line, scores) in scores.chunks_exact(keys).enumerate() {
                        let (tokens, query) = (lengths[line / (heads * queries)] as usize, line % queries);
                        let seen = |key: usize| {
                            key < tokens && window.is_none_or(|away| key.abs_diff(query) <= away)
                        };
                        let power = |key: usize| if seen(key) { scores[key].exp() } else { 0.0 };
                        let total: f32 = (0..keys).map(power).sum();
                        let share = |key| if total > 0.0 { power(key) / total } else { 0.0 };
                        expected.extend((0..keys).map(share));
                    }
                    let expected = Tensor::from_vec(expected, got.shape(), device).unwrap();
                    close(
                        &got,
                        &expected.to_dtype(dtype).unwrap(),
                        bound,
                        &format!("{lengths:?}, {window:?}"),
                    );
                }
            }
        });
    }

    #[test]
    fn gates_are_multiplied() {
        on_gpus(|device, dtype, bound| {
            for (tokens, width) in [(1, 4), (7, 36), (500, 2624)] {
                let x = random(&[1, tokens, 2 * width], device, dtype);
                let wide = x.to_dtype(DType::F32).unwrap();
                let half = |which: usize| wide.narrow(D::Minus1, which * width, width).unwrap();
                let expected = (half(0).gelu_erf().unwrap() * half(1)).unwrap().to_dtype(dtype).unwrap();
                close(&gated(&x).unwrap(), &expected, bound, &format!("{tokens} tokens of {width}"));
            }
        });
    }
}
