//! Token ids and decoded text against transformers 4.57 (`fixtures/make_tokenization.py`), and against the tokenizers
//! library's own encoding of pairs on arbitrary text.

use std::{collections::HashMap, fs, path::PathBuf};

use cappy_worker::tokenization::{EncodedRow, ModelTokenizer};
use proptest::prelude::*;
use serde::Deserialize;
use tokenizers::{Tokenizer, TruncationParams};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[derive(Deserialize)]
struct Case {
    max_tokens: usize,
    first: String,
    single: Vec<u32>,
    pairs: Vec<Pair>,
    decoded: String,
    decoded_clean: String,
}

#[derive(Deserialize)]
struct Pair {
    second: String,
    ids: Vec<u32>,
    type_ids: Vec<u8>,
}

fn segments(row: &EncodedRow) -> Vec<u8> {
    if row.type_ids.is_empty() { vec![0; row.ids.len()] } else { row.type_ids.clone() }
}

#[test]
fn ids_and_texts_equal_those_of_transformers() {
    let expected: HashMap<String, Vec<Case>> =
        serde_json::from_slice(&fs::read(fixture("tokenization.json")).unwrap()).unwrap();
    assert_eq!(expected.len(), 3);
    for (name, cases) in expected {
        let bytes = fs::read(fixture(&name).join("tokenizer.json")).unwrap();
        let tokenizer = ModelTokenizer::from_bytes(&bytes, false).unwrap();
        let cleaning = ModelTokenizer::from_bytes(&bytes, true).unwrap();
        for case in cases {
            let place = format!("{name}, {:?}, {} tokens", case.first, case.max_tokens);
            let first = tokenizer.side(&case.first).unwrap();
            assert_eq!(tokenizer.single(&first, case.max_tokens).unwrap().ids, case.single, "{place}");
            for pair in case.pairs {
                let second = tokenizer.side(&pair.second).unwrap();
                let row = tokenizer.pair(&first, &second, case.max_tokens).unwrap();
                assert_eq!(row.ids, pair.ids, "{place}, {:?}", pair.second);
                assert_eq!(segments(&row), pair.type_ids, "{place}, {:?}", pair.second);
                assert_eq!(row.truncated, pair.ids.len() < first.len() + second.len() + special(&tokenizer));
            }
            assert_eq!(tokenizer.decode(&case.single).unwrap(), case.decoded, "{place}");
            assert_eq!(cleaning.decode(&case.single).unwrap(), case.decoded_clean, "{place}");
        }
    }
}

fn special(tokenizer: &ModelTokenizer) -> usize {
    tokenizer.pair(&[], &[], 512).unwrap().ids.len()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn sides_set_into_the_frame_equal_the_pair_encoded_at_once(
        which in prop::sample::select(vec!["roberta", "bert", "t5"]),
        first in any_text(),
        second in any_text(),
        max_tokens in 6usize..80,
    ) {
        let bytes = fs::read(fixture(which).join("tokenizer.json")).unwrap();
        let ours = ModelTokenizer::from_bytes(&bytes, false).unwrap();
        let mut theirs = Tokenizer::from_bytes(&bytes).unwrap();
        theirs
            .with_truncation(Some(TruncationParams { max_length: max_tokens, ..TruncationParams::default() }))
            .unwrap();
        let expected = theirs.encode((first.as_str(), second.as_str()), true).unwrap();
        let row = ours.pair(&ours.side(&first).unwrap(), &ours.side(&second).unwrap(), max_tokens).unwrap();
        prop_assert_eq!(&row.ids[..], expected.get_ids());
        let expected_segments: Vec<u8> = expected.get_type_ids().iter().map(|&id| id as u8).collect();
        prop_assert_eq!(segments(&row), expected_segments);
        prop_assert_eq!(row.truncated, !expected.get_overflowing().is_empty());
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ a-z'.,!?]{0,120}",
        "\\PC{0,40}",
        Just("</s><s> [SEP]<pad>".to_owned()),
        Just("\u{0}\n\t ".to_owned()),
    ]
}
