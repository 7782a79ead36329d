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
    /// The same numbers on the device, `(heads, distances)`; minus infinity for what lies ahead, where nobody looks ahead.
    of_distance: Tensor,
    heads: usize,
    causal: bool,
    max_distance: usize,
    kind: Kind,
    device: Device,
}

impl Positions {
    /// Of the encoder, or of the decoder (`causal`), with `heads` heads.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(config: &Config, heads: usize, causal: bool, kind: Kind, device: Device) -> Result<Self> {
        let of_distance = Tensor::f_zeros([heads as i64, 0], (kind, device))?;
        let max_distance = config.max_distance;
        Ok(Self { bias: Bias::default(), of_distance, heads, causal, max_distance, kind, device })
    }

    /// Makes it cover rows of `length` positions; `table`: `[buckets, heads]`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn cover(&mut self, table: &[f32], length: usize) -> Result<()> {
        if length <= self.bias.reach() {
            return Ok(());
        }
        let (heads, max_distance) = (self.heads, self.max_distance);
        self.bias.cover(length, Buckets { table, heads, bidirectional: !self.causal, max_distance });
        let mut values = self.bias.values().to_vec();
        if self.causal {
            let ahead = self.bias.reach();
            values
                .chunks_exact_mut(self.bias.stride())
                .for_each(|head| head[ahead..].fill(f32::NEG_INFINITY));
        }
        let values = Tensor::f_from_slice(&values)?.f_view([heads as i64, -1])?;
        self.of_distance = values.f_to_kind(self.kind)?.f_to_device(self.device)?;
        Ok(())
    }

    /// For queries `queries` of whole rows of a group, which it covers: `(1 or rows, heads, queries, longest)`.
    pub fn of(&self, group: &Group, queries: Range<usize>) -> Result<Tensor> {
        let (length, count) = (group.longest as i64, queries.len() as i64);
        // The distances from the last query to the first key up to those from the first query to the last key; each query
        // sees a window of them, the last one the first window.
        let first = self.bias.reach() as i64 - queries.end as i64;
        let distances = self.of_distance.f_narrow(1, first, count + length - 1)?;
        let biases = distances.f_unfold(1, length, 1)?.f_flip([1])?.f_unsqueeze(0)?;
        // Who looks back only sees no padding, which is behind.
        match group.mask(self.kind, self.device)? {
            Some(mask) if !self.causal => Ok(biases.f_add(&mask)?),
            _ => Ok(biases),
        }
    }

    /// For a query that sees `length` positions, its own the last, which it covers: `(1, heads, 1, length)`.
    pub fn last(&self, length: usize) -> Result<Tensor> {
        let first = (self.bias.reach() - length) as i64;
        let distances = self.of_distance.f_narrow(1, first, length as i64)?;
        Ok(distances.f_unsqueeze(1)?.f_unsqueeze(0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_those_of_the_distances() {
        let config =
            Config::parse(r#"{"num_heads": 2, "relative_attention_max_distance": 20}"#).expect("config");
        let table: Vec<f32> = (0..64).map(|i| i as f32).collect();
        for causal in [false, true] {
            let mut positions =
                Positions::new(&config, 2, causal, Kind::Float, Device::Cpu).expect("positions");
            positions.cover(&table, 11).expect("covered");
            let group = Group { rows: vec![0], lengths: vec![9], longest: 9 };
            for queries in [0..9, 0..1, 3..7] {
                let biases = positions.of(&group, queries.clone()).expect("biases");
                assert_eq!(biases.size(), [1, 2, queries.len() as i64, 9]);
                for (i, query) in queries.enumerate() {
                    for (head, key) in (0..2).flat_map(|head| (0..9).map(move |key| (head, key))) {
                        let found = biases.double_value(&[0, head as i64, i as i64, key as i64]);
                        let wanted = if causal && key > query {
                            f64::NEG_INFINITY
                        } else {
                            positions.bias.row(head, query)[key].into()
                        };
                        assert_eq!(found, wanted, "head {head}, query {query}, key {key}");
                    }
                }
            }
            let last = positions.last(7).expect("biases");
            assert_eq!(last.size(), [1, 2, 1, 7]);
            for (head, key) in (0..2).flat_map(|head| (0..7).map(move |key| (head, key))) {
                let found = last.double_value(&[0, head as i64, 0, key as i64]);
                assert_eq!(found, f64::from(positions.bias.row(head, 6)[key]));
            }
        }
    }
}
