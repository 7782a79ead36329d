//! Texts as keys of fixed size: what must be told apart without being kept.

use sha2::{Digest as _, Sha256};

/// The first 128 bits of a SHA-256: equal keys are equal texts for any number of texts that a disk can hold.
pub type TextKey = u128;

/// The key of a sequence of texts; ("ab", "c") and ("a", "bc") have different ones.
pub fn text_key<'a>(texts: impl IntoIterator<Item = &'a str>) -> TextKey {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    let digest = hasher.finalize();
    TextKey::from_le_bytes(digest[..16].try_into().expect("a SHA-256 has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_between_texts_count() {
        let keys = [text_key(["ab", "c"]), text_key(["a", "bc"]), text_key(["abc"]), text_key(["abc", ""])];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key));
        }
        assert_eq!(text_key(["ab", "c"]), keys[0]);
    }
}
