//! `config.json` of a sequence classifier.

use cappy_plugin_abi::Failure;
use serde::Deserialize;

/// The architectures that differ in positions, segments and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `RobertaForSequenceClassification`
    Roberta,
    /// `XLMRobertaForSequenceClassification`
    XlmRoberta,
    /// `BertForSequenceClassification`
    Bert,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Roberta, Self::XlmRoberta, Self::Bert];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
            Self::Bert => "bert",
        }
    }

    /// The class name's first part.
    fn class(self) -> &'static str {
        match self {
            Self::Roberta => "Roberta",
            Self::XlmRoberta => "XLMRoberta",
            Self::Bert => "Bert",
        }
    }
}

/// What the forward pass needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Which architecture.
    pub family: Family,
    /// Whether `architectures` names a classifier, or a model that lacks its head.
    pub classifier: bool,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Rows of the position embeddings.
    pub max_positions: usize,
    /// Segments.
    pub type_vocab_size: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Width inside the feed-forward network.
    pub intermediate: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Added to variances.
    pub layer_norm_eps: f32,
    /// RoBERTa's positions start above it.
    pub pad_token_id: u32,
    /// Outputs of the head.
    pub labels: usize,
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "one")]
    type_vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    layer_norm_eps: Option<f64>,
    pad_token_id: Option<u32>,
    num_labels: Option<usize>,
    id2label: Option<serde_json::Map<String, serde_json::Value>>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

fn one() -> usize {
    1
}

impl EncoderConfig {
    /// Parses and checks `config.json`.
    ///
    /// # Errors
    /// `BadModel` for what is wrong, `Unsupported` for what this backend does not compute; both name the field.
    pub fn parse(json: &str) -> Result<Self, Failure> {
        let raw: Raw = serde_json::from_str(json).map_err(|e| {
            Failure::bad_model(format!("`config.json` is not the configuration of an encoder: {e}"))
        })?;
        let architecture = raw.architectures.as_deref().and_then(<[_]>::first);
        let family = match (&raw.model_type, architecture) {
            (Some(model_type), _) => Family::ALL.into_iter().find(|f| f.model_type() == model_type),
            (None, Some(class)) => Family::ALL
                .into_iter()
                .find(|f| class.strip_prefix(f.class()).is_some_and(|r| r.starts_with("For"))),
            (None, None) => None,
        };
        let Some(family) = family else {
            let found = raw.model_type.as_ref().or(architecture).map_or("nothing", String::as_str);
            return Err(Failure::unsupported(format!(
                "`config.json` names architecture `{found}`; roberta, xlm-roberta and bert classifiers are understood"
            )));
        };
        let classifier = match architecture {
            None => true,
            Some(class) => match class.strip_prefix(family.class()) {
                Some(rest) => rest == "ForSequenceClassification",
                None => {
                    return Err(Failure::bad_model(format!(
                        "`config.json` has architecture `{class}` but model_type `{}`",
                        family.model_type()
                    )));
                }
            },
        };
        let refuse = |field: &str, value: &str| {
            Failure::unsupported(format!(
                "`config.json` has {field} `{value}`, which this backend does not compute"
            ))
        };
        match raw.hidden_act.as_deref() {
            None | Some("gelu") => {}
            Some(other) => return Err(refuse("hidden_act", other)),
        }
        match raw.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => return Err(refuse("position_embedding_type", other)),
        }
        if raw.is_decoder {
            return Err(refuse("is_decoder", "true"));
        }
        let labels = raw.num_labels.or(raw.id2label.as_ref().map(serde_json::Map::len)).unwrap_or(2);
        for (field, value) in [
            ("vocab_size", raw.vocab_size),
            ("max_position_embeddings", raw.max_position_embeddings),
            ("type_vocab_size", raw.type_vocab_size),
            ("hidden_size", raw.hidden_size),
            ("intermediate_size", raw.intermediate_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", raw.num_attention_heads),
            ("num_labels", labels),
        ] {
            if value == 0 || value > 1 << 24 {
                return Err(Failure::bad_model(format!("`config.json` has {field} {value}")));
            }
        }
        if !raw.hidden_size.is_multiple_of(raw.num_attention_heads) {
            return Err(Failure::bad_model(format!(
                "`config.json` has hidden_size {}, which {} heads do not divide",
                raw.hidden_size, raw.num_attention_heads
            )));
        }
        let eps = raw.layer_norm_eps.unwrap_or(1e-12);
        if !(eps > 0.0 && eps < 1.0) {
            return Err(Failure::bad_model(format!("`config.json` has layer_norm_eps {eps}")));
        }
        let pad_token_id = raw.pad_token_id.unwrap_or(if family == Family::Bert { 0 } else { 1 });
        let config = Self {
            family,
            classifier,
            vocab_size: raw.vocab_size,
            max_positions: raw.max_position_embeddings,
            type_vocab_size: raw.type_vocab_size,
            hidden: raw.hidden_size,
            intermediate: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            layer_norm_eps: eps as f32,
            pad_token_id,
            labels,
        };
        if config.first_position() >= config.max_positions {
            return Err(Failure::bad_model(format!(
                "`config.json` has max_position_embeddings {}, none of which is above pad_token_id {pad_token_id}",
                config.max_positions
            )));
        }
        Ok(config)
    }

