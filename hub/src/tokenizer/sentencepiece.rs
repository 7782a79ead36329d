//! T5 and XLM-R: Unigram from a sentencepiece model.
//!
//! Source: transformers' `SpmConverter`, `T5Converter`, `XLMRobertaConverter`; the messages are those fields of
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
    assemble_unigram(file, &proto, &settings, vocab, unk_id, specials, |id| {
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
    assemble_unigram(file, &proto, &settings, vocab, 3, specials, |id| {
        let (b, e) = ("<s>", "</s>");
        Ok(template(
            &[(b, 0), ("A", 0), (e, 0)],
            &[(b, 0), ("A", 0), (e, 0), (e, 0), ("B", 0), (e, 0)],
            &[(b, id(b)?), (e, id(e)?)],
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

fn assemble_unigram(
    file: &str,
    proto: &ModelProto,
    settings: &Settings,
    vocab: Vec<(String, f32)>,
    unk_id: i32,
    specials: impl IntoIterator<Item = Special>,
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

    let mut normalizers = Vec::new();
    if let Some(spec) = proto.normalizer_spec.as_ref().filter(|spec| !spec.precompiled_charsmap.is_empty()) {
        charsmap::check(&spec.precompiled_charsmap)
            .map_err(|reason| TokenizerError::invalid(file, reason))?;
        let table = charsmap::to_base64(&spec.precompiled_charsmap);
        normalizers.push(json!({"type": "Precompiled", "precompiled_charsmap": table}));
    }
    normalizers.push(json!({"type": "Strip", "strip_left": false, "strip_right": true}));
    normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE}));
    let scheme =
        match (settings.flag("add_prefix_space").unwrap_or(true), settings.flag("legacy").unwrap_or(true)) {
            (false, _) => "never",
            (true, true) => "always",
            (true, false) => "first",
        };
    let metaspace =
        json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": true});
    let pieces: Vec<Value> = vocab.iter().map(|(piece, score)| json!([piece, f64::from(*score)])).collect();
    Ok(assemble([
        ("added_tokens", added.into()),
        ("normalizer", json!({"type": "Sequence", "normalizers": normalizers})),
        ("pre_tokenizer", metaspace.clone()),
        ("post_processor", post),
        ("decoder", metaspace),
        ("model", json!({"type": "Unigram", "unk_id": unk_id, "vocab": pieces, "byte_fallback": false})),
    ]))
}
