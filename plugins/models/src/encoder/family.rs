//! What every classifier's `config.json` says alike: its family, whether it has a head, and the head's labels.

use cappy_plugin_abi::Failure;
use serde::Deserialize;

/// The architectures that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `RobertaForSequenceClassification`
    Roberta,
    /// `XLMRobertaForSequenceClassification`
    XlmRoberta,
    /// `BertForSequenceClassification`
    Bert,
    /// `DistilBertForSequenceClassification`
    DistilBert,
    /// `ModernBertForSequenceClassification`
    ModernBert,
    /// `DebertaV2ForSequenceClassification`: versions 2 and 3.
    DebertaV2,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Roberta, Self::XlmRoberta, Self::Bert, Self::DistilBert, Self::ModernBert, Self::DebertaV2];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
            Self::Bert => "bert",
            Self::DistilBert => "distilbert",
            Self::ModernBert => "modernbert",
            Self::DebertaV2 => "deberta-v2",
        }
    }

    /// The module of the encoder below the head, which the names of its tensors begin with.
    pub fn base(self) -> &'static str {
        match self {
            Self::Roberta | Self::XlmRoberta => "roberta",
            Self::Bert => "bert",
            Self::DistilBert => "distilbert",
            Self::ModernBert => "model",
            Self::DebertaV2 => "deberta",
        }
    }

    /// The weight that makes labels.
    pub fn head(self) -> &'static str {
        match self {
            Self::Roberta | Self::XlmRoberta => "classifier.out_proj.weight",
            _ => "classifier.weight",
        }
    }

    /// Whether it is built like BERT, but for positions, segments and head.
    pub fn is_like_bert(self) -> bool {
        !matches!(self, Self::ModernBert | Self::DebertaV2)
    }

    /// The class name's first part.
    fn class(self) -> &'static str {
        match self {
            Self::Roberta => "Roberta",
            Self::XlmRoberta => "XLMRoberta",
            Self::Bert => "Bert",
            Self::DistilBert => "DistilBert",
            Self::ModernBert => "ModernBert",
            Self::DebertaV2 => "DebertaV2",
        }
    }
}

/// The one label of a classifier of several that scores are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelRow {
    /// Its row in the head's last weight.
    pub index: usize,
    /// Rows of that weight.
    pub of: usize,
}

/// What a classifier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its architecture.
    pub family: Family,
    /// Whether `architectures` names a classifier, or a model that lacks its head.
    pub classifier: bool,
    /// Outputs of the head.
    pub labels: usize,
    /// Where the only output is one of several in the checkpoint.
    pub label_row: Option<LabelRow>,
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    num_labels: Option<usize>,
    id2label: Option<serde_json::Map<String, serde_json::Value>>,
    ranking_label: Option<RankingLabel>,
    #[serde(default)]
    is_decoder: bool,
}

/// Written by the host when it was told which label of several ranks; the other fields then describe that one alone.
#[derive(Deserialize)]
struct RankingLabel {
    index: usize,
    of: usize,
}

/// transformers' default for a classifier whose configuration says nothing.
const DEFAULT_LABELS: usize = 2;
/// Larger numbers are damage.
const MAX_SIZE: usize = 1 << 24;

impl Identity {
    /// Reads `config.json` as far as all families have it alike.
    ///
    /// # Errors
    /// `BadModel` for what is wrong, `Unsupported` for what this backend does not compute; both name the field.
    pub fn parse(json: &str) -> Result<Self, Failure> {
        let raw: Raw = parse(json)?;
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
            let known = Family::ALL.map(Family::model_type).join(", ");
            return Err(Failure::unsupported(format!(
                "`config.json` names architecture `{found}`; classifiers of these are understood: {known}"
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
        if raw.is_decoder {
            return Err(not_computed("is_decoder", "true"));
        }
        // Without a head, one that gives a score is drawn.
        let default = if classifier { DEFAULT_LABELS } else { 1 };
        let labels = raw.num_labels.or(raw.id2label.as_ref().map(serde_json::Map::len)).unwrap_or(default);
        check_sizes(&[("num_labels", labels)])?;
        let label_row = raw.ranking_label.map(|RankingLabel { index, of }| LabelRow { index, of });
        if let Some(LabelRow { index, of }) = label_row
            && (labels != 1 || index >= of || of > MAX_SIZE)
        {
            return Err(Failure::bad_model(format!(
                "`config.json` has ranking_label {index} of {of} and num_labels {labels}"
            )));
        }
        Ok(Self { family, classifier, labels, label_row })
    }
}

/// Reads `config.json` as `T` needs it.
pub fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Failure> {
    serde_json::from_str(json)
        .map_err(|e| Failure::bad_model(format!("`config.json` is not the configuration of an encoder: {e}")))
}

/// What is said of a setting without code for it.
pub fn not_computed(field: &str, value: &str) -> Failure {
    Failure::unsupported(format!("`config.json` has {field} `{value}`, which this backend does not compute"))
}

/// Refuses sizes that no model has.
pub fn check_sizes(sizes: &[(&str, usize)]) -> Result<(), Failure> {
    match sizes.iter().find(|(_, value)| *value == 0 || *value > MAX_SIZE) {
        Some((field, value)) => Err(Failure::bad_model(format!("`config.json` has {field} {value}"))),
        None => Ok(()),
    }
}

/// Refuses a width that heads do not divide.
pub fn check_heads(hidden: usize, heads: usize) -> Result<(), Failure> {
    if hidden.is_multiple_of(heads) {
        return Ok(());
    }
    Err(Failure::bad_model(format!(
        "`config.json` has hidden_size {hidden}, which {heads} heads do not divide"
    )))
}

/// A variance's epsilon, if it can be one.
pub fn epsilon(field: &str, value: f64) -> Result<f32, Failure> {
    if value > 0.0 && value < 1.0 {
        return Ok(value as f32);
    }
    Err(Failure::bad_model(format!("`config.json` has {field} {value}")))
}