    /// Numbers a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Position of a row's first token: RoBERTa counts from above the pad id.
    pub fn first_position(&self) -> usize {
        match self.family {
            Family::Bert => 0,
            Family::Roberta | Family::XlmRoberta => self.pad_token_id as usize + 1,
        }
    }

    /// Longest row.
    pub fn max_tokens(&self) -> usize {
        self.max_positions - self.first_position()
    }

    /// Position of each token of a row, as transformers' `create_position_ids_from_input_ids`: a pad id within a
    /// RoBERTa row has the pad position and is not counted.
    pub fn positions<'a>(&'a self, row: &'a [u32]) -> impl Iterator<Item = usize> + 'a {
        let mut next = self.first_position();
        row.iter().map(move |&id| {
            if self.family != Family::Bert && id == self.pad_token_id {
                return id as usize;
            }
            next += 1;
            next - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::Code;

    const LARGE: &str = r#"{"architectures": ["RobertaForSequenceClassification"], "model_type": "roberta",
        "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "hidden_size": 1024,
        "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "layer_norm_eps": 1e-05,
        "pad_token_id": 1, "id2label": {"0": "LABEL_0"}, "hidden_act": "gelu"}"#;

    #[test]
    fn roberta_large() {
        let config = EncoderConfig::parse(LARGE).unwrap();
        assert_eq!((config.family, config.labels, config.max_tokens()), (Family::Roberta, 1, 512));
        assert_eq!(config.positions(&[0, 5, 1, 7]).collect::<Vec<_>>(), [2, 3, 1, 4]);
    }

    #[test]
    fn wrong_configurations_are_refused_by_field() {
        let table = [
            ("not json", "{", Code::BadModel, "config.json"),
            ("\"roberta\"", "\"deberta\"", Code::Unsupported, "deberta"),
            ("RobertaFor", "BertFor", Code::BadModel, "BertFor"),
            ("\"gelu\"", "\"relu\"", Code::Unsupported, "hidden_act"),
            ("1024", "1023", Code::BadModel, "hidden_size"),
            ("50265", "0", Code::BadModel, "vocab_size"),
            ("514", "2", Code::BadModel, "max_position_embeddings"),
            ("1e-05", "-1", Code::BadModel, "layer_norm_eps"),
        ];
        for (from, to, code, names) in table {
            let json = if from == "not json" { to.to_string() } else { LARGE.replace(from, to) };
            let failure = EncoderConfig::parse(&json).unwrap_err();
            assert!(failure.code == code && failure.message.contains(names), "{from} -> {to}: {failure:?}");
        }
    }
}
