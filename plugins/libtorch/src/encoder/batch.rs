//! Rows of a ragged batch that go through a network together.

use std::ops::Range;

use cappy_plugin_abi::RaggedTokens;
use cappy_plugin_models::encoder::pieces::pieces;
use tch::{Device, Kind, Tensor};

use crate::engine::Result;
use crate::t5::ragged::{Ragged, Take, join};

/// Some rows of a ragged batch, one after the other, and how they are padded for attention.
pub struct Batch<'a> {
    all: RaggedTokens<'a>,
    /// Indices of the rows in the whole batch.
    pub rows: &'a [usize],
    /// Padded groups of these rows.
    pub ragged: Ragged,
    /// For each group: 0 for a row's own tokens, minus infinity for padding, `(rows, 1, 1, longest)`.
    pub masks: Vec<Option<Tensor>>,
    /// Where tensors are.
    pub device: Device,
    /// What is computed in.
    pub kind: Kind,
    firsts: Take,
    groups: Vec<Take>,
    back: Take,
}

/// Indices of some rows, short ones first, in batches of at most `budget` tokens (a longer row alone).
pub fn by_length(all: RaggedTokens<'_>, rows: Range<usize>, budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = rows.collect();
    order.sort_by_key(|&row| all.row(row).len());
    let mut offsets = vec![0];
    for &row in &order {
        offsets.push(offsets[offsets.len() - 1] + all.row(row).len() as u32);
    }
    pieces(&offsets, budget).into_iter().map(|range| order[range].to_vec()).collect()
}

impl<'a> Batch<'a> {
    /// The given rows, at least one.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(all: RaggedTokens<'a>, rows: &'a [usize], device: Device, kind: Kind) -> Result<Self> {
        let lengths: Vec<usize> = rows.iter().map(|&row| all.row(row).len()).collect();
        let ragged = Ragged::new(&lengths, device)?;
        let masks = ragged.groups.iter().map(|group| group.mask(kind, device)).collect::<Result<_>>()?;
        let mut firsts = Vec::with_capacity(rows.len());
        let mut at = 0;
        for &length in &lengths {
            firsts.push(at);
            at += length as i64;
        }
        let mut back = vec![0; rows.len()];
        let mut groups = Vec::with_capacity(ragged.groups.len());
        let mut place = 0;
        for group in &ragged.groups {
            let rows: Vec<i64> = group.rows.iter().map(|&row| row as i64).collect();
            for &row in &group.rows {
                back[row] = place;
                place += 1;
            }
            groups.push(Take::new(&rows, device)?);
        }
        Ok(Self {
            firsts: Take::new(&firsts, device)?,
            back: Take::new(&back, device)?,
            all,
            rows,
            ragged,
            masks,
            device,
            kind,
            groups,
        })
    }

    /// The tokens of row `i` of these.
    pub fn row(&self, i: usize) -> &'a [u32] {
        self.all.row(self.rows[i])
    }

    /// The tokens of all rows, one after the other.
    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.rows.len()).flat_map(|i| self.row(i).iter().copied())
    }

    /// The index of each token in the whole batch.
    pub fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.rows.iter().flat_map(|&row| self.all.offsets[row] as usize..self.all.offsets[row + 1] as usize)
    }

    /// The index of each row's first token in the whole batch.
    pub fn first_places(&self) -> impl Iterator<Item = usize> + '_ {
        self.rows.iter().map(|&row| self.all.offsets[row] as usize)
    }

    /// The segment of each token, where a model has several.
    pub fn segments(&self, several: bool) -> impl Iterator<Item = usize> + '_ {
        self.places().map(move |place| match several {
            true => self.all.type_ids.get(place).copied().unwrap_or(0).into(),
            false => 0,
        })
    }

    /// Indices on the device, `(n)`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn indices(&self, of: impl Iterator<Item = usize>) -> Result<Tensor> {
        let of: Vec<i64> = of.map(|i| i as i64).collect();
        Ok(Tensor::f_from_slice(&of)?.f_to_device(self.device)?)
    }

    /// First tokens of `x`, `(tokens, width)`: `(rows, width)`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn firsts(&self, x: &Tensor) -> Result<Tensor> {
        self.firsts.of(x)
    }

    /// The rows of a group of `x`, `(rows of all groups, width)`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn group(&self, group: usize, x: &Tensor) -> Result<Tensor> {
        self.groups[group].of(x)
    }

    /// The groups' `(rows, 1, width)` each, as `(rows of all groups, width)` in their order.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn joined(&self, groups: &[Tensor]) -> Result<Tensor> {
        join(groups, &self.back)
    }
}
