//! `config.json`: which architecture a model has, and whether it can play the role that is asked of it.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use crate::check::{CheckError, read_capped};
use crate::label::labels_of;
use crate::name::Role;

/// The file's name.
pub const CONFIG_FILE: &str = "config.json";

/// Real ones have a few KiB; label tables of classifiers are the longest.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A model family that backends know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// RoBERTa (Cappy itself).
    Roberta,
    /// XLM-RoBERTa.
    XlmRoberta,
    /// BERT.
    Bert,
    /// DistilBERT.
    DistilBert,
    /// ModernBERT.
    ModernBert,
    /// DeBERTa versions 2 and 3.
    DebertaV2,
    /// T5 v1.0 and v1.1 (FLAN-T5).
    T5,
}

impl Architecture {
    /// All of them, scorers first.
    pub const ALL: [Self; 7] = [
        Self::Roberta,
        Self::XlmRoberta,
        Self::Bert,
        Self::DistilBert,
        Self::ModernBert,
        Self::DebertaV2,
        Self::T5,
    ];

    /// `model_type` in `config.json`, which is also how backends declare what they load.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
            Self::Bert => "bert",
            Self::DistilBert => "distilbert",
            Self::ModernBert => "modernbert",
            Self::DebertaV2 => "deberta-v2",
            Self::T5 => "t5",
        }
    }

    /// What models of this family are for.
    pub fn role(self) -> Role {
        match self {
            Self::T5 => Role::Generator,
            _ => Role::Scorer,
        }
    }

    fn for_role(role: Role) -> String {
        let names: Vec<&str> =
            Self::ALL.iter().filter(|a| a.role() == role).map(|a| a.model_type()).collect();
        names.join(", ")
    }

    pub(crate) fn supported() -> String {
        format!("scorers {}; generators {}", Self::for_role(Role::Scorer), Self::for_role(Role::Generator))
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

/// A configuration that has been read and found sane.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Rows of the embedding: token ids are below this.
    pub vocab_size: u64,
    /// The file's text, as a backend takes it.
    pub json: String,
    /// A classifier's labels in the order of its head; empty for other models.
    pub labels: Vec<String>,
}

/// Reads `config.json` of a model directory.
///
/// # Errors
/// [`CheckError`] that names the file and, for an unknown architecture, those that are known.
pub fn read_config(dir: &Path) -> Result<ModelConfig, CheckError> {
    let bytes = read_capped(dir, CONFIG_FILE, MAX_CONFIG_BYTES, "every model directory needs one")?;
    parse_config(&bytes).map_err(|reason| CheckError::Config { reason })
}

fn parse_config(bytes: &[u8]) -> Result<ModelConfig, String> {
    let json = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let value: Value = serde_json::from_str(json).map_err(|error| format!("it is not JSON: {error}"))?;
    let Value::Object(fields) = value else {
        return Err("it is not a JSON object".into());
    };
    let architecture = architecture_of(&fields)?;
    let positive = |key: &str| match fields.get(key).map(Value::as_u64) {
        Some(Some(n)) if n > 0 && n <= u64::from(u32::MAX) => Ok(n),
        Some(_) => Err(format!("`{key}` must be a positive integer, it is {}", fields[key])),
        None => Err(format!("`{key}` is missing")),
    };
    let (width, heads, layers, inner) = match architecture {
        Architecture::T5 => ("d_model", "num_heads", "num_layers", "d_ff"),
        Architecture::DistilBert => ("dim", "n_heads", "n_layers", "hidden_dim"),
        _ => ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"),
    };
    let vocab_size = positive("vocab_size")?;
    let (width_value, heads_value) = (positive(width)?, positive(heads)?);
    positive(layers)?;
    positive(inner)?;
    if architecture != Architecture::T5 {
        positive("max_position_embeddings")?;
        if width_value % heads_value != 0 {
            return Err(format!("`{width}` {width_value} is not a multiple of `{heads}` {heads_value}"));
        }
    } else {
        positive("d_kv")?;
    }
    let labels = if architecture.role() == Role::Scorer { labels_of(&fields) } else { Vec::new() };
    Ok(ModelConfig { architecture, vocab_size, json: json.to_owned(), labels })
}

