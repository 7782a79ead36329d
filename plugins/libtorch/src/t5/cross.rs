//! What the decoder needs of encoded sources, and who asks for which.

use std::collections::BTreeMap;

use tch::{Device, Tensor};

use super::model::{attend, split};
use crate::engine::Result;
use crate::ragged::{Group, Take, join};

/// A group of sources is asked as a whole if that makes at most so many times as many queries as there are.
const CPU_WASTED: usize = 2;
/// Likewise on a GPU, where a row alone costs as many kernels as a group.
const GPU_WASTED: usize = 8;

/// Sources of nearly equal lengths.
pub struct SourceGroup {
    /// Which rows of the encoding.
    pub group: Group,
    /// `(rows, 1, 1, longest)`, where some are shorter.
    pub mask: Option<Tensor>,
    /// Of each decoder layer: keys and values, `(rows, heads, longest, d_kv)`.
    pub layers: Vec<(Tensor, Tensor)>,
}

/// Encoded rows.
#[derive(Default)]
pub struct Encoding {
    groups: Vec<SourceGroup>,
    /// For each row: its group, and its place there.
    places: Vec<(usize, usize)>,
}

/// Queries that meet the keys of one group, or of one row of it.
struct Asked {
    group: usize,
    /// Only this row, at its own length.
    row: Option<usize>,
    /// The queries, each row's padded to the most that a row has.
    take: Take,
}

/// Which queries attend to which sources.
pub struct Asking {
    asked: Vec<Asked>,
    /// For each query its place in what all of these answer.
    back: Take,
}

impl Encoding {
    /// Of `rows` rows, which the groups hold together.
    pub fn new(groups: Vec<SourceGroup>, rows: usize) -> Self {
        let mut places = vec![(0, 0); rows];
        for (index, group) in groups.iter().enumerate() {
            for (place, &row) in group.group.rows.iter().enumerate() {
                places[row] = (index, place);
            }
        }
        Self { groups, places }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.places.len()
    }

    /// Where a row's keys are: rows of a group are neighbours in this order.
    pub fn place(&self, row: usize) -> (usize, usize) {
        self.places[row]
    }

    /// Prepares queries, of which query `i` attends to row `sources[i]`.
    pub fn ask(&self, sources: &[usize], device: Device) -> Result<Asking> {
        let wasted = if device == Device::Cpu { CPU_WASTED } else { GPU_WASTED };
        let mut by_group = BTreeMap::<usize, BTreeMap<usize, Vec<i64>>>::new();
        for (query, &row) in sources.iter().enumerate() {
            let (group, place) = self.places[row];
            by_group.entry(group).or_default().entry(place).or_default().push(query as i64);
        }
        let mut back = vec![0; sources.len()];
        let mut asked = Vec::new();
        let mut answers = 0;
        for (group, rows) in by_group {
            let count = self.groups[group].group.rows.len();
            let most = rows.values().map(Vec::len).max().unwrap_or(0);
            let queries: usize = rows.values().map(Vec::len).sum();
            let mut ask = |row: Option<usize>, from: &[&[i64]], width: usize| {
                let mut take = Vec::with_capacity(from.len() * width);
                for queries in from {
                    for (i, &query) in queries.iter().enumerate() {
                        back[query as usize] = answers + i as i64;
                    }
                    take.extend_from_slice(queries);
                    // What padding asks is never looked at.
                    take.extend(std::iter::repeat_n(0, width - queries.len()));
                    answers += width as i64;
                }
                asked.push(Asked { group, row, take: Take::new(&take, device)? });
                Ok::<_, crate::engine::Error>(())
            };
            if count * most <= wasted * queries {
                let all: Vec<&[i64]> =
                    (0..count).map(|place| rows.get(&place).map_or(&[][..], Vec::as_slice)).collect();
                ask(None, &all, most)?;
            } else {
                for (&place, queries) in &rows {
                    ask(Some(place), &[queries], queries.len())?;
                }
            }
        }
        Ok(Asking { asked, back: Take::new(&back, device)? })
    }

    /// Attention of `queries`, `(queries, heads * d_kv)`, in decoder layer `layer`.
    pub fn attend(&self, asking: &Asking, layer: usize, queries: &Tensor, heads: usize) -> Result<Tensor> {
        let mut answers = Vec::with_capacity(asking.asked.len());
        for Asked { group, row, take } in &asking.asked {
            let SourceGroup { group, mask, layers } = &self.groups[*group];
            let (keys, values) = &layers[layer];
            let rows = if row.is_some() { 1 } else { group.rows.len() as i64 };
            let queries = split(&take.of(queries)?.f_view([rows, -1, queries.size()[1]])?, heads)?;
            answers.push(match row {
                None => attend(&queries, keys, values, mask.as_ref())?,
                Some(row) => {
                    let length = group.lengths[*row] as i64;
                    let own = |x: &Tensor| x.f_narrow(0, *row as i64, 1)?.f_narrow(2, 0, length);
                    attend(&queries, &own(keys)?, &own(values)?, None)?
                }
            });
        }
        join(&answers, &asking.back)
    }
}
