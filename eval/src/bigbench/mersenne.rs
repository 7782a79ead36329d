//! The Mersenne Twister, seeded and used as Python's `random` and numpy's `RandomState` do: the published copy of the
//! benchmark was shuffled with them.
//!
//! Source: Matsumoto and Nishimura, "Mersenne Twister", 1998 (mt19937ar.c).

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// A generator of 32-bit numbers.
pub(super) struct Mersenne {
    state: [u32; SIZE],
    next: usize,
}

impl Mersenne {
    /// As numpy's `RandomState(seed)`: `init_genrand`.
    pub(super) fn numpy(seed: u32) -> Self {
        let mut state = [0; SIZE];
        state[0] = seed;
        for i in 1..SIZE {
            let before: u32 = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: SIZE }
    }

    /// As Python's `random.seed(seed)` for a seed below 2^32: `init_by_array` with one word.
    pub(super) fn python(seed: u32) -> Self {
        let mut twister = Self::numpy(19_650_218);
        let state = &mut twister.state;
        let mut i = 1;
        let mut step = |round: &dyn Fn(u32, u32, usize) -> u32, i: &mut usize| {
            let before = state[*i - 1];
            state[*i] = round(state[*i], before ^ (before >> 30), *i);
            *i += 1;
            if *i == SIZE {
                state[0] = state[SIZE - 1];
                *i = 1;
            }
        };
        for _ in 0..SIZE {
            step(&|old, mixed, _| (old ^ mixed.wrapping_mul(1_664_525)).wrapping_add(seed), &mut i);
        }
        for _ in 1..SIZE {
            step(&|old, mixed, i| (old ^ mixed.wrapping_mul(1_566_083_941)).wrapping_sub(i as u32), &mut i);
        }
        state[0] = 0x8000_0000;
        twister
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == SIZE {
            for i in 0..SIZE {
                let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % SIZE] & 0x7fff_ffff);
                let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + SHIFT) % SIZE] ^ (joined >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut x = self.state[self.next];
        self.next += 1;
        x ^= x >> 11;
        x ^= (x << 7) & 0x9d2c_5680;
        x ^= (x << 15) & 0xefc6_0000;
        x ^ (x >> 18)
    }
}

/// The order in which `random.seed(seed); random.shuffle(items)` leaves `n` items.
pub(super) fn python_shuffle(seed: u32, n: usize) -> Vec<usize> {
    let mut twister = Mersenne::python(seed);
    shuffle_with(n, |i| {
        // The highest bits of a word that can hold i + 1.
        let bits = u32::BITS - (i + 1).leading_zeros();
        loop {
            let j = twister.next_u32() >> (u32::BITS - bits);
            if j <= i {
                return j;
            }
        }
    })
}

/// The order in which `RandomState(seed).permutation(items)` leaves `n` items.
pub(super) fn numpy_permutation(seed: u32, n: usize) -> Vec<usize> {
    let mut twister = Mersenne::numpy(seed);
    shuffle_with(n, |i| {
        // The lowest bits of a word that can hold i.
        let mask = u32::MAX >> i.leading_zeros();
        loop {
            let j = twister.next_u32() & mask;
            if j <= i {
                return j;
            }
        }
    })
}

fn shuffle_with(n: usize, mut draw_up_to: impl FnMut(u32) -> u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let i_word = u32::try_from(i).expect("a task has fewer than 2^32 examples");
        order.swap(i, draw_up_to(i_word) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected orders are CPython 3.11's and numpy 1.26's.
    #[test]
    fn orders_are_those_of_python_and_numpy() {
        assert_eq!(python_shuffle(42, 16), [7, 9, 5, 6, 14, 10, 12, 8, 1, 2, 13, 15, 4, 11, 0, 3]);
        assert_eq!(python_shuffle(42, 1), [0]);
        assert_eq!(numpy_permutation(42, 5), [1, 4, 2, 0, 3]);
        assert_eq!(numpy_permutation(42, 10), [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]);
    }

    #[test]
    fn every_golden_order_is_met() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/reference/shuffle_golden.json");
        let Ok(text) = std::fs::read_to_string(path) else {
            return eprintln!("skipped: no golden orders here");
        };
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut checked = 0;
        for (kind, cases) in golden.as_object().unwrap() {
            let order_of = if kind.starts_with("py_") { python_shuffle } else { numpy_permutation };
            for (n, expected) in cases.as_object().unwrap() {
                let expected: Vec<usize> = serde_json::from_value(expected.clone()).unwrap();
                assert_eq!(order_of(42, n.parse().unwrap()), expected, "{kind} {n}");
                checked += 1;
            }
        }
        assert!(checked > 4);
    }
}
