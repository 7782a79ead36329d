//! Biases of relative positions, as the masks that attention adds to its scores.

use std::ops::Range;

use cappy_plugin_models::t5::bias::{Bias, Buckets};
use cappy_plugin_models::t5::config::Config;
use tch::{Device, Kind, Tensor};

use crate::engine::Result;
use crate::ragged::Group;

/// Biases of one stack, for the heads of a rank.
pub struct Positions {
    bias: Bias,
    heads: usize,
    causal: bool,
    max_distance: usize,
    kind: Kind,
    device: Device,
}

impl Positions {
    /// Of the encoder, or of the decoder (`causal`), with `heads` heads.
    pub fn new(config: &Config, heads: usize, causal: bool, kind: Kind, device: Device) -> Self {
        Self { bias: Bias::default(), heads, causal, max_distance: config.max_distance, kind, device }
    }

    /// Makes it cover rows of `length` positions; `table`: `[buckets, heads]`.
    pub fn cover(&mut self, table: &[f32], length: usize) {
        let (heads, max_distance) = (self.heads, self.max_distance);
        self.bias.cover(length, Buckets { table, heads, bidirectional: !self.causal, max_distance });
    }

    /// For queries `queries` of whole rows of a group, which it covers: `(1 or rows, heads, queries, longest)`.
    pub fn of(&self, group: &Group, queries: Range<usize>) -> Result<Tensor> {
        let length = group.longest;
        let mut values = Vec::with_capacity(self.heads * queries.len() * length);
        for head in 0..self.heads {
            for query in queries.clone() {
                let row = &self.bias.row(head, query)[..length];
                let seen = if self.causal { query + 1 } else { length };
                values.extend_from_slice(&row[..seen]);
                values.extend(std::iter::repeat_n(f32::NEG_INFINITY, length - seen));
            }
        }
        let biases = self.tensor(&values, length)?;
        // Who looks back only sees no padding, which is behind.
        match group.mask(self.kind, self.device)? {
            Some(mask) if !self.causal => Ok(biases.f_add(&mask)?),
            _ => Ok(biases),
        }
    }

    /// For a query that sees `length` positions, its own the last, which it covers: `(1, heads, 1, length)`.
    pub fn last(&self, length: usize) -> Result<Tensor> {
        let values: Vec<f32> =
            (0..self.heads).flat_map(|head| self.bias.row(head, length - 1)[..length].to_vec()).collect();
        self.tensor(&values, length)
    }

    fn tensor(&self, values: &[f32], keys: usize) -> Result<Tensor> {
        let shape = [1, self.heads as i64, -1, keys as i64];
        Ok(Tensor::f_from_slice(values)?.f_view(shape)?.f_to_kind(self.kind)?.f_to_device(self.device)?)
    }
}