/// By `model_type`; files of before 2020 have only `architectures`.
fn architecture_of(fields: &Map<String, Value>) -> Result<Architecture, String> {
    let class = fields.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let known = |name: &str| Architecture::ALL.into_iter().find(|a| a.model_type() == name);
    let (name, found) = match (fields.get("model_type").and_then(Value::as_str), class) {
        (Some(model_type), _) => (model_type, known(model_type)),
        (None, Some(class)) => (
            class,
            [
                ("XLMRoberta", Architecture::XlmRoberta),
                ("Roberta", Architecture::Roberta),
                ("Bert", Architecture::Bert),
                ("DistilBert", Architecture::DistilBert),
                ("ModernBert", Architecture::ModernBert),
                ("DebertaV2", Architecture::DebertaV2),
                ("T5", Architecture::T5),
            ]
            .into_iter()
            .find(|(prefix, _)| class.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("For")))
            .map(|(_, architecture)| architecture),
        ),
        (None, None) => {
            return Err(format!(
                "neither `model_type` nor `architectures` says what the model is; supported: {}",
                Architecture::supported()
            ));
        }
    };
    found.ok_or_else(|| {
        format!("architecture `{name}` is not supported; supported: {}", Architecture::supported())
    })
}

impl ModelConfig {
    /// # Errors
    /// [`CheckError::Role`] when a model of this family cannot be used as `role`.
    pub fn check_role(&self, role: Role) -> Result<(), CheckError> {
        if self.architecture.role() == role {
            return Ok(());
        }
        Err(CheckError::Role { architecture: self.architecture, role, known: Architecture::for_role(role) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BERT: &str = r#"{"model_type":"bert","vocab_size":9,"hidden_size":4,"num_attention_heads":2,
        "num_hidden_layers":1,"intermediate_size":8,"max_position_embeddings":16}"#;

    #[test]
    fn configurations_are_understood_or_refused_by_name() {
        let config = parse_config(BERT.as_bytes()).unwrap();
        assert_eq!((config.architecture, config.vocab_size), (Architecture::Bert, 9));
        assert!(config.check_role(Role::Generator).unwrap_err().to_string().contains("t5"));
        let old = BERT
            .replace(r#""model_type":"bert""#, r#""architectures":["XLMRobertaForSequenceClassification"]"#);
        assert_eq!(parse_config(old.as_bytes()).unwrap().architecture, Architecture::XlmRoberta);

        let distilled = r#"{"model_type":"distilbert","vocab_size":9,"dim":4,"n_heads":2,"n_layers":1,"hidden_dim":8,
            "max_position_embeddings":16,"id2label":{"0":"x","1":"y"}}"#;
        let config = parse_config(distilled.as_bytes()).unwrap();
        assert_eq!((config.architecture, config.labels.len()), (Architecture::DistilBert, 2));

        let table = [
            (
                BERT.replace("bert", "gpt2"),
                "architecture `gpt2` is not supported; supported: scorers roberta, xlm-roberta, bert, distilbert, modernbert, deberta-v2; generators t5",
            ),
            (BERT.replace(r#""model_type":"bert","#, ""), "neither `model_type`"),
            (BERT.replace(r#""vocab_size":9,"#, ""), "`vocab_size` is missing"),
            (
                BERT.replace(r#""hidden_size":4"#, r#""hidden_size":-4"#),
                "`hidden_size` must be a positive integer, it is -4",
            ),
            (BERT.replace(r#""num_attention_heads":2"#, r#""num_attention_heads":3"#), "not a multiple"),
            ("[".repeat(1000), "it is not JSON"),
            ("7".into(), "it is not a JSON object"),
        ];
        for (json, expected) in table {
            let error = parse_config(json.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
