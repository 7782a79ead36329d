//! Rows that go through a plain path together: of nearly equal length, padded to the longest.

use std::cmp::Reverse;

use candle_core::{DType, Result, Tensor};
use cappy_plugin_abi::RaggedTokens;

use crate::place::Place;

/// Tokens of a group with its padding: enough for a GPU's products, few enough that activations stay small.
const GROUP_TOKENS: usize = 16 << 10;
/// Attention weights of one layer of a group, 256 MiB in bf16.
const GROUP_WEIGHTS: usize = 1 << 27;
/// Padding that costs less than one group more would: the launches of its kernels.
const FREE_PADDING: usize = 1024;
/// Beyond it, one token in so many may be padding.
const PADDING_SHARE: usize = 8;

/// Added to the attention scores of what is not seen: the softmax makes it exactly zero, and it is within f16's range.
/// Not infinite, as a padding token may see nothing.
const UNSEEN: f64 = -3e4;

/// Indices of all rows, long ones first, in groups that are computed together. A row over the limits is alone.
pub(super) fn groups(lengths: &[usize], heads: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| Reverse(lengths[row]));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut padding = 0;
    for row in order {
        if let Some(group) = groups.last_mut() {
            let longest = lengths[group[0]];
            let tokens = (group.len() + 1) * longest;
            let more = padding + longest - lengths[row];
            if tokens <= GROUP_TOKENS
                && tokens * longest * heads <= GROUP_WEIGHTS
                && more <= FREE_PADDING.max(tokens / PADDING_SHARE)
            {
                group.push(row);
                padding = more;
                continue;
            }
        }
        groups.push(vec![row]);
        padding = 0;
    }
    groups
}

/// Some rows of a batch, as a rectangle.
pub(super) struct Group<'a> {
    batch: RaggedTokens<'a>,
    rows: &'a [usize],
    /// Tokens of the longest row.
    pub longest: usize,
}

impl<'a> Group<'a> {
    /// `rows`: at least one.
    pub fn new(batch: RaggedTokens<'a>, rows: &'a [usize]) -> Self {
        let longest = rows.iter().map(|&row| batch.row(row).len()).max().expect("a group has rows");
        Self { batch, rows, longest }
    }

    /// The shape of its hidden states.
    pub fn shape(&self, width: usize) -> (usize, usize, usize) {
        (self.rows.len(), self.longest, width)
    }

