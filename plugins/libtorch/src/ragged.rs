//! Rows of different lengths, which lie packed one after the other, as the few padded batches that attention takes.

use cappy_plugin_models::encoder::pieces::pieces;
use tch::{Device, Kind, Tensor};

use crate::engine::Result;

/// How rows are grouped.
#[derive(Clone, Copy)]
struct Limits {
    /// A group with padding has at most so many positions (rows * longest^2): a mask of its own, for each row and head, is
    /// small beside the activations.
    masked: usize,
    /// So many tokens of padding are free, whatever they are padding for.
    padding: usize,
}

impl Limits {
    const CPU: Self = Self { masked: 1 << 18, padding: 0 };
    /// Where every group costs kernels to be launched.
    const GPU: Self = Self { masked: 1 << 22, padding: 2048 };

    fn of(device: Device) -> Self {
        if device == Device::Cpu { Self::CPU } else { Self::GPU }
    }
}

/// Rows that are padded to one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Their indices.
    pub rows: Vec<usize>,
    /// Of each.
    pub lengths: Vec<usize>,
    /// The longest.
    pub longest: usize,
}

impl Group {
    /// Whether any row is shorter than the longest.
    pub fn padded(&self) -> bool {
        self.lengths.iter().any(|&length| length < self.longest)
    }

    /// `(rows, 1, 1, longest)`: 0 for a row's own positions, minus infinity for padding; None without padding.
    pub fn mask(&self, kind: Kind, device: Device) -> Result<Option<Tensor>> {
        if !self.padded() {
            return Ok(None);
        }
        let values: Vec<f32> = self
            .lengths
            .iter()
            .flat_map(|&length| {
                (0..self.longest).map(move |i| if i < length { 0.0 } else { f32::NEG_INFINITY })
            })
            .collect();
        let shape = [self.rows.len() as i64, 1, 1, self.longest as i64];
        Ok(Some(Tensor::f_from_slice(&values)?.f_view(shape)?.f_to_kind(kind)?.f_to_device(device)?))
    }
}

/// Groups of rows of nearly equal lengths: padding is at most an eighth of a group's tokens, or what is free.
fn groups(lengths: &[usize], limits: Limits) -> Vec<Group> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| lengths[row]);
    let mut made: Vec<Group> = Vec::new();
    let mut tokens = 0;
    for row in order {
        let length = lengths[row];
        if let Some(group) = made.last_mut() {
            let rows = group.rows.len() + 1;
            let padding = rows * length - tokens - length;
            let fits = 8 * padding <= tokens + length || padding <= limits.padding;
            if length == group.longest && !group.padded() || fits && rows * length * length <= limits.masked {
                group.rows.push(row);
                group.lengths.push(length);
                group.longest = length;
                tokens += length;
                continue;
            }
        }
        made.push(Group { rows: vec![row], lengths: vec![length], longest: length });
        tokens = length;
    }
    made
}

/// Which rows of a tensor are taken, in which order.
pub enum Take {
    /// Neighbours, without a copy.
    Run {
        /// First.
        first: i64,
        /// How many.
        count: i64,
    },
    /// Any.
    Rows(Tensor),
}

impl Take {
    /// Takes `rows`.
    pub fn new(rows: &[i64], device: Device) -> Result<Self> {
        let first = rows.first().copied().unwrap_or(0);
        if rows.iter().zip(first..).all(|(&row, run)| row == run) {
            return Ok(Self::Run { first, count: rows.len() as i64 });
        }
        Ok(Self::Rows(Tensor::f_from_slice(rows)?.f_to_device(device)?))
    }

    /// These rows of `x`.
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Run { first, count } => x.f_narrow(0, *first, *count)?,
            Self::Rows(rows) => x.f_index_select(0, rows)?,
        })
    }
}

/// How packed rows become padded groups, and back.
pub struct Ragged {
    /// In order of length.
    pub groups: Vec<Group>,
    /// For each group the packed tokens at its padded places.
    takes: Vec<Take>,
    /// For each packed token its place in all groups' padded places, one after the other.
    back: Take,
}

impl Ragged {
    /// Of rows of these lengths.
    pub fn new(lengths: &[usize], device: Device) -> Result<Self> {
        let starts = starts(lengths);
        let groups = groups(lengths, Limits::of(device));
        let mut back = vec![0; lengths.iter().sum()];
        let mut takes = Vec::with_capacity(groups.len());
        let mut place = 0;
        for group in &groups {
            let mut rows = Vec::with_capacity(group.rows.len() * group.longest);
            for (&row, &length) in group.rows.iter().zip(&group.lengths) {
                for position in 0..group.longest {
                    // Padding repeats the row's last token, which nobody sees.
                    rows.push(i64::from(starts[row]) + position.min(length - 1) as i64);
                    if position < length {
                        back[starts[row] as usize + position] = place;
                    }
                    place += 1;
                }
            }
            takes.push(Take::new(&rows, device)?);
        }
        Ok(Self { groups, takes, back: Take::new(&back, device)? })
    }

