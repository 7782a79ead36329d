//! Rows of a ragged batch that go through a network together.

use std::sync::OnceLock;

use cappy_plugin_abi::RaggedTokens;
use tch::{Device, Kind, Tensor};

use super::packed::{self, Packed};
use super::padded::Padded;
use crate::engine::Result;
use crate::ragged::{Take, blocks, starts};

/// Some rows of a ragged batch, one after the other, and how attention takes them.
pub struct Batch<'a> {
    all: RaggedTokens<'a>,
    /// Indices of the rows in the whole batch.
    pub rows: &'a [usize],
    /// Where tensors are.
    pub device: Device,
    /// What is computed in.
    pub kind: Kind,
    lengths: Vec<usize>,
    firsts: Take,
    padded: OnceLock<Padded>,
    packed: Option<Packed>,
}

/// Indices of some rows, short ones first, in batches of at most `budget` tokens (a longer row alone).
pub fn by_length(all: RaggedTokens<'_>, mut rows: Vec<usize>, budget: usize) -> Vec<Vec<usize>> {
    rows.sort_by_key(|&row| all.row(row).len());
    let lengths: Vec<usize> = rows.iter().map(|&row| all.row(row).len()).collect();
    blocks(&lengths, budget).into_iter().map(|range| rows[range].to_vec()).collect()
}

/// The rows that rank `rank` of `world` computes: of nearly as many tokens as any other rank's, as they wait for each
/// other. Long rows are dealt first, each to whoever has the fewest tokens.
pub fn share(all: RaggedTokens<'_>, rank: usize, world: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..all.rows()).collect();
    order.sort_by_key(|&row| std::cmp::Reverse(all.row(row).len()));
    let (mut tokens, mut own) = (vec![0; world], Vec::new());
    for row in order {
        let least = (0..world).min_by_key(|&rank| tokens[rank]).expect("a world has ranks");
        tokens[least] += all.row(row).len();
        if least == rank {
            own.push(row);
        }
    }
    own
}

impl<'a> Batch<'a> {
    /// The given rows, at least one.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(all: RaggedTokens<'a>, rows: &'a [usize], device: Device, kind: Kind) -> Result<Self> {
        let lengths: Vec<usize> = rows.iter().map(|&row| all.row(row).len()).collect();
        let firsts: Vec<i64> = starts(&lengths)[..rows.len()].iter().map(|&start| start.into()).collect();
        let firsts = Take::new(&firsts, device)?;
        let packed = packed::at_hand(device, kind).then(|| Packed::new(&lengths, device)).transpose()?;
        Ok(Self { all, rows, device, kind, lengths, firsts, padded: OnceLock::new(), packed })
    }

    /// The rows as they lie, where attention can take them so.
    pub fn packed(&self) -> Option<&Packed> {
        self.packed.as_ref()
    }

    /// The rows in padded groups.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn padded(&self) -> Result<&Padded> {
        if let Some(padded) = self.padded.get() {
            return Ok(padded);
        }
        let padded = Padded::new(&self.lengths, self.device, self.kind)?;
        Ok(self.padded.get_or_init(|| padded))
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::TokenRows;

    #[test]
    fn shares_are_alike_and_cover_all_rows() {
        let mut rows = TokenRows::new();
        for length in [7, 100, 3, 90, 50, 55, 8, 60, 2] {
            rows.push(&vec![1; length]);
        }
        let all = rows.view();
        for world in 1..=10 {
            let shares: Vec<_> = (0..world).map(|rank| share(all, rank, world)).collect();
            let mut covered: Vec<usize> = shares.concat();
            covered.sort_unstable();
            assert_eq!(covered, (0..9).collect::<Vec<_>>(), "{world}");
            assert_eq!(
                shares.iter().filter(|share| share.is_empty()).count(),
                world.saturating_sub(9),
                "{world}"
            );
        }
        let tokens = |rows: &[usize]| rows.iter().map(|&row| all.row(row).len()).sum::<usize>();
        let pair = [0, 1].map(|rank| tokens(&share(all, rank, 2)));
        assert!(pair[0].abs_diff(pair[1]) < 30, "{pair:?}");
    }

    #[test]
    fn batches_hold_every_row_once_within_the_budget() {
        let mut rows = TokenRows::new();
        (0..50).for_each(|i| rows.push(&vec![1; 1 + i * 7 % 40]));
        let batches = by_length(rows.view(), (0..50).collect(), 100);
        let lengths: Vec<usize> = batches.concat().iter().map(|&row| rows.view().row(row).len()).collect();
        assert!(lengths.is_sorted() && lengths.len() == 50);
        assert!(
            batches.iter().all(|b| b.iter().map(|&row| rows.view().row(row).len()).sum::<usize>() <= 100)
        );
    }
}
