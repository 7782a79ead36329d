//! Words of a text as small numbers: equal numbers, equal stems.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::porter;

/// Words up to this length are compared as they are.
const LONGEST_UNSTEMMED: usize = 3;

/// Above this the vocabulary is dropped between texts, so that a hostile stream of new words cannot fill the memory.
const MAX_VOCABULARY_BYTES: usize = 32 << 20;

/// What one entry costs beside its word, roughly.
const ENTRY_BYTES: usize = 64;

/// Words met so far with the number of their stem.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    by_word: HashMap<Box<[u8]>, u32, BuildHasherDefault<WordHasher>>,
    by_stem: HashMap<Box<[u8]>, u32, BuildHasherDefault<WordHasher>>,
    word: Vec<u8>,
    bytes: usize,
}

/// A word that the stemmer leaves nothing of; the reference implementation drops such words.
const NOTHING: u32 = u32::MAX;

impl Vocabulary {
    /// Starts over if too many words were met; numbers given out before lose their meaning.
    pub(super) fn forget_if_full(&mut self) {
        if self.bytes > MAX_VOCABULARY_BYTES {
            *self = Self::default();
        }
    }

    /// Appends the numbers of the words of `text`: maximal runs of `[a-z0-9]` after lowercasing, stemmed.
    ///
    /// Of all characters outside ASCII only two lowercase to something with an ASCII letter: `İ` (U+0130) to `i` and a
    /// combining dot, which ends the word, and the Kelvin sign (U+212A) to `k`.
    pub(super) fn tokenize(&mut self, text: &str, numbers: &mut Vec<u32>) {
        let text = text.as_bytes();
        self.word.clear();
        let mut at = 0;
        while at < text.len() {
            let byte = text[at];
            let lower = LOWER[usize::from(byte)];
            if lower != 0 {
                self.word.push(lower);
                at += 1;
                continue;
            }
            if byte == 0xe2 && text[at..].starts_with("\u{212a}".as_bytes()) {
                self.word.push(b'k');
                at += 3;
                continue;
            }
            if byte == 0xc4 && text[at..].starts_with("\u{130}".as_bytes()) {
                self.word.push(b'i');
            }
            self.end_word(numbers);
            at += 1;
        }
        self.end_word(numbers);
    }

    fn end_word(&mut self, numbers: &mut Vec<u32>) {
        if self.word.is_empty() {
            return;
        }
        let number = match self.by_word.get(self.word.as_slice()) {
            Some(number) => *number,
            None => self.learn(),
        };
        if number != NOTHING {
            numbers.push(number);
        }
        self.word.clear();
    }

    fn learn(&mut self) -> u32 {
        let mut stem = self.word.clone();
        if stem.len() > LONGEST_UNSTEMMED {
            porter::stem_in_place(&mut stem);
        }
        self.bytes += self.word.len() + stem.len() + 2 * ENTRY_BYTES;
        let next = u32::try_from(self.by_stem.len()).expect("the vocabulary is bounded");
        let number = if stem.is_empty() { NOTHING } else { *self.by_stem.entry(stem.into()).or_insert(next) };
        self.by_word.insert(self.word.as_slice().into(), number);
        number
    }
}

/// ASCII letters and digits to their lowercase, everything else to 0.
static LOWER: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        if (byte as u8).is_ascii_alphanumeric() {
            table[byte] = (byte as u8).to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

/// A hash for short words, eight bytes a step (the multiply-and-fold of wyhash).
///
/// Words can come from strangers, but a collision costs only time bounded by the vocabulary's size.
#[derive(Default)]
struct WordHasher(u64);

impl Hasher for WordHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, x: u64) {
        let product = u128::from(self.0 ^ x ^ 0xa076_1d64_78bd_642f) * u128::from(0xe703_7ed1_a0b4_28db_u64);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn write_usize(&mut self, x: usize) {
        self.write_u64(x as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<u32> {
        let mut numbers = Vec::new();
        Vocabulary::default().tokenize(text, &mut numbers);
        numbers
    }

    #[test]
    fn only_ascii_letters_and_digits_make_words() {
        assert_eq!(words("b a-b\tA,é1 a1é"), [0, 1, 0, 1, 2, 3]);
        assert!(words("  ü — 漢 ").is_empty());
        assert_eq!(words("\u{212a}elvin kelvin"), [0, 0], "the Kelvin sign is a k");
        assert_eq!(words("d\u{130}e di e"), [0, 1, 0, 1], "a dotted capital I is an i that ends the word");
        assert_eq!(words("skies sky SKY"), [0, 0, 0]);
    }

    #[test]
    fn a_full_vocabulary_starts_over() {
        let mut vocabulary = Vocabulary::default();
        let mut numbers = Vec::new();
        for i in 0..600_000 {
            vocabulary.forget_if_full();
            numbers.clear();
            vocabulary.tokenize(&format!("word{i}x word{i}x"), &mut numbers);
            assert_eq!(numbers[0], numbers[1]);
        }
        assert!(vocabulary.bytes <= MAX_VOCABULARY_BYTES + 1024);
    }
}
