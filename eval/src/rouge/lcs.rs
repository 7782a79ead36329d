//! The length of the longest common subsequence of two sequences of numbers.

/// Buffers for many calls.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Per number: the row of `masks` that holds its positions, valid if `stamps` says so.
    rows: Vec<u32>,
    stamps: Vec<u32>,
    stamp: u32,
    masks: Vec<u64>,
    state: Vec<u64>,
}

const WORD: usize = u64::BITS as usize;

impl Scratch {
    /// The length of the longest common subsequence of `a` and `b`.
    ///
    /// Bit-parallel: 64 cells of the table in one step. Numbers should be small (they index a table).
    /// Source: Hyyrö, "Bit-Parallel LCS-length Computation Revisited", AWOCA 2004.
    pub fn length(&mut self, a: &[u32], b: &[u32]) -> usize {
        let (pattern, text) = if a.len() <= b.len() { (a, b) } else { (b, a) };
        if pattern.is_empty() {
            return 0;
        }
        let blocks = pattern.len().div_ceil(WORD);
        self.index(pattern, blocks);
        if blocks == 1 { self.one_block(pattern, text) } else { self.many_blocks(pattern, text, blocks) }
    }

    /// Notes for each number of the pattern at which positions it stands.
    fn index(&mut self, pattern: &[u32], blocks: usize) {
        if self.stamp == u32::MAX {
            self.stamps.fill(0);
            self.stamp = 0;
        }
        self.stamp += 1;
        self.masks.clear();
        for (position, &number) in pattern.iter().enumerate() {
            let number = number as usize;
            if number >= self.rows.len() {
                self.rows.resize(number + 1, 0);
                self.stamps.resize(number + 1, 0);
            }
            if self.stamps[number] != self.stamp {
                self.stamps[number] = self.stamp;
                self.rows[number] = (self.masks.len() / blocks) as u32;
                self.masks.resize(self.masks.len() + blocks, 0);
            }
            let row = self.rows[number] as usize;
            self.masks[row * blocks + position / WORD] |= 1 << (position % WORD);
        }
    }

    fn row_of(&self, number: u32) -> Option<usize> {
        let number = number as usize;
        (self.stamps.get(number) == Some(&self.stamp)).then(|| self.rows[number] as usize)
    }

    fn one_block(&self, pattern: &[u32], text: &[u32]) -> usize {
        let mut state = u64::MAX;
        for &number in text {
            if let Some(row) = self.row_of(number) {
                let matched = state & self.masks[row];
                state = state.wrapping_add(matched) | (state & !matched);
            }
        }
        let within = u64::MAX >> (WORD - pattern.len());
        (!state & within).count_ones() as usize
    }

    fn many_blocks(&mut self, pattern: &[u32], text: &[u32], blocks: usize) -> usize {
        let mut state = std::mem::take(&mut self.state);
        state.clear();
        state.resize(blocks, u64::MAX);
        for &number in text {
            let Some(row) = self.row_of(number) else { continue };
            let mut carry = false;
            for (state, mask) in state.iter_mut().zip(&self.masks[row * blocks..][..blocks]) {
                let matched = *state & mask;
                let (sum, over) = state.overflowing_add(matched);
                let (sum, over_again) = sum.overflowing_add(u64::from(carry));
                carry = over | over_again;
                *state = sum | (*state & !matched);
            }
        }
        let last = u64::MAX >> ((WORD - pattern.len() % WORD) % WORD);
        let zeros = |(block, state): (usize, &u64)| {
            (!state & if block + 1 == blocks { last } else { u64::MAX }).count_ones() as usize
        };
        let length = state.iter().enumerate().map(zeros).sum();
        self.state = state;
        length
    }
}

/// The textbook table, row by row: what [`Scratch::length`] is tested against.
pub fn reference_length(a: &[u32], b: &[u32]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bits_agree_with_the_table(pairs in vec((vec(0u32..9, 0..210), vec(0u32..9, 0..210)), 1..8)) {
            let mut scratch = Scratch::default();
            for (a, b) in pairs {
                prop_assert_eq!(scratch.length(&a, &b), reference_length(&a, &b));
            }
        }

        #[test]
        fn exact_block_edges_agree(
            letters in 1u32..40, a_len in prop::sample::select(vec![1usize, 63, 64, 65, 127, 128, 129, 192]), seed: u64
        ) {
            let mut random = crate::keyed::Keyed::new(seed, "lcs");
            let a: Vec<u32> = (0..a_len).map(|_| random.below(letters as usize) as u32).collect();
            let b: Vec<u32> = (0..a_len + 7).map(|_| random.below(letters as usize) as u32).collect();
            prop_assert_eq!(Scratch::default().length(&a, &b), reference_length(&a, &b));
        }
    }
}
