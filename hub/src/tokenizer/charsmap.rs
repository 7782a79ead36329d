//! The table of character replacements of a sentencepiece model, `precompiled_charsmap`: the length of a double array
//! of `u32`, the array, and the replacement texts. The library that walks it indexes without checking, so every jump
//! and every text must be seen to lie inside before it gets the table.
//!
//! Source: sentencepiece's `normalizer.cc` and the Darts-clone double array.

/// Marks a unit that holds a value: where its text starts.
const IS_VALUE: u32 = 1 << 31;

/// A walk goes from a unit to one of 256 neighbours, chosen by the next byte of the text.
const NEIGHBOURS: usize = 0xff;

/// Refuses a table that a walk could leave.
pub(super) fn check(table: &[u8]) -> Result<(), String> {
    if is_closed(table) { Ok(()) } else { Err("its table of character replacements is damaged".into()) }
}

fn is_closed(table: &[u8]) -> bool {
    let Some((length, rest)) = table.split_first_chunk::<4>() else { return false };
    let Some((array, texts)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else {
        return false;
    };
    let (units, []) = array.as_chunks::<4>() else { return false };
    let Ok(texts) = std::str::from_utf8(texts) else { return false };
    let inside = |(at, unit): (usize, &[u8; 4])| {
        let unit = u32::from_le_bytes(*unit);
        if unit & IS_VALUE != 0 {
            return texts.is_char_boundary((unit & !IS_VALUE) as usize);
        }
        let jump = u64::from(unit >> 10) << ((unit & (1 << 9)) >> 6);
        (at as u64 ^ jump) | (NEIGHBOURS as u64) < units.len() as u64
    };
    !units.is_empty() && units.iter().enumerate().all(inside)
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 with padding.
pub(super) fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            if digit <= chunk.len() {
                text.push(char::from(DIGITS[(word >> (18 - 6 * digit)) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// The bytes of a text that [`to_base64`] could have written.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut value = [None; 256];
    for (at, digit) in DIGITS.iter().enumerate() {
        value[usize::from(*digit)] = u32::try_from(at).ok();
    }
    let (chunks, []) = text.as_bytes().as_chunks::<4>() else { return None };
    let mut bytes = Vec::with_capacity(chunks.len() * 3);
    for (at, chunk) in chunks.iter().enumerate() {
        let padding = chunk.iter().rev().take_while(|digit| **digit == b'=').count();
        if padding > 2 || (padding > 0 && at + 1 < chunks.len()) {
            return None;
        }
        let word = chunk[..4 - padding]
            .iter()
            .try_fold(0, |word, digit| Some(word << 6 | value[usize::from(*digit)]?))?;
        let word: u32 = word << (6 * padding);
        bytes.extend_from_slice(&word.to_be_bytes()[1..4 - padding]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(to_base64(bytes.as_bytes()), text);
            assert_eq!(from_base64(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(to_base64(&[0xff, 0xfe, 0xfd]), "//79");
        for bad in ["Z", "Zg=", "Zg==Zg==", "Z===", "Zm9\u{e9}", "Zm 9"] {
            assert_eq!(from_base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn tables_that_lead_outside_are_refused() {
        let table = |units: &[u32], texts: &[u8]| {
            let array: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
            [&(array.len() as u32).to_le_bytes()[..], &array, texts].concat()
        };
        let mut units = vec![0; 256];
        assert!(check(&table(&units, b"")).is_ok());
        units[3] = IS_VALUE | 2;
        assert!(check(&table(&units, "a\0\u{e9}".as_bytes())).is_ok());
        units[3] = IS_VALUE | 3;
        assert!(check(&table(&units, "a\0\u{e9}".as_bytes())).is_err(), "inside a character");
        units[3] = IS_VALUE | 9;
        assert!(check(&table(&units, b"a")).is_err(), "behind the texts");
        units[3] = 256 << 10;
        assert!(check(&table(&units, b"")).is_err(), "behind the array");
        assert!(check(&table(&units[..100], b"")).is_err(), "a byte may lead outside");
        for bad in [&b""[..], b"\0\0\0\0", b"\x08\0\0\0abcd", b"\x03\0\0\0abc"] {
            assert!(check(bad).is_err());
        }
    }
}
