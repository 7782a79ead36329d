//! Rows of a ragged batch that go through a network together.

use cappy_plugin_abi::RaggedTokens;
use cappy_plugin_models::encoder::pieces::pieces;
use tch::{Device, Kind, Tensor};

use crate::engine::Result;
use crate::ragged::{Ragged, Take, join};

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
pub fn by_length(all: RaggedTokens<'_>, mut rows: Vec<usize>, budget: usize) -> Vec<Vec<usize>> {
    rows.sort_by_key(|&row| all.row(row).len());
    let mut offsets = vec![0];
    for &row in &rows {
        offsets.push(offsets[offsets.len() - 1] + all.row(row).len() as u32);
    }
    pieces(&offsets, budget).into_iter().map(|range| rows[range].to_vec()).collect()
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
