//! The special tokens around one text or two, and how long texts are cut to fit.

use tokenizers::{Encoding, Token, Tokenizer};

use super::{EncodedRow, TokenizationError};

/// Ids that no vocabulary has: they mark where the texts go.
const FIRST: u32 = u32::MAX - 1;
const SECOND: u32 = u32::MAX - 2;

/// The post-processor does not put each text once, in order.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FrameError(String);

/// Where a text or special token stands, and its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Special(u32, u8),
    First(u8),
    Second(u8),
}

/// What a tokenizer's post-processor makes of one text or two: learned by letting it process markers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pieces: Vec<Piece>,
    special: usize,
    segmented: bool,
}

impl Frame {
    pub fn of(tokenizer: &Tokenizer, pair: bool) -> Result<Self, FrameError> {
        let marker = |id, segment| Encoding::from_tokens(vec![Token::new(id, "x".into(), (0, 1))], segment);
        let framed = tokenizer
            .post_process(marker(FIRST, 0), pair.then(|| marker(SECOND, 1)), true)
            .map_err(|error| FrameError(error.to_string()))?;
        let mut pieces = Vec::new();
        for (&id, &segment) in framed.get_ids().iter().zip(framed.get_type_ids()) {
            let segment = u8::try_from(segment)
                .map_err(|_| FrameError(format!("segment {segment} is greater than 255")))?;
            pieces.push(match id {
                FIRST => Piece::First(segment),
                SECOND => Piece::Second(segment),
                id => Piece::Special(id, segment),
            });
        }
        let texts: Vec<_> = pieces.iter().filter(|piece| !matches!(piece, Piece::Special(..))).collect();
        let in_order = match texts.as_slice() {
            [Piece::First(_)] => !pair,
            [Piece::First(_), Piece::Second(_)] => pair,
            _ => false,
        };
        if !in_order {
            return Err(FrameError("it does not place each text once, in order".into()));
        }
        let special = pieces.len() - texts.len();
        let segmented = pieces.iter().any(
            |piece| matches!(piece, Piece::Special(_, s) | Piece::First(s) | Piece::Second(s) if *s != 0),
        );
        Ok(Self { pieces, special, segmented })
    }

    /// Tokens left for text.
    pub fn room(&self, max_tokens: usize) -> Result<usize, TokenizationError> {
        match max_tokens.checked_sub(self.special) {
            Some(room) if room > 0 => Ok(room),
            _ => Err(TokenizationError::NoRoom { limit: max_tokens, special: self.special }),
        }
    }

    pub fn set(&self, first: &[u32], second: &[u32], truncated: bool) -> EncodedRow {
        let total = first.len() + second.len() + self.special;
        let mut row = EncodedRow { ids: Vec::with_capacity(total), type_ids: Vec::new(), truncated };
        for piece in &self.pieces {
            let (text, segment) = match *piece {
                Piece::Special(ref id, segment) => (std::slice::from_ref(id), segment),
                Piece::First(segment) => (first, segment),
                Piece::Second(segment) => (second, segment),
            };
            row.ids.extend_from_slice(text);
            if self.segmented {
                row.type_ids.resize(row.ids.len(), segment);
            }
        }
        row
    }
}

/// Tokens kept of two texts so that together they have at most `room`: the longer gives first; where both must give,
/// each keeps half and the longer (the second, when equal) the odd one.
///
/// Source: `truncate_encodings` of the tokenizers library, strategy `LongestFirst`.
pub fn truncate_longest_first(first: usize, second: usize, room: usize) -> (usize, usize) {
    if first + second <= room {
        return (first, second);
    }
    let (short, swapped) = if first > second { (second, true) } else { (first, false) };
    let (mut a, mut b) = (short, short.max(room.saturating_sub(short)));
    if a + b > room {
        a = room / 2;
        b = room - a;
    }
    if swapped { (b, a) } else { (a, b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_the_longer_first() {
        for (first, second, room, expected) in [
            (3, 4, 10, (3, 4)),
            (3, 20, 10, (3, 7)),
            (20, 3, 10, (7, 3)),
            (20, 20, 10, (5, 5)),
            (20, 20, 11, (5, 6)),
            (21, 20, 11, (6, 5)),
            (0, 20, 10, (0, 10)),
            (20, 0, 1, (1, 0)),
        ] {
            assert_eq!(truncate_longest_first(first, second, room), expected, "{first} {second} {room}");
        }
    }
}
