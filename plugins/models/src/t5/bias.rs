//! Relative position buckets, and the attention biases looked up through them.

/// Bucket of `distance` = key position - query position.
///
/// Half of the buckets (of each sign, when `bidirectional`) are exact small distances, the rest grow
/// logarithmically up to `max_distance`. Source: Raffel et al., section 2.1; transformers'
/// `T5Attention._relative_position_bucket`, in its f32 arithmetic.
pub fn bucket(distance: i64, bidirectional: bool, buckets: usize, max_distance: usize) -> usize {
    let (first, buckets, distance) = if bidirectional {
        let half = buckets / 2;
        (if distance > 0 { half } else { 0 }, half, distance.unsigned_abs() as usize)
    } else {
        (0, buckets, distance.min(0).unsigned_abs() as usize)
    };
    let exact = buckets / 2;
    if distance < exact {
        return first + distance;
    }
    let scale = (max_distance as f64 / exact as f64).ln() as f32;
    let large = (distance as f32 / exact as f32).ln() / scale * (buckets - exact) as f32;
    first + (exact + large as usize).min(buckets - 1)
}

/// Biases of every head for all distances below `reach` in both directions: `[heads][2 * reach - 1]`.
#[derive(Default)]
pub struct Bias {
    reach: usize,
    values: Vec<f32>,
}

/// How a bias is made.
#[derive(Clone, Copy)]
pub struct Buckets<'a> {
    /// `[buckets, heads]`, as checkpoints store it.
    pub table: &'a [f32],
    /// Of the attention.
    pub heads: usize,
    /// Encoder.
    pub bidirectional: bool,
    /// See [`bucket`].
    pub max_distance: usize,
}

impl Bias {
    /// Makes it cover rows of `length` positions.
    pub fn cover(&mut self, length: usize, from: Buckets<'_>) {
        if length <= self.reach {
            return;
        }
        let reach = length.next_power_of_two();
        let buckets = from.table.len() / from.heads;
        let rows: Vec<usize> = (0..2 * reach - 1)
            .map(|i| bucket(i as i64 - (reach as i64 - 1), from.bidirectional, buckets, from.max_distance))
            .collect();
        self.values = (0..from.heads)
            .flat_map(|head| rows.iter().map(move |row| from.table[row * from.heads + head]))
            .collect();
        self.reach = reach;
    }

    /// Biases of a query at `position` for the keys from position 0 on; the next head's are [`Self::stride`] later.
    pub fn row(&self, head: usize, position: usize) -> &[f32] {
        &self.values[head * self.stride() + self.reach - 1 - position..]
    }

    /// All values: of each head those of every distance below [`Self::reach`], from the most negative on.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Rows of so many positions are covered.
    pub fn reach(&self) -> usize {
        self.reach
    }

    /// Values a head.
    pub fn stride(&self) -> usize {
        2 * self.reach - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_laid_out_by_distance() {
        let table: Vec<f32> = (0..64).map(|i| i as f32).collect();
        let mut bias = Bias::default();
        let from = Buckets { table: &table, heads: 2, bidirectional: true, max_distance: 128 };
        bias.cover(3, from);
        bias.cover(200, from);
        for (query, key) in [(0, 0), (5, 2), (2, 5), (150, 3), (0, 199)] {
            let at = bucket(key as i64 - query as i64, true, 32, 128);
            for head in 0..2 {
                assert_eq!(bias.row(head, query)[key], table[at * 2 + head]);
            }
            assert_eq!(bias.row(0, query)[bias.stride() + key], table[at * 2 + 1]);
        }
    }
}
