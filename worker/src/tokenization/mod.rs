//! Text to token ids and back, exactly as transformers' fast tokenizers do it.
//!
//! A pair is encoded in two steps: each side alone (so that an instruction with many responses is tokenized once),
//! then cut longest-first and set into the `frame.rs` of special tokens that the tokenizer's own post-processor
//! makes. No tokenizer looks across the border of the two texts, so this equals encoding the pair at once.

mod frame;

use std::{fs, path::Path};

use tokenizers::Tokenizer;

pub use frame::truncate_longest_first;
use frame::{Frame, FrameError};

/// Largest `tokenizer.json` that is opened.
const MAX_TOKENIZER_BYTES: u64 = 256 * 1024 * 1024;

/// Why a tokenizer cannot be used, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizationError {
    /// The file is not there or not readable.
    #[error("cannot read tokenizer.json of the model: {0}")]
    Read(#[source] std::io::Error),
    /// Not a tokenizer.
    #[error("tokenizer.json of the model is damaged: {0}")]
    Damaged(String),
    /// The special tokens around texts cannot be found out.
    #[error("tokenizer.json of the model has a post-processor that cappy does not understand: {0}")]
    Frame(#[from] FrameError),
    /// A text that the tokenizer refuses.
    #[error("the tokenizer refuses the text: {0}")]
    Refused(String),
    /// Special tokens leave no room for text.
    #[error("a limit of {limit} tokens leaves no room beside the {special} special tokens")]
    NoRoom {
        /// Asked for.
        limit: usize,
        /// Always there.
        special: usize,
    },
}

/// A row as a model takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EncodedRow {
    /// Token ids with special tokens.
    pub ids: Vec<u32>,
    /// Segment of each token, or empty: all 0.
    pub type_ids: Vec<u8>,
    /// Something was cut off.
    pub truncated: bool,
}

/// The tokenizer of a model directory.
pub struct ModelTokenizer {
    inner: Tokenizer,
    pair: Frame,
    single: Frame,
    clean_up: bool,
    id_limit: u32,
}

impl ModelTokenizer {
    /// Opens `tokenizer.json` of a model directory, and what `tokenizer_config.json` says about decoding.
    ///
    /// # Errors
    /// When the file is missing, damaged, or frames texts in a way that is not understood.
    pub fn open(dir: &Path) -> Result<Self, TokenizationError> {
        let path = dir.join("tokenizer.json");
        let size = fs::metadata(&path).map_err(TokenizationError::Read)?.len();
        if size > MAX_TOKENIZER_BYTES {
            return Err(TokenizationError::Damaged(format!("{size} bytes are too many")));
        }
        let bytes = fs::read(&path).map_err(TokenizationError::Read)?;
        // transformers < 4.45 cleaned up by default; since then only where the checkpoint says so.
        let clean_up = fs::read(dir.join("tokenizer_config.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
            .and_then(|config| config.get("clean_up_tokenization_spaces")?.as_bool())
            .unwrap_or(false);
        Self::from_bytes(&bytes, clean_up)
    }

    /// From the content of a `tokenizer.json`. `clean_up`: transformers' `clean_up_tokenization_spaces`.
    ///
    /// # Errors
    /// As [`ModelTokenizer::open`].
    pub fn from_bytes(bytes: &[u8], clean_up: bool) -> Result<Self, TokenizationError> {
        let damaged = |error: tokenizers::Error| TokenizationError::Damaged(error.to_string());
        let mut inner = Tokenizer::from_bytes(bytes).map_err(damaged)?;
        // The file may carry truncation and padding of whoever saved it; the caller decides about both here.
        inner.with_truncation(None).map_err(damaged)?;
        inner.with_padding(None);
        let id_limit = inner.get_vocab(true).into_values().max().map_or(0, |id| id + 1);
        let pair = Frame::of(&inner, true)?;
        let single = Frame::of(&inner, false)?;
        Ok(Self { inner, pair, single, clean_up, id_limit })
    }

    /// Every id of its vocabulary is below this.
    pub fn id_limit(&self) -> u32 {
        self.id_limit
    }

    /// Tokenizes one side, without special tokens.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn side(&self, text: &str) -> Result<Vec<u32>, TokenizationError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| TokenizationError::Refused(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// A pair from its sides: at most `max_tokens` in all, cut longest-first.
    ///
    /// # Errors
    /// When `max_tokens` leaves no room.
    pub fn pair(
        &self,
        first: &[u32],
        second: &[u32],
        max_tokens: usize,
    ) -> Result<EncodedRow, TokenizationError> {
        let room = self.pair.room(max_tokens)?;
        let (kept_first, kept_second) = truncate_longest_first(first.len(), second.len(), room);
        let truncated = kept_first + kept_second < first.len() + second.len();
        Ok(self.pair.set(&first[..kept_first], &second[..kept_second], truncated))
    }

    /// A single text from its side: at most `max_tokens` in all, cut at the end.
    ///
    /// # Errors
    /// When `max_tokens` leaves no room.
    pub fn single(&self, side: &[u32], max_tokens: usize) -> Result<EncodedRow, TokenizationError> {
        let room = self.single.room(max_tokens)?;
        let kept = side.len().min(room);
        Ok(self.single.set(&side[..kept], &[], kept < side.len()))
    }

    /// Text of generated ids, special tokens left out (transformers' `decode(ids, skip_special_tokens=True)`).
    ///
    /// # Errors
    /// When the tokenizer refuses the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizationError> {
        let text =
            self.inner.decode(ids, true).map_err(|error| TokenizationError::Refused(error.to_string()))?;
        Ok(if self.clean_up { clean_up_spaces(&text) } else { text })
    }
}

/// transformers' `clean_up_tokenization`.
fn clean_up_spaces(text: &str) -> String {
    const REPLACEMENTS: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REPLACEMENTS.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}