    /// A number for each token, given row by row, `(rows * longest)`; 0 for padding.
    pub fn numbers<I: Iterator<Item = u32>>(&self, of: impl Fn(&'a [u32]) -> I) -> Vec<u32> {
        self.padded(|row| of(self.batch.row(row)))
    }

    /// Token ids, `(rows * longest)`.
    pub fn ids(&self) -> Vec<u32> {
        self.numbers(|tokens| tokens.iter().copied())
    }

    /// Segments, `(rows * longest)`, of a model that knows `segments` of them.
    pub fn segments(&self, segments: usize) -> Vec<u32> {
        self.padded(|row| {
            let tokens = self.batch.offsets[row] as usize..self.batch.offsets[row + 1] as usize;
            tokens.map(move |token| match segments {
                0 | 1 => 0,
                _ => self.batch.type_ids.get(token).copied().unwrap_or(0).into(),
            })
        })
    }

    fn padded<I: Iterator<Item = u32>>(&self, of: impl Fn(usize) -> I) -> Vec<u32> {
        let mut out = Vec::with_capacity(self.rows.len() * self.longest);
        for (i, &row) in self.rows.iter().enumerate() {
            out.extend(of(row));
            out.resize((i + 1) * self.longest, 0);
        }
        out
    }

    /// 1 for a token and 0 for padding, `(rows, longest)` in f32; None where nothing is padded.
    fn tokens(&self, place: &Place) -> Result<Option<Tensor>> {
        if self.rows.iter().all(|&row| self.batch.row(row).len() == self.longest) {
            return Ok(None);
        }
        let ones = self.numbers(|tokens| tokens.iter().map(|_| 1));
        Tensor::from_vec(ones, (self.rows.len(), self.longest), &place.device)?.to_dtype(DType::F32).map(Some)
    }

    /// Tokens of each row, `(rows)`.
    #[cfg(feature = "cuda")]
    pub fn lengths(&self, place: &Place) -> Result<Tensor> {
        let lengths = self.rows.iter().map(|&row| self.batch.row(row).len() as u32).collect::<Vec<_>>();
        Tensor::from_vec(lengths, self.rows.len(), &place.device)
    }

    /// What is added to attention scores so that padding is not seen, `(rows, 1, 1, longest)`.
    pub fn mask(&self, place: &Place) -> Result<Option<Tensor>> {
        let Some(tokens) = self.tokens(place)? else { return Ok(None) };
        let mask = tokens.affine(-UNSEEN, UNSEEN)?.to_dtype(place.dtype)?;
        mask.reshape((self.rows.len(), 1, 1, self.longest)).map(Some)
    }

    /// As [`Group::mask`], and that tokens see only those at most `window` away, `(rows or 1, 1, longest, longest)`.
    pub fn window_mask(&self, window: usize, place: &Place) -> Result<Option<Tensor>> {
        let padding = self.mask(place)?;
        if self.longest <= window + 1 {
            return Ok(padding);
        }
        let n = self.longest;
        let positions = Tensor::arange(0_u32, n as u32, &place.device)?.to_dtype(DType::F32)?;
        let distances = positions.reshape((n, 1))?.broadcast_sub(&positions.reshape((1, n))?)?.abs()?;
        let far = distances.gt(window as f64)?.to_dtype(DType::F32)?.affine(UNSEEN, 0.0)?;
        let far = far.to_dtype(place.dtype)?.reshape((1, 1, n, n))?;
        match padding {
            Some(padding) => far.broadcast_add(&padding).map(Some),
            None => Ok(Some(far)),
        }
    }

    /// `x`, `(rows, longest, width)`, with zeros for padding.
    pub fn without_padding(&self, x: &Tensor, place: &Place) -> Result<Tensor> {
        let Some(tokens) = self.tokens(place)? else { return Ok(x.clone()) };
        x.broadcast_mul(&tokens.to_dtype(x.dtype())?.unsqueeze(2)?)
    }

    /// The mean of each row's tokens of `x`, `(rows, longest, width)`: `(rows, width)` in f32.
    pub fn mean(&self, x: &Tensor, place: &Place) -> Result<Tensor> {
        let parts: Vec<f32> = self
            .rows
            .iter()
            .flat_map(|&row| {
                let count = self.batch.row(row).len();
                let part = (count as f32).recip();
                (0..self.longest).map(move |i| if i < count { part } else { 0.0 })
            })
            .collect();
        let parts = Tensor::from_vec(parts, (self.rows.len(), 1, self.longest), &place.device)?;
        parts.matmul(&x.to_dtype(DType::F32)?)?.squeeze(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::TokenRows;
    use cappy_plugin_abi::random::{fold, mix};

    fn tokens(lengths: &[usize], group: &[usize]) -> (usize, usize) {
        let longest = group.iter().map(|&row| lengths[row]).max().unwrap();
        (group.len() * longest, group.iter().map(|&row| longest - lengths[row]).sum())
    }

    #[test]
    fn groups_hold_every_row_once_within_the_limits() {
        for (count, longest) in [(0, 10), (1, 9000), (7, 40), (500, 512), (3000, 90), (40, 8192)] {
            let lengths: Vec<usize> =
                (0..count).map(|row| (fold(mix(count), row) % longest) as usize + 1).collect();
            let groups = groups(&lengths, 16);
            let mut rows = groups.concat();
            rows.sort_unstable();
            assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>(), "{count} rows");
            for group in groups.iter().filter(|group| group.len() > 1) {
                let (tokens, padding) = tokens(&lengths, group);
                assert!(tokens <= GROUP_TOKENS && tokens * lengths[group[0]] * 16 <= GROUP_WEIGHTS);
                assert!(padding <= FREE_PADDING.max(tokens / PADDING_SHARE), "{padding} of {tokens}");
            }
        }
    }

    /// Rows of the benchmark's lengths need few groups, and little of them is padding.
    #[test]
    fn many_rows_are_padded_little() {
        let lengths: Vec<usize> = (0..2048).map(|row| 12 + (fold(3, row) % 300) as usize).collect();
        let groups = groups(&lengths, 16);
        let (all, padding) = groups
            .iter()
            .map(|group| tokens(&lengths, group))
            .fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        assert!(padding * 12 < all, "{padding} of {all}");
        assert!(groups.len() <= 40, "{} groups", groups.len());
    }

    #[test]
    fn a_rectangle_has_its_numbers_where_tokens_are() {
        let mut rows = TokenRows::new();
        [&[5_u32, 6, 7][..], &[8], &[9, 10]].iter().for_each(|row| rows.push(row));
        rows.type_ids = vec![0, 1, 1, 1, 0, 1];
        let group = Group::new(rows.view(), &[1, 0]);
        assert_eq!(group.ids(), [8, 0, 0, 5, 6, 7]);
        assert_eq!(group.segments(2), [1, 0, 0, 0, 1, 1]);
        assert_eq!(group.segments(1), [0; 6]);
        let place = Place::from(candle_core::Device::Cpu);
        let flat = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let unseen = UNSEEN as f32;
        assert_eq!(flat(group.mask(&place).unwrap().unwrap()), [0.0, unseen, unseen, 0.0, 0.0, 0.0]);
        let of_second = &flat(group.window_mask(1, &place).unwrap().unwrap())[9..];
        assert_eq!(of_second, [0.0, 0.0, unseen, 0.0, 0.0, 0.0, unseen, 0.0, 0.0]);
        let x = Tensor::arange(1_f32, 7.0, &place.device).unwrap().reshape((2, 3, 1)).unwrap();
        assert_eq!(flat(group.mean(&x, &place).unwrap()), [1.0, 5.0]);
        assert_eq!(flat(group.without_padding(&x, &place).unwrap()), [1.0, 0.0, 0.0, 4.0, 5.0, 6.0]);
        assert!(Group::new(rows.view(), &[0]).mask(&place).unwrap().is_none(), "nothing is padded");
    }
}
