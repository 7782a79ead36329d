//! A batch's rows in padded groups, for attention that knows no packed rows.

use tch::{Device, Kind, Tensor};

use crate::engine::Result;
use crate::ragged::{Ragged, Take, join};

/// Rows of nearly equal lengths together.
pub struct Padded {
    /// The groups.
    pub ragged: Ragged,
    /// For each group: 0 for a row's own tokens, minus infinity for padding, `(rows, 1, 1, longest)`.
    pub masks: Vec<Option<Tensor>>,
    rows: Vec<Take>,
    back: Take,
}

impl Padded {
    /// Of rows of these lengths.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(lengths: &[usize], device: Device, kind: Kind) -> Result<Self> {
        let ragged = Ragged::new(lengths, device)?;
        let masks = ragged.groups.iter().map(|group| group.mask(kind, device)).collect::<Result<_>>()?;
        let mut back = vec![0; lengths.len()];
        let mut rows = Vec::with_capacity(ragged.groups.len());
        let mut place = 0;
        for group in &ragged.groups {
            let of_group: Vec<i64> = group.rows.iter().map(|&row| row as i64).collect();
            for &row in &group.rows {
                back[row] = place;
                place += 1;
            }
            rows.push(Take::new(&of_group, device)?);
        }
        Ok(Self { ragged, masks, rows, back: Take::new(&back, device)? })
    }

    /// The rows of a group of `x`, `(rows of all groups, width)`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn group(&self, group: usize, x: &Tensor) -> Result<Tensor> {
        self.rows[group].of(x)
    }

    /// The groups' `(rows, 1, width)` each, as `(rows of all groups, width)` in their order.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn joined(&self, groups: &[Tensor]) -> Result<Tensor> {
        join(groups, &self.back)
    }
}
