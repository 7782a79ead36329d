//! GPUs, as candle opens them but for two defaults that do not fit here, and kernels that candle has not: [`attention`], [`Biased`].

pub mod attention;
mod biased;

use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};
use candle_core::{Device, Result};

pub use biased::Biased;

/// Memory that stays with the process when nothing uses it: what a few groups of rows need. candle allocates for every
/// operation; a pool that gives all of it back whenever the GPU is waited for, which is CUDA's default, makes each
/// call map its memory anew.
const KEPT_BYTES: u64 = 4 << 30;

/// Number of GPUs that the driver shows; 0 without a driver. Creates no context.
pub fn count() -> usize {
    CudaContext::device_count().map_or(0, |count| count.max(0) as usize)
}

/// Bytes of memory of a GPU, used or not. Creates no context.
pub fn memory(ordinal: usize) -> std::result::Result<usize, DriverError> {
    result::init()?;
    // SAFETY: the device was just looked up.
    unsafe { result::device::total_mem(result::device::get(ordinal as i32)?) }
}

/// Opens a GPU. All work goes to one stream, whichever threads use the device: candle's own default is a stream for each
/// thread, so that a model would not wait for its weights where one thread loads it and another one scores.
///
/// # Errors
/// candle's: no such GPU, no memory for a context.
pub fn open(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: events order the work of several streams. Tensors of this device only ever meet its one stream, which
    // orders its own work, and none was made yet.
    unsafe { cuda.disable_event_tracking() };
    keep_memory(cuda.cuda_stream().context()).map_err(candle_core::Error::wrap)?;
    Ok(device)
}

fn keep_memory(context: &CudaContext) -> std::result::Result<(), DriverError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut kept = KEPT_BYTES;
    // SAFETY: the context holds the device, whose pool outlives it; the attribute is a `cuuint64_t`, read in the call.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut kept).cast())
    }
}
