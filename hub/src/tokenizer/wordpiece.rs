//! BERT: WordPiece from `vocab.txt`.
//!
//! Source: transformers' `BertConverter` and `BertTokenizer`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::TokenizerError;
use super::special::{Settings, Special, assemble, template};
use crate::check::read_capped;

const VOCAB: &str = "vocab.txt";
const MAX_BYTES: u64 = 64 << 20;

/// A longer word is unknown as a whole.
const MAX_WORD_CHARS: u32 = 100;

pub(super) fn build(dir: &Path) -> Result<Value, TokenizerError> {
    let text = read_capped(dir, VOCAB, MAX_BYTES, "download the model again")?;
    let text = std::str::from_utf8(&text).map_err(|_| TokenizerError::invalid(VOCAB, "it is not UTF-8"))?;
    // A line's number is its id; of a repeated token the last line counts, as in the reference.
    let ids: HashMap<&str, u32> = text.strip_suffix('\n').unwrap_or(text).split('\n').zip(0..).collect();

    let settings = Settings::read(dir)?;
    let token = |part: &str, content: &str| settings.token(part, Special::new(content));
    let (unk, sep) = (token("unk_token", "[UNK]"), token("sep_token", "[SEP]"));
    let (pad, cls) = (token("pad_token", "[PAD]"), token("cls_token", "[CLS]"));
    let mask = token("mask_token", "[MASK]");
    let id = |token: &Special| {
        ids.get(token.content.as_str()).copied().ok_or_else(|| {
            TokenizerError::invalid(VOCAB, format!("special token `{}` is missing", token.content))
        })
    };
    let (cls_id, sep_id, _) = (id(&cls)?, id(&sep)?, id(&unk)?);
    let (c, s) = (cls.content.clone(), sep.content.clone());
    let post = template(
        &[(&c, 0), ("A", 0), (&s, 0)],
        &[(&c, 0), ("A", 0), (&s, 0), ("B", 1), (&s, 1)],
        &[(&c, cls_id), (&s, sep_id)],
    );
    let normalizer = json!({
        "type": "BertNormalizer", "clean_text": true,
        "handle_chinese_chars": settings.flag("tokenize_chinese_chars").unwrap_or(true),
        "strip_accents": settings.flag("strip_accents"),
        "lowercase": settings.flag("do_lower_case").unwrap_or(true),
    });
    let mut by_id: Vec<(&str, u32)> = ids.iter().map(|(token, id)| (*token, *id)).collect();
    by_id.sort_by_key(|(_, id)| *id);
    let vocab: Map<String, Value> =
        by_id.into_iter().map(|(token, id)| (token.to_owned(), id.into())).collect();
    let model = json!({
        "type": "WordPiece", "unk_token": unk.content, "continuing_subword_prefix": "##",
        "max_input_chars_per_word": MAX_WORD_CHARS, "vocab": vocab,
    });
    let additional = settings.additional().unwrap_or_default();
    let added = settings.added_tokens(&ids, [unk, sep, pad, cls, mask].into_iter().chain(additional))?;
    Ok(assemble([
        ("added_tokens", added.into()),
        ("normalizer", normalizer),
        ("pre_tokenizer", json!({"type": "BertPreTokenizer"})),
        ("post_processor", post),
        ("decoder", json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
        ("model", model),
    ]))
}
