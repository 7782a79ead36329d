//! Sums of gradients over the ranks, in buckets that overlap the backward pass.

use std::sync::Arc;

use cappy_plugin_abi::{Control, Failure};
use tch::Tensor;

use super::Ranks;
use super::ffi::Buckets;

/// Bytes of a bucket: large enough for the network, small enough that the first leaves early (as PyTorch's DDP).
const BUCKET_BYTES: usize = 25 * 1024 * 1024;

/// The gradients of a list of parameters, which every rank has in the same order.
///
/// Each rank weights its loss so that the sum over ranks is what one rank alone would have computed; the sum is all
/// that happens here. Call [`Gradients::arm`] before the last backward pass of an update and [`Gradients::sum`] after
/// it. Gradients are taken from the last parameter to the first, as a backward pass makes them. Source: Li et al.,
/// PyTorch Distributed, arXiv 2006.15704, section 3.2.
pub struct Gradients {
    ranks: Arc<Ranks>,
    buckets: Buckets,
}

impl Gradients {
    /// Puts hooks on the parameters: leaves that require a gradient, in f32.
    ///
    /// # Errors
    /// `Internal` when one cannot have a hook; `PeerLost` when the group has ended.
    pub fn new(ranks: &Arc<Ranks>, parameters: &[Tensor]) -> Result<Self, Failure> {
        let (order, sizes) = plan(&parameters.iter().map(bytes).collect::<Vec<_>>(), BUCKET_BYTES);
        let buckets =
            ranks.connected(|connections| Buckets::open(connections, parameters, &order, &sizes))?;
        Ok(Self { ranks: Arc::clone(ranks), buckets })
    }

    /// From now on, until [`Gradients::sum`], each bucket is sent as soon as its last gradient has been accumulated.
    /// One backward pass may follow, or none on a rank that has no rows.
    pub fn arm(&mut self) {
        self.buckets.arm();
    }

    /// Sends what has not been sent, waits, and puts the sums in place of the gradients; every rank then has the
    /// same. Of a parameter that has a gradient on some ranks, the others count as zeros; one that has none anywhere
    /// stays without. Returns how many buckets had left during the backward pass.
    ///
    /// # Errors
    /// `Cancelled`; `PeerLost` naming who is gone; `Internal` when a bucket could not be sent.
    pub fn sum(&mut self, control: &dyn Control) -> Result<usize, Failure> {
        let sent = self.ranks.connected(|_| self.buckets.flush())?;
        for bucket in 0..self.buckets.count() {
            self.ranks.wait(&self.buckets.work(bucket), control)?;
            self.buckets.take(bucket).map_err(super::internal)?;
        }
        self.buckets.reset();
        Ok(sent)
    }
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// Indices from the last to the first, and how many of them each bucket takes: buckets are full when they reach
/// `limit` bytes.
fn plan(bytes: &[usize], limit: usize) -> (Vec<usize>, Vec<usize>) {
    let order: Vec<usize> = (0..bytes.len()).rev().collect();
    let (mut sizes, mut filled) = (Vec::new(), limit);
    for &index in &order {
        if filled >= limit {
            sizes.push(0);
            filled = 0;
        }
        *sizes.last_mut().expect("the first bucket was just opened") += 1;
        filled += bytes[index];
    }
    (order, sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_filled_from_the_last_parameter() {
        for (bytes, sizes) in [
            (vec![4, 4, 4, 4, 4], vec![3, 2]),
            (vec![1, 50, 1], vec![2, 1]),
            (vec![10], vec![1]),
            (vec![], vec![]),
        ] {
            let (order, found) = plan(&bytes, 10);
            assert_eq!((found, order.len()), (sizes, bytes.len()));
            assert!(order.windows(2).all(|pair| pair[0] == pair[1] + 1));
        }
    }
}
