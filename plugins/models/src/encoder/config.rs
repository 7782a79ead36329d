//! `config.json` of the families that are BERT but for positions, segments and head: BERT, RoBERTa, XLM-R,
//! DistilBERT.

use cappy_plugin_abi::Failure;
use serde::Deserialize;

pub use super::family::{Family, LabelRow};
use super::family::{Identity, check_heads, check_sizes, epsilon, not_computed, parse};

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
    /// Segments; DistilBERT has none.
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
    /// Where the only output is one of several in the checkpoint.
    pub label_row: Option<LabelRow>,
}

#[derive(Deserialize)]
struct Raw {
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    layer_norm_eps: Option<f64>,
    pad_token_id: Option<u32>,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
}

impl EncoderConfig {
    /// Parses and checks `config.json`.
    ///
    /// # Errors
    /// `BadModel` for what is wrong, `Unsupported` for what this backend does not compute; both name the field.
    pub fn parse(json: &str) -> Result<Self, Failure> {
        let Identity { family, classifier, labels, label_row } = Identity::parse(json)?;
        if !family.is_like_bert() {
            return Err(Failure::unsupported(format!("`{}` is not built like BERT", family.model_type())));
        }
        let raw: Raw = parse(json)?;
        match raw.hidden_act.as_deref() {
            None | Some("gelu") => {}
            Some(other) => return Err(not_computed("hidden_act", other)),
        }
        match raw.position_embedding_type.as_deref() {
            None | Some("absolute") => {}
            Some(other) => return Err(not_computed("position_embedding_type", other)),
        }
        let type_vocab_size = match family {
            Family::DistilBert => 0,
            _ => raw.type_vocab_size.unwrap_or(1),
        };
        check_sizes(&[
            ("vocab_size", raw.vocab_size),
            ("max_position_embeddings", raw.max_position_embeddings),
            ("hidden_size", raw.hidden_size),
            ("intermediate_size", raw.intermediate_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", raw.num_attention_heads),
        ])?;
        if family != Family::DistilBert {
            check_sizes(&[("type_vocab_size", type_vocab_size)])?;
        }
        check_heads(raw.hidden_size, raw.num_attention_heads)?;
        let zero_pad = matches!(family, Family::Bert | Family::DistilBert);
        let pad_token_id = raw.pad_token_id.unwrap_or(if zero_pad { 0 } else { 1 });
        let config = Self {
            family,
            classifier,
            vocab_size: raw.vocab_size,
            max_positions: raw.max_position_embeddings,
            type_vocab_size,
            hidden: raw.hidden_size,
            intermediate: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            // DistilBERT's is fixed in its code.
            layer_norm_eps: epsilon("layer_norm_eps", raw.layer_norm_eps.unwrap_or(1e-12))?,
            pad_token_id,
            labels,
            label_row,
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
        if self.positions_above_pad() { self.pad_token_id as usize + 1 } else { 0 }
    }

    fn positions_above_pad(&self) -> bool {
        matches!(self.family, Family::Roberta | Family::XlmRoberta)
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
            if self.positions_above_pad() && id == self.pad_token_id {
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
    fn distilbert_has_names_of_its_own() {
        let json = r#"{"architectures": ["DistilBertForSequenceClassification"], "model_type": "distilbert",
            "vocab_size": 30522, "max_position_embeddings": 512, "dim": 768, "hidden_dim": 3072, "n_layers": 6,
            "n_heads": 12, "activation": "gelu", "pad_token_id": 0, "num_labels": 1,
            "ranking_label": {"name": "entailment", "index": 2, "of": 3}}"#;
        let config = EncoderConfig::parse(json).unwrap();
        assert_eq!((config.family, config.hidden, config.layers), (Family::DistilBert, 768, 6));
        assert_eq!((config.type_vocab_size, config.max_tokens()), (0, 512));
        assert_eq!((config.labels, config.label_row), (1, Some(LabelRow { index: 2, of: 3 })));
        for (from, to) in [("\"index\": 2", "\"index\": 3"), ("\"num_labels\": 1", "\"num_labels\": 3")] {
            let failure = EncoderConfig::parse(&json.replace(from, to)).unwrap_err();
            assert!(failure.code == Code::BadModel && failure.message.contains("ranking_label"), "{failure}");
        }
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
