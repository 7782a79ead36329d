//! T5, XLM-R and DeBERTa: Unigram from a sentencepiece model.
//!
//! Source: transformers' `SpmConverter`, `T5Converter`, `XLMRobertaConverter`,
//! `DebertaV2Converter`; the messages are those fields of
//! sentencepiece's `sentencepiece_model.proto` that the conversion needs.

use std::collections::HashMap;
use std::path::Path;

use prost::Message;
use serde_json::{Value, json};

use super::special::{Settings, Special, assemble, template};
use super::{TokenizerError, TokenizerSource, charsmap};
use crate::check::read_capped;

const MAX_BYTES: u64 = 64 << 20;

/// Stands for a space.
const SPACE: &str = "\u{2581}";

/// `<extra_id_0>` ... that T5 has behind its vocabulary.
const T5_EXTRA_IDS: u64 = 100;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer_spec: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer_spec: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, tag = "1")]
    piece: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

const KIND_CONTROL: i32 = 3;
const KIND_USER_DEFINED: i32 = 4;

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(int32, optional, tag = "40")]
    unk_id: Option<i32>,
}

const MODEL_UNIGRAM: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", tag = "2")]
    precompiled_charsmap: Vec<u8>,
}

/// `spiece.model`.
pub(super) fn build_t5(dir: &Path) -> Result<Value, TokenizerError> {
    let file = TokenizerSource::T5.vocabulary_files()[0];
    let proto = read(dir, file)?;
    let settings = Settings::read(dir)?;
    let extra = settings.count("extra_ids").unwrap_or(T5_EXTRA_IDS).min(100_000);
    let mut vocab: Vec<(String, f32)> = proto.pieces.iter().map(|p| (p.piece.clone(), p.score)).collect();
    vocab.extend((0..extra).rev().map(|i| (format!("<extra_id_{i}>"), 0.0)));

    let eos = settings.token("eos_token", Special::new("</s>"));
    let others = ["unk", "pad"]
        .map(|part| settings.token(&format!("{part}_token"), Special::new(format!("<{part}>"))));
    let is_extra = |token: &Special| token.content.contains("<extra_id_");
    let mut additional = settings.additional().unwrap_or_default();
    if !additional.iter().any(is_extra) {
        additional.extend((0..extra).map(|i| Special::new(format!("<extra_id_{i}>"))));
    }
    let unk_id = proto.trainer_spec.as_ref().and_then(|spec| spec.unk_id).unwrap_or(0);
    let specials = [eos.clone()].into_iter().chain(others).chain(additional);
    let steps = Steps::usual(file, &proto, &settings)?;
    assemble_unigram(file, &proto, &settings, (vocab, unk_id), specials, steps, |id| {
        let e = eos.content.as_str();
        Ok(template(&[("A", 0), (e, 0)], &[("A", 0), (e, 0), ("B", 0), (e, 0)], &[(e, id(e)?)]))
    })
}

/// `sentencepiece.bpe.model` (Unigram in spite of its name). The model was trained with fairseq's numbering: four
/// special tokens first, then the pieces without sentencepiece's own three, the mask last.
pub(super) fn build_xlm_roberta(dir: &Path) -> Result<Value, TokenizerError> {
    let file = TokenizerSource::XlmRoberta.vocabulary_files()[0];
    let proto = read(dir, file)?;
    let settings = Settings::read(dir)?;
    let special = |token: &str| (token.to_owned(), 0.0);
    let mut vocab = ["<s>", "<pad>", "</s>", "<unk>"].map(special).to_vec();
    vocab.extend(proto.pieces.iter().skip(3).map(|p| (p.piece.clone(), p.score)));
    vocab.push(special("<mask>"));

    let token = |part: &str, content: &str| settings.token(part, Special::new(content));
    let mut specials = vec![
        token("bos_token", "<s>"),
        token("eos_token", "</s>"),
        token("unk_token", "<unk>"),
        token("sep_token", "</s>"),
        token("pad_token", "<pad>"),
        token("cls_token", "<s>"),
        settings.token("mask_token", Special::mask("<mask>")),
    ];
    specials.extend(settings.additional().unwrap_or_default());
    let steps = Steps::usual(file, &proto, &settings)?;
    assemble_unigram(file, &proto, &settings, (vocab, 3), specials, steps, |id| {
        let (b, e) = ("<s>", "</s>");
        Ok(template(
            &[(b, 0), ("A", 0), (e, 0)],
            &[(b, 0), ("A", 0), (e, 0), (e, 0), ("B", 0), (e, 0)],
            &[(b, id(b)?), (e, id(e)?)],
        ))
    })
}