    /// A group of packed `x`, `(tokens, width)`: `(rows, longest, width)`.
    pub fn padded(&self, group: usize, x: &Tensor) -> Result<Tensor> {
        let Group { rows, longest, .. } = &self.groups[group];
        Ok(self.takes[group].of(x)?.f_view([rows.len() as i64, *longest as i64, x.size()[1]])?)
    }

    /// All groups, `(rows, longest, width)` each, packed: `(tokens, width)`.
    pub fn packed(&self, groups: &[Tensor]) -> Result<Tensor> {
        join(groups, &self.back)
    }
}

/// Rows `back` of the parts' rows, one part after the other; `parts`: `(.., .., width)` each.
pub fn join(parts: &[Tensor], back: &Take) -> Result<Tensor> {
    let flat: Vec<Tensor> = parts.iter().map(|x| x.f_flatten(0, 1)).collect::<std::result::Result<_, _>>()?;
    match flat.as_slice() {
        [one] => back.of(one),
        several => back.of(&Tensor::f_cat(several, 0)?),
    }
}

/// Consecutive ranges of rows with at most `budget` tokens each, a longer row alone.
pub fn blocks(lengths: &[usize], budget: usize) -> Vec<std::ops::Range<usize>> {
    pieces(&starts(lengths), budget)
}

/// Where each of packed rows begins, and the end of the last: `(rows + 1)`.
pub fn starts(lengths: &[usize]) -> Vec<u32> {
    let ends = lengths.iter().scan(0, |at, &length| {
        *at += length as u32;
        Some(*at)
    });
    std::iter::once(0).chain(ends).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::random::{fold, mix};

    fn some_lengths(seed: u64, rows: u64, longest: u64) -> Vec<usize> {
        (0..rows).map(|i| (fold(mix(seed), i) % longest + 1) as usize).collect()
    }

    #[test]
    fn groups_hold_every_row_once_with_little_padding() {
        let many = [(1, 0, 9), (2, 1, 9), (3, 200, 40), (4, 60, 512), (5, 300, 2), (6, 64, 250)];
        for ((seed, rows, longest), limits) in
            many.into_iter().flat_map(|of| [Limits::CPU, Limits::GPU].map(|l| (of, l)))
        {
            let lengths = some_lengths(seed, rows, longest);
            let made = groups(&lengths, limits);
            let mut seen: Vec<usize> = made.iter().flat_map(|g| g.rows.clone()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for group in &made {
                let own: Vec<usize> = group.rows.iter().map(|&row| lengths[row]).collect();
                assert_eq!((&own, own.iter().max()), (&group.lengths, Some(&group.longest)));
                let (all, tokens) = (own.len() * group.longest, own.iter().sum::<usize>());
                assert!(8 * (all - tokens) <= tokens || all - tokens <= limits.padding, "{group:?}");
                assert!(!group.padded() || all * group.longest <= limits.masked, "{group:?}");
            }
            assert!(limits.padding == 0 || made.len() <= 8, "{}", made.len());
        }
    }

    #[test]
    fn packed_rows_come_back_from_their_groups() {
        for (seed, rows, longest) in [(1, 1, 9), (3, 50, 40), (5, 30, 2)] {
            let lengths = some_lengths(seed, rows, longest);
            let tokens: usize = lengths.iter().sum();
            let ragged = Ragged::new(&lengths, Device::Cpu).expect("layout");
            let x = Tensor::arange(2 * tokens as i64, (Kind::Float, Device::Cpu)).view([-1, 2]);
            let mut first = 0;
            let firsts: Vec<f64> = lengths
                .iter()
                .map(|length| {
                    first += length;
                    2.0 * (first - length) as f64
                })
                .collect();
            let groups: Vec<Tensor> =
                (0..ragged.groups.len()).map(|i| ragged.padded(i, &x).expect("padded")).collect();
            for (group, values) in ragged.groups.iter().zip(&groups) {
                for (i, &row) in group.rows.iter().enumerate() {
                    assert_eq!(values.double_value(&[i as i64, 0, 0]), firsts[row]);
                }
            }
            assert_eq!(ragged.packed(&groups).expect("packed"), x);
        }
    }
}
