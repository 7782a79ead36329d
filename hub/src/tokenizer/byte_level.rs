//! RoBERTa: byte-level BPE from `vocab.json` and `merges.txt`.
//!
//! Source: transformers' `RobertaConverter` and `RobertaTokenizer`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use super::TokenizerError;
use super::special::{Settings, Special, assemble};
use crate::check::read_capped;

const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const MAX_BYTES: u64 = 64 << 20;

pub(super) fn build(dir: &Path) -> Result<Value, TokenizerError> {
    let vocab = read_capped(dir, VOCAB, MAX_BYTES, "download the model again")?;
    let vocab: Value = serde_json::from_slice(&vocab)
        .map_err(|error| TokenizerError::invalid(VOCAB, format!("it is not JSON: {error}")))?;
    let ids = ids_of(&vocab)?;
    let merges = read_capped(dir, MERGES, MAX_BYTES, "download the model again")?;
    let merges = merges_of(&merges)?;

    let settings = Settings::read(dir)?;
    // The reference makes these with `normalized` set; it has no normalizer that could tell the difference.
    let token = |part: &str, content: &str| {
        settings.token(part, Special { normalized: true, ..Special::new(content) })
    };
    let (bos, eos) = (token("bos_token", "<s>"), token("eos_token", "</s>"));
    let (sep, cls) = (token("sep_token", "</s>"), token("cls_token", "<s>"));
    let rest = [token("unk_token", "<unk>"), token("pad_token", "<pad>")];
    let mask = settings.token("mask_token", Special::mask("<mask>"));
    let prefix = settings.flag("add_prefix_space").unwrap_or(false);
    let id = |token: &Special| {
        ids.get(token.content.as_str()).copied().ok_or_else(|| {
            TokenizerError::invalid(VOCAB, format!("special token `{}` is missing", token.content))
        })
    };
    let (sep_id, cls_id) = (id(&sep)?, id(&cls)?);
    let post = json!({
        "type": "RobertaProcessing", "sep": [sep.content, sep_id], "cls": [cls.content, cls_id],
        "trim_offsets": settings.flag("trim_offsets").unwrap_or(true), "add_prefix_space": prefix,
    });
    let additional = settings.additional().unwrap_or_default();
    let specials = [bos, eos, sep, cls].into_iter().chain(rest).chain([mask]).chain(additional);
    let added = settings.added_tokens(&ids, specials)?;
    let byte_level = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": merges,
    });
    Ok(assemble([
        ("added_tokens", added.into()),
        ("normalizer", Value::Null),
        ("pre_tokenizer", byte_level(prefix)),
        ("post_processor", post),
        ("decoder", byte_level(true)),
        ("model", model),
    ]))
}

fn ids_of(vocab: &Value) -> Result<HashMap<&str, u32>, TokenizerError> {
    let object = vocab.as_object().filter(|object| !object.is_empty());
    let object = object.ok_or_else(|| TokenizerError::invalid(VOCAB, "it is not an object of tokens"))?;
    object
        .iter()
        .map(|(token, id)| match id.as_u64().map(u32::try_from) {
            Some(Ok(id)) => Ok((token.as_str(), id)),
            _ => {
                Err(TokenizerError::invalid(VOCAB, format!("the id of `{token}` is not a number below 2^32")))
            }
        })
        .collect()
}

/// One pair a line, the first line a comment. A repeated pair keeps its last rank in the reference; a real file has
/// none, so one is refused.
fn merges_of(text: &[u8]) -> Result<Vec<[&str; 2]>, TokenizerError> {
    let text = std::str::from_utf8(text).map_err(|_| TokenizerError::invalid(MERGES, "it is not UTF-8"))?;
    let mut seen = std::collections::HashSet::new();
    let mut merges = Vec::new();
    for (at, line) in text.split('\n').enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let (Some(left), Some(right), None) = (words.next(), words.next(), words.next()) else {
            return Err(TokenizerError::invalid(MERGES, format!("line {} is not a pair", at + 1)));
        };
        if !seen.insert((left, right)) {
            return Err(TokenizerError::invalid(MERGES, format!("line {} repeats a pair", at + 1)));
        }
        merges.push([left, right]);
    }
    Ok(merges)
}