/// `spm.model`, whose own first pieces are the special tokens; the mask follows the vocabulary.
pub(super) fn build_deberta(dir: &Path) -> Result<Value, TokenizerError> {
    let file = TokenizerSource::Deberta.vocabulary_files()[0];
    let proto = read(dir, file)?;
    let settings = Settings::read(dir)?;
    let vocab: Vec<(String, f32)> = proto.pieces.iter().map(|p| (p.piece.clone(), p.score)).collect();
    let token = |part: &str, content: &str| settings.token(part, Special::new(content));
    let mut specials = vec![
        token("bos_token", "[CLS]"),
        token("eos_token", "[SEP]"),
        settings.token("unk_token", Special { normalized: true, ..Special::new("[UNK]") }),
        token("sep_token", "[SEP]"),
        token("pad_token", "[PAD]"),
        token("cls_token", "[CLS]"),
        token("mask_token", "[MASK]"),
    ];
    specials.extend(settings.additional().unwrap_or_default());
    let unk_id = proto.trainer_spec.as_ref().and_then(|spec| spec.unk_id).unwrap_or(0);

    let mut normalizers = Vec::new();
    if settings.flag("do_lower_case").unwrap_or(false) {
        normalizers.push(json!({"type": "Lowercase"}));
    }
    normalizers.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
    normalizers.extend(precompiled(file, &proto)?);
    normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    let metaspace = metaspace("always");
    let mut pre_tokenizers = Vec::new();
    if settings.flag("split_by_punct").unwrap_or(false) {
        pre_tokenizers.push(json!({"type": "Punctuation", "behavior": "Isolated"}));
    }
    pre_tokenizers.push(metaspace.clone());
    let steps = Steps {
        normalizers,
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": pre_tokenizers}),
        decoder: metaspace,
    };
    assemble_unigram(file, &proto, &settings, (vocab, unk_id), specials, steps, |id| {
        let (c, s) = ("[CLS]", "[SEP]");
        Ok(template(
            &[(c, 0), ("A", 0), (s, 0)],
            &[(c, 0), ("A", 0), (s, 0), ("B", 1), (s, 1)],
            &[(c, id(c)?), (s, id(s)?)],
        ))
    })
}

fn read(dir: &Path, file: &str) -> Result<ModelProto, TokenizerError> {
    let bytes = read_capped(dir, file, MAX_BYTES, "download the model again")?;
    let refuse = |reason: &str| Err(TokenizerError::invalid(file, reason));
    let Ok(proto) = ModelProto::decode(bytes.as_slice()) else {
        return refuse("it is not a sentencepiece model");
    };
    if proto.pieces.len() < 4 {
        return refuse("it is not a sentencepiece model: it has no pieces");
    }
    let model_type = proto.trainer_spec.as_ref().and_then(|spec| spec.model_type).unwrap_or(MODEL_UNIGRAM);
    if model_type != MODEL_UNIGRAM {
        return refuse(
            "it is a sentencepiece model of another type than Unigram, which this architecture uses",
        );
    }
    Ok(proto)
}

type IdOf<'a> = &'a dyn Fn(&str) -> Result<u32, TokenizerError>;

/// What happens to a text before and after the model.
struct Steps {
    normalizers: Vec<Value>,
    pre_tokenizer: Value,
    decoder: Value,
}

impl Steps {
    /// Those of T5 and XLM-R.
    fn usual(file: &str, proto: &ModelProto, settings: &Settings) -> Result<Self, TokenizerError> {
        let mut normalizers: Vec<Value> = precompiled(file, proto)?.into_iter().collect();
        normalizers.push(json!({"type": "Strip", "strip_left": false, "strip_right": true}));
        normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE}));
        let legacy = settings.flag("legacy").unwrap_or(true);
        let metaspace = metaspace(match (settings.flag("add_prefix_space").unwrap_or(true), legacy) {
            (false, _) => "never",
            (true, true) => "always",
            (true, false) => "first",
        });
        Ok(Self { normalizers, pre_tokenizer: metaspace.clone(), decoder: metaspace })
    }
}

fn metaspace(prepend_scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": prepend_scheme, "split": true})
}

/// The model's own table of character replacements, if it has one.
fn precompiled(file: &str, proto: &ModelProto) -> Result<Option<Value>, TokenizerError> {
    let spec = proto.normalizer_spec.as_ref().filter(|spec| !spec.precompiled_charsmap.is_empty());
    let Some(spec) = spec else { return Ok(None) };
    charsmap::check(&spec.precompiled_charsmap).map_err(|reason| TokenizerError::invalid(file, reason))?;
    let table = charsmap::to_base64(&spec.precompiled_charsmap);
    Ok(Some(json!({"type": "Precompiled", "precompiled_charsmap": table})))
}

fn assemble_unigram(
    file: &str,
    proto: &ModelProto,
    settings: &Settings,
    (vocab, unk_id): (Vec<(String, f32)>, i32),
    specials: impl IntoIterator<Item = Special>,
    steps: Steps,
    post_processor: impl FnOnce(IdOf<'_>) -> Result<Value, TokenizerError>,
) -> Result<Value, TokenizerError> {
    // Of a repeated piece the last id counts, as in the tokenizers library.
    let ids: HashMap<&str, u32> = vocab.iter().map(|(piece, _)| piece.as_str()).zip(0..).collect();
    let id = |token: &str| {
        ids.get(token)
            .copied()
            .ok_or_else(|| TokenizerError::invalid(file, format!("special token `{token}` is missing")))
    };
    let post = post_processor(&id)?;
    let own = proto.pieces.iter().filter_map(|piece| match piece.kind {
        Some(KIND_CONTROL) => Some(Special::new(&piece.piece)),
        Some(KIND_USER_DEFINED) => Some(Special { special: false, ..Special::new(&piece.piece) }),
        _ => None,
    });
    let added = settings.added_tokens(&ids, own.chain(specials))?;

    let pieces: Vec<Value> = vocab.iter().map(|(piece, score)| json!([piece, f64::from(*score)])).collect();
    Ok(assemble([
        ("added_tokens", added.into()),
        ("normalizer", json!({"type": "Sequence", "normalizers": steps.normalizers})),
        ("pre_tokenizer", steps.pre_tokenizer),
        ("post_processor", post),
        ("decoder", steps.decoder),
        ("model", json!({"type": "Unigram", "unk_id": unk_id, "vocab": pieces, "byte_fallback": false})),
    ]))
}
