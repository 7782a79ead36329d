//! Attention of a padded group of rows and what surrounds it, in candle's operations; on a GPU with kernels of this plugin
//! (`kernels/cuda/attention.cu`), which are tested against those.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::groups::Group;
use super::tensors::Tensors;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::attention as kernels;

/// Which keys the queries of a group see.
pub(super) struct Seen {
    /// Added to scores, `(rows or 1, 1, longest or 1, longest)`; None where nothing is hidden, or kernels know it.
    mask: Option<Tensor>,
    /// What kernels need to know: tokens of each row, `(rows)`, and how far away keys may be.
    #[cfg(feature = "cuda")]
    limits: Option<(Tensor, Option<usize>)>,
}

impl Seen {
    /// A row's own tokens, and of them those at most `window` away.
    pub fn new(group: &Group<'_>, window: Option<usize>, tensors: &Tensors) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if tensors.own_kernels() {
            return Ok(Self { mask: None, limits: Some((group.lengths(&tensors.place)?, window)) });
        }
        let mask = match window {
            Some(window) => group.window_mask(window, &tensors.place)?,
            None => group.mask(&tensors.place)?,
        };
        Ok(Self {
            mask,
            #[cfg(feature = "cuda")]
            limits: None,
        })
    }

    /// The weights of keys from `scores`, `(rows, heads, queries, keys)`. Queries are the first ones of each row.
    fn weights(&self, scores: Tensor, tensors: &Tensors) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some((lengths, window)) = &self.limits {
            return kernels::softmax(&scores, lengths, *window);
        }
        let scores = match &self.mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        if tensors.whole_operations() { softmax_last_dim(&scores) } else { softmax(&scores) }
    }
}

/// Number and width of heads.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub count: usize,
    pub width: usize,
}

impl Tensors {
    /// Of `x`, `(rows, length, parts * heads * d)`, one part, times `scale`: `(rows, heads, length, d)`.
    pub fn heads(&self, x: &Tensor, part: usize, heads: Heads, scale: f64) -> Result<Tensor> {
        let Heads { count, width: d } = heads;
        #[cfg(feature = "cuda")]
        if self.own_kernels() && kernels::takes(x, d) {
            return kernels::split_heads(x, part * count * d, count, d, scale);
        }
        let (rows, length, width) = x.dims3()?;
        let x = x.reshape((rows, length, width / d, d))?.narrow(2, part * count, count)?;
        let x = x.transpose(1, 2)?.contiguous()?;
        if scale == 1.0 { Ok(x) } else { x * scale }
    }

    /// `values`, `(rows, heads, keys, d)`, weighted by the softmax of `scores`, `(rows, heads, queries, keys)`, over what
    /// is seen: `(rows, queries, heads * d)`.
    pub fn attend(&self, scores: Tensor, seen: &Seen, values: &Tensor) -> Result<Tensor> {
        let context = seen.weights(scores, self)?.matmul(values)?;
        let (rows, heads, queries, d) = context.dims4()?;
        #[cfg(feature = "cuda")]
        if self.own_kernels() && kernels::takes(&context, d) {
            return kernels::join_heads(&context);
        }
        context.transpose(1, 2)?.contiguous()?.reshape((rows, queries, heads * d))
    }

    /// `x`, `(rows, length, 2 * width)`: `gelu(first half) * second half`.
    pub fn gated(&self, x: &Tensor) -> Result<Tensor> {
        let width = x.dim(D::Minus1)? / 2;
        #[cfg(feature = "cuda")]
        if self.own_kernels() && kernels::takes(x, width) {
            return kernels::gated(x);
        }
        x.narrow(D::Minus1, 0, width)?.gelu_erf()? * x.narrow(D::Minus1, width, width)?
    }
}

/// Over the last dimension, of operations with a backward pass.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}
