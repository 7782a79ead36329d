//! A batch's rows as they lie, for the one attention kernel that takes them so: FlashAttention on NVIDIA GPUs, in bf16.
//!
//! Source: Dao, arXiv 2307.08691.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::attention::Attention;
use crate::engine::Result;
use crate::ragged::starts;
use crate::shim::{Text, said_at_length};

/// The kernel takes heads of so many numbers, at most.
const MOST_HEAD_DIM: usize = 256;
/// And only multiples of this.
const HEAD_DIM_STEP: usize = 8;

unsafe extern "C" {
    fn cappy_attend_packed(
        query: *const c_void,
        key: *const c_void,
        value: *const c_void,
        query_starts: *const c_void,
        key_starts: *const c_void,
        most_queries: i64,
        most_keys: i64,
        scale: f64,
        window: i64,
        out: *mut *mut c_void,
    ) -> Text;
}

/// Where rows begin.
pub struct Packed {
    /// Of all tokens, and their end: `(rows + 1)`, int32.
    starts: Tensor,
    /// Of one token a row.
    firsts: Tensor,
    longest: i64,
}

/// Whether the kernel computes on this device in this number format.
pub fn at_hand(device: Device, kind: Kind) -> bool {
    static KNOWN: Mutex<BTreeMap<usize, bool>> = Mutex::new(BTreeMap::new());
    let (Device::Cuda(index), Kind::BFloat16) = (device, kind) else { return false };
    // Older GPUs lack it, and so do some builds of libtorch: whoever asks is told.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry(index).or_insert_with(|| {
        let probe = || -> Result<()> {
            let x = Tensor::f_zeros([3, 1, HEAD_DIM_STEP as i64], (kind, device))?;
            let packed = Packed::new(&[1, 2], device)?;
            packed.attend([&x, &x, &x], &packed.starts, packed.longest, 1.0, None).map(drop)
        };
        probe().is_ok()
    })
}

impl Packed {
    /// Rows of these lengths.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(lengths: &[usize], device: Device) -> Result<Self> {
        let starts: Vec<i32> = starts(lengths).iter().map(|&start| start as i32).collect();
        Ok(Self {
            starts: Tensor::f_from_slice(&starts)?.f_to_device(device)?,
            firsts: Tensor::f_arange(starts.len() as i64, (Kind::Int, device))?,
            longest: lengths.iter().copied().max().unwrap_or(0) as i64,
        })
    }

    /// Whether the kernel takes such heads.
    pub fn fits(head_dim: usize) -> bool {
        head_dim.is_multiple_of(HEAD_DIM_STEP) && head_dim <= MOST_HEAD_DIM
    }

    /// Of all tokens. `qkv`: `(tokens, 3 * hidden)`; gives `(tokens, hidden)`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn all(&self, attention: &Attention<'_>, qkv: &Tensor) -> Result<Tensor> {
        let x = heads(qkv, 3, attention.heads)?;
        let part = |which: i64| x.f_select(1, which);
        let [query, key, value] = [part(0)?, part(1)?, part(2)?];
        self.attend([&query, &key, &value], &self.starts, self.longest, attention.scale, attention.window)
    }

    /// Of first tokens only. `query`: `(rows, hidden)`, `key_value`: `(tokens, 2 * hidden)`; gives `(rows, hidden)`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn firsts(&self, attention: &Attention<'_>, query: &Tensor, key_value: &Tensor) -> Result<Tensor> {
        let x = heads(key_value, 2, attention.heads)?;
        let query = heads(query, 1, attention.heads)?.f_select(1, 0)?;
        let [key, value] = [x.f_select(1, 0)?, x.f_select(1, 1)?];
        self.attend([&query, &key, &value], &self.firsts, 1, attention.scale, None)
    }

    fn attend(
        &self,
        [query, key, value]: [&Tensor; 3],
        starts: &Tensor,
        most: i64,
        scale: f64,
        window: Option<usize>,
    ) -> Result<Tensor> {
        let raw = |x: &Tensor| x.as_ptr().cast();
        let window = window.map_or(-1, |window| window as i64);
        let mut out = std::ptr::null_mut();
        // SAFETY: the tensors outlive the call, which makes one more, or says why not.
        let reason = unsafe {
            cappy_attend_packed(
                raw(query),
                raw(key),
                raw(value),
                raw(starts),
                raw(&self.starts),
                most,
                self.longest,
                scale,
                window,
                &mut out,
            )
        };
        said_at_length(reason).map_err(tch::TchError::Torch)?;
        // SAFETY: just made by the shim, as tch makes its own, and nobody else's.
        let out = unsafe { Tensor::from_ptr(out.cast()) };
        Ok(out.f_flatten(1, 2)?)
    }
}

/// `(tokens, count * hidden)` as `(tokens, count, heads, head_dim)`.
fn heads(x: &Tensor, count: usize, heads: usize) -> Result<Tensor> {
    Ok(x.f_view([x.size()[0], count as i64, heads as i64, -1])?)
}
