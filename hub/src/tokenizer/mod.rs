//! Every model directory ends up with a `tokenizer.json`. [`TokenizerSource`] says what it is made from, one file
//! a family builds it ([`byte_level`], [`wordpiece`], [`sentencepiece`]), and [`caps`] and
//! [`charsmap`] bound what a foreign one may do.

mod byte_level;
mod caps;
mod charsmap;
mod sentencepiece;
mod special;
mod wordpiece;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::check::{CheckError, read_capped};
use crate::config::Architecture;

/// The file that backends' hosts read.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// XLM-R's, the largest of the supported families, has 17 MiB.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

/// A tokenizer that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is absent, too large or unreadable.
    #[error(transparent)]
    File(#[from] CheckError),
    /// A file is corrupt, or asks for too much.
    #[error("`{file}`: {reason}")]
    Invalid {
        /// Relative to the model's directory.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer belongs to another model.
    #[error(
        "`tokenizer.json` has token id {id}, `config.json` says vocab_size {vocab_size}: they belong to different models"
    )]
    IdBeyondVocabulary {
        /// The largest id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: u64,
    },
}

impl TokenizerError {
    pub(crate) fn invalid(file: &str, reason: impl Into<String>) -> Self {
        Self::Invalid { file: file.to_owned(), reason: reason.into() }
    }
}

/// What a `tokenizer.json` is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// It is there.
    Ready,
    /// `vocab.json` and `merges.txt`: byte-level BPE of RoBERTa.
    ByteLevel,
    /// `vocab.txt`: WordPiece of BERT.
    WordPiece,
    /// `spiece.model`: Unigram of T5.
    T5,
    /// `sentencepiece.bpe.model`: Unigram of XLM-R with the id offsets of its training framework.
    XlmRoberta,
    /// `spm.model`: Unigram of DeBERTa.
    Deberta,
}

/// Files beside a vocabulary that change what is built from it.
pub(crate) const SETTINGS_FILES: [&str; 3] =
    ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

impl TokenizerSource {
    /// What a model of this architecture is published with when there is no `tokenizer.json`.
    pub fn own(architecture: Architecture) -> Option<Self> {
        match architecture {
            Architecture::Roberta => Some(Self::ByteLevel),
            Architecture::Bert | Architecture::DistilBert => Some(Self::WordPiece),
            Architecture::T5 => Some(Self::T5),
            Architecture::XlmRoberta => Some(Self::XlmRoberta),
            Architecture::DebertaV2 => Some(Self::Deberta),
            // Younger than `tokenizer.json`.
            Architecture::ModernBert => None,
        }
    }

    /// What a directory has, by a predicate over file names.
    ///
    /// # Errors
    /// [`CheckError::Missing`] that names what this architecture would need.
    pub fn find(architecture: Architecture, has: impl Fn(&str) -> bool) -> Result<Self, CheckError> {
        if has(TOKENIZER_FILE) {
            return Ok(Self::Ready);
        }
        let own = Self::own(architecture);
        if let Some(own) = own.filter(|own| own.vocabulary_files().iter().all(|file| has(file))) {
            return Ok(own);
        }
        let advice = match own {
            Some(own) => format!(
                "it could be built from {}, which is missing too: download the model again",
                own.vocabulary_files().join(" + ")
            ),
            None => format!("{architecture} models are published with one: download the model again"),
        };
        Err(CheckError::Missing { file: TOKENIZER_FILE.to_owned(), advice })
    }

    /// The files without which it cannot be built.
    pub fn vocabulary_files(self) -> &'static [&'static str] {
        match self {
            Self::Ready => &[TOKENIZER_FILE],
            Self::ByteLevel => &["vocab.json", "merges.txt"],
            Self::WordPiece => &["vocab.txt"],
            Self::T5 => &["spiece.model"],
            Self::XlmRoberta => &["sentencepiece.bpe.model"],
            Self::Deberta => &["spm.model"],
        }
    }

    /// The content of a `tokenizer.json`, equal in what it does to the one that transformers converts to.
    ///
    /// # Errors
    /// [`TokenizerError`] that names the file at fault.
    pub fn build(self, dir: &Path) -> Result<Vec<u8>, TokenizerError> {
        let json = match self {
            Self::Ready => return Ok(read_capped(dir, TOKENIZER_FILE, MAX_TOKENIZER_BYTES, "")?),
            Self::ByteLevel => byte_level::build(dir)?,
            Self::WordPiece => wordpiece::build(dir)?,
            Self::T5 => sentencepiece::build_t5(dir)?,
            Self::XlmRoberta => sentencepiece::build_xlm_roberta(dir)?,
            Self::Deberta => sentencepiece::build_deberta(dir)?,
        };
        let text = serde_json::to_vec(&json).expect("a JSON value has a text");
        let source = self.vocabulary_files()[0];
        parse(&text).map_err(|reason| TokenizerError::invalid(source, reason))?;
        Ok(text)
    }
}

/// Opens `tokenizer.json` of a model directory, with truncation and padding off: those are the caller's business.
///
/// # Errors
/// [`TokenizerError`] when the file is absent, too large, malformed, or asks for more than a tokenizer needs.
pub fn load_tokenizer(dir: &Path) -> Result<Tokenizer, TokenizerError> {
    let text = read_capped(dir, TOKENIZER_FILE, MAX_TOKENIZER_BYTES, "download the model again")?;
    let value: Value = serde_json::from_slice(&text)
        .map_err(|error| TokenizerError::invalid(TOKENIZER_FILE, format!("it is not valid JSON: {error}")))?;
    caps::check(&value).map_err(|reason| TokenizerError::invalid(TOKENIZER_FILE, reason))?;
    drop(value);
    parse(&text).map_err(|reason| TokenizerError::invalid(TOKENIZER_FILE, reason))
}

/// The tokenizers library indexes by what the file says in places, so a malformed file may panic; that ends here.
/// The trial encoding reaches what loading does not.
fn parse(text: &[u8]) -> Result<Tokenizer, String> {
    const TRIAL: &str = "A trial\u{a0}of \u{fb01}ne, na\u{ef}ve \u{4e2d}\u{6587} \u{1f600} 1.5\u{2028}x";
    let loaded = catch_unwind(AssertUnwindSafe(|| {
        let mut tokenizer = Tokenizer::from_bytes(text).map_err(|error| error.to_string())?;
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        tokenizer.with_padding(None);
        let encoding = tokenizer.encode((TRIAL, TRIAL), true).map_err(|error| error.to_string())?;
        tokenizer.decode(encoding.get_ids(), true).map_err(|error| error.to_string())?;
        Ok::<_, String>(tokenizer)
    }));
    match loaded {
        Ok(Ok(tokenizer)) => Ok(tokenizer),
        Ok(Err(reason)) => Err(format!("it is not a tokenizer: {reason}")),
        Err(_) => Err("it is inconsistent: a trial encoding failed".into()),
    }
}

/// Checks `tokenizer.json`; its largest token id.
///
/// # Errors
/// As [`load_tokenizer`].
pub fn check(dir: &Path) -> Result<u32, TokenizerError> {
    let tokenizer = load_tokenizer(dir)?;
    Ok(tokenizer.get_vocab(true).into_values().max().unwrap_or(0))
}

/// # Errors
/// [`TokenizerError::IdBeyondVocabulary`] when an id has no row in the embedding.
pub fn check_ids(largest: u32, vocab_size: u64) -> Result<(), TokenizerError> {
    if u64::from(largest) < vocab_size {
        return Ok(());
    }
    Err(TokenizerError::IdBeyondVocabulary { id: largest, vocab_size })
}
