//! What a forward pass knows beside the network: its rows, and which numbers are dropped.

use cappy_plugin_abi::random::fold;
use cappy_plugin_abi::{Control, Failure};
use cappy_plugin_models::dropout::{Dropout, Site};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::batch::Batch;
use super::masks;
use crate::engine::Result;
use crate::ragged::Group;
use crate::weights::filled;

/// Rows of a mask that one task makes.
const ROWS: usize = 32;

/// Which of the batch's rows of numbers a tensor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// One for each token.
    Tokens,
    /// One for each first token; dropped as among all tokens.
    FirstTokens,
    /// One for each row.
    Rows,
}

/// One forward pass.
pub struct Pass<'a> {
    /// Its rows.
    pub batch: &'a Batch<'a>,
    /// Set in training.
    dropout: Option<Dropout>,
    /// Whether it shall end.
    control: &'a dyn Control,
}

impl<'a> Pass<'a> {
    /// A pass that drops nothing.
    pub fn scoring(batch: &'a Batch<'a>, control: &'a dyn Control) -> Self {
        Self { batch, dropout: None, control }
    }

    /// A pass whose masks depend on the dropout's key and on places in the whole batch alone.
    pub fn training(batch: &'a Batch<'a>, dropout: Dropout, control: &'a dyn Control) -> Self {
        Self { batch, dropout: dropout.active().then_some(dropout), control }
    }

    /// Whether any numbers are dropped.
    pub fn drops(&self) -> bool {
        self.dropout.is_some()
    }

    /// To be called now and then.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn go_on(&self) -> Result<()> {
        if self.control.cancelled() {
            return Err(Failure::cancelled("the call was cancelled").into());
        }
        Ok(())
    }

    /// `x`, `(n, width)`, with dropout.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn drop(&self, x: Tensor, site: Site, of: Of) -> Result<Tensor> {
        let Some(dropout) = self.dropout else { return Ok(x) };
        let keys: Vec<usize> = match of {
            Of::Tokens => self.batch.places().collect(),
            Of::FirstTokens => self.batch.first_places().collect(),
            Of::Rows => self.batch.rows.to_vec(),
        };
        self.apply(dropout, x, site, &keys)
    }

    /// `x`, `(n, width)`, with dropout of a table's rows from `first` on.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn drop_table(&self, x: Tensor, site: Site, first: usize) -> Result<Tensor> {
        let Some(dropout) = self.dropout else { return Ok(x) };
        let keys: Vec<usize> = (first..first + x.size()[0] as usize).collect();
        self.apply(dropout, x, site, &keys)
    }

    fn apply(&self, dropout: Dropout, x: Tensor, site: Site, keys: &[usize]) -> Result<Tensor> {
        let (site, width) = (dropout.site(site), x.size()[1] as usize);
        let mask = self.mask(dropout, &[keys.len(), width], |row| (fold(site, keys[row] as u64), width))?;
        Ok(x.f_mul(&mask)?)
    }

    /// What the attention weights of a group are multiplied with, `(rows, heads, queries, longest)`; None: nothing is
    /// dropped. Queries are the first ones of each row.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn attention_mask(
        &self,
        layer: usize,
        group: &Group,
        heads: usize,
        queries: usize,
    ) -> Result<Option<Tensor>> {
        let Some(dropout) = self.dropout else { return Ok(None) };
        let site = dropout.site(Site::Attention(layer));
        let shape = [group.rows.len(), heads, queries, group.longest];
        let mask = self.mask(dropout, &shape, |line| {
            let (row, head, query) = (line / queries / heads, line / queries % heads, line % queries);
            let row_key = fold(site, self.batch.rows[group.rows[row]] as u64);
            (fold(fold(row_key, head as u64), query as u64), group.lengths[row])
        });
        mask.map(Some)
    }

    /// A tensor of factors, `shape`: line by line, of the last dimension, by the key of each. What lies behind a line's
    /// length is padding, whose factors nobody sees.
    fn mask(
        &self,
        dropout: Dropout,
        shape: &[usize],
        line: impl Fn(usize) -> (u64, usize) + Sync,
    ) -> Result<Tensor> {
        let (width, device) = (shape[shape.len() - 1], self.batch.device);
        if device != Device::Cpu {
            let lines = shape[..shape.len() - 1].iter().product();
            let keys: Vec<u64> = (0..lines).map(|i| line(i).0).collect();
            let size: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            return Ok(masks::on_device(dropout, &keys, width, device)?.f_view(size.as_slice())?);
        }
        filled(shape, device, Kind::Float, |to| {
            to.par_chunks_mut(ROWS * width).enumerate().for_each(|(chunk, lines)| {
                lines.fill(1.0);
                for (i, factors) in lines.chunks_exact_mut(width).enumerate() {
                    let (key, length) = line(chunk * ROWS + i);
                    dropout.apply(&mut factors[..length], key);
                }
            });
            Ok(())
        })
    }
}
