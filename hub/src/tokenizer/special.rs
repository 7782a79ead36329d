//! Special and added tokens: what `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` say
//! about them, and how they are numbered.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::TokenizerError;
use crate::check::{CheckError, read_capped};

const MAX_SETTINGS_BYTES: u64 = 16 << 20;

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// A token that is found in the text before the model sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Special {
    pub content: String,
    pub lstrip: bool,
    pub rstrip: bool,
    pub single_word: bool,
    pub normalized: bool,
    pub special: bool,
}

impl Special {
    /// Found as it is written, and left out when decoding.
    pub fn new(content: impl Into<String>) -> Self {
        Self {
            content: content.into(),
            lstrip: false,
            rstrip: false,
            single_word: false,
            normalized: false,
            special: true,
        }
    }

    /// Takes the white space before it along, as a mask that stands for a word must.
    pub fn mask(content: &str) -> Self {
        Self { lstrip: true, ..Self::new(content) }
    }

    /// A string, or an object with the fields of this type; what it does not say is as in `self`.
    fn overridden_by(self, value: &Value) -> Self {
        let flag = |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
        let Some(content) = value.as_str().or_else(|| value.get("content").and_then(Value::as_str)) else {
            return self;
        };
        Self {
            content: content.to_owned(),
            lstrip: flag("lstrip", self.lstrip),
            rstrip: flag("rstrip", self.rstrip),
            single_word: flag("single_word", self.single_word),
            normalized: flag("normalized", self.normalized),
            special: flag("special", self.special),
        }
    }
}

/// The settings beside a vocabulary. Absent files count as empty.
pub(super) struct Settings {
    config: Map<String, Value>,
    special: Map<String, Value>,
    added: Map<String, Value>,
}

impl Settings {
    pub fn read(dir: &Path) -> Result<Self, TokenizerError> {
        let object = |file: &str| match read_capped(dir, file, MAX_SETTINGS_BYTES, "") {
            Err(CheckError::Missing { .. }) => Ok(Map::new()),
            Err(other) => Err(other.into()),
            Ok(bytes) => serde_json::from_slice::<Map<String, Value>>(&bytes)
                .map_err(|error| TokenizerError::invalid(file, format!("it is not a JSON object: {error}"))),
        };
        Ok(Self { config: object(CONFIG)?, special: object(SPECIAL)?, added: object(ADDED)? })
    }

    /// A flag of `tokenizer_config.json`; `None` when absent or null.
    pub fn flag(&self, key: &str) -> Option<bool> {
        self.config.get(key).and_then(Value::as_bool)
    }

    /// A count of `tokenizer_config.json`.
    pub fn count(&self, key: &str) -> Option<u64> {
        self.config.get(key).and_then(Value::as_u64)
    }

    /// A token by its part in the model: `bos_token`.
    pub fn token(&self, part: &str, default: Special) -> Special {
        let value = self.special.get(part).filter(|value| !value.is_null());
        match value.or_else(|| self.config.get(part)) {
            Some(value) => default.overridden_by(value),
            None => default,
        }
    }

    /// `additional_special_tokens`, where given.
    pub fn additional(&self) -> Option<Vec<Special>> {
        let list = self.special.get("additional_special_tokens");
        let list = list.or_else(|| self.config.get("additional_special_tokens"))?.as_array()?;
        Some(list.iter().map(|value| Special::new("").overridden_by(value)).collect())
    }

    /// Tokens that were added behind the vocabulary, with the ids that they must get, in the order of those.
    fn added(&self) -> Result<Vec<(u64, Special)>, TokenizerError> {
        let mut tokens = Vec::new();
        for (content, id) in &self.added {
            let id = id
                .as_u64()
                .ok_or_else(|| TokenizerError::invalid(ADDED, format!("`{content}` has no id")))?;
            tokens.push((id, Special { special: false, ..Special::new(content) }));
        }
        if let Some(Value::Object(decoder)) = self.config.get("added_tokens_decoder") {
            for (id, value) in decoder {
                let id = id.parse().map_err(|_| {
                    TokenizerError::invalid(CONFIG, format!("added_tokens_decoder: `{id}` is not an id"))
                })?;
                tokens.retain(|(other, _)| *other != id);
                tokens.push((id, Special::new("").overridden_by(value)));
            }
        }
        tokens.sort_by_key(|(id, _)| *id);
        Ok(tokens)
    }

    /// The `added_tokens` of a tokenizer.json: `specials` in order, then whatever was added behind the vocabulary.
    /// One that the vocabulary has keeps its id there; others follow it.
    pub fn added_tokens(
        &self,
        vocabulary: &HashMap<&str, u32>,
        specials: impl IntoIterator<Item = Special>,
    ) -> Result<Vec<Value>, TokenizerError> {
        let mut next = vocabulary.values().max().map_or(0, |id| id + 1);
        let mut numbered: Vec<(u32, Special)> = Vec::new();
        let mut number = |token: Special, wanted: Option<u64>| {
            if let Some((_, known)) = numbered.iter_mut().find(|(_, known)| known.content == token.content) {
                // A token that is special anywhere is special.
                known.special |= token.special;
                return Ok(());
            }
            let id = vocabulary.get(token.content.as_str()).copied().unwrap_or(next);
            if wanted.is_some_and(|wanted| wanted != u64::from(id)) {
                let reason = format!("added token `{}` cannot have another id than {id}", token.content);
                return Err(TokenizerError::invalid(ADDED, reason));
            }
            next = next.max(id + 1);
            numbered.push((id, token));
            Ok(())
        };
        for (id, token) in self.added()? {
            number(token, Some(id))?;
        }
        for token in specials {
            number(token, None)?;
        }
        numbered.sort_by_key(|(id, _)| *id);
        let as_json = |(id, token): (u32, Special)| {
            json!({
                "id": id, "content": token.content, "single_word": token.single_word, "lstrip": token.lstrip,
                "rstrip": token.rstrip, "normalized": token.normalized, "special": token.special,
            })
        };
        Ok(numbered.into_iter().map(as_json).collect())
    }
}

/// A `TemplateProcessing`: each word is `A`, `B` or a special token, with its segment.
pub(super) fn template(single: &[(&str, u32)], pair: &[(&str, u32)], specials: &[(&str, u32)]) -> Value {
    let pieces = |words: &[(&str, u32)]| -> Vec<Value> {
        let piece = |(word, segment): &(&str, u32)| match *word {
            "A" | "B" => json!({"Sequence": {"id": word, "type_id": segment}}),
            token => json!({"SpecialToken": {"id": token, "type_id": segment}}),
        };
        words.iter().map(piece).collect()
    };
    let specials: Map<String, Value> = specials
        .iter()
        .map(|(token, id)| ((*token).to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    json!({
        "type": "TemplateProcessing", "single": pieces(single), "pair": pieces(pair), "special_tokens": specials,
    })
}

/// The parts of a tokenizer.json, put together.
pub(super) fn assemble(parts: [(&str, Value); 6]) -> Value {
    let mut json = Map::new();
    json.insert("version".into(), "1.0".into());
    json.insert("truncation".into(), Value::Null);
    json.insert("padding".into(), Value::Null);
    json.extend(parts.map(|(key, value)| (key.to_owned(), value)));
    Value::Object(json)
}
