//! Tokenizers built from vocabularies do what transformers' converted fast tokenizers do (`fixtures/make_tokenizers.py`).

use std::path::{Path, PathBuf};

use cappy_hub::tokenizer::TokenizerSource;
use cappy_hub::{Architecture, load_tokenizer};

#[derive(serde::Deserialize)]
struct Expected {
    text: String,
    ids: Vec<u32>,
    pair: Vec<u32>,
    decoded: String,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name)
}

fn built(source: &Path, architecture: Architecture) -> (tempfile::TempDir, tokenizers::Tokenizer) {
    let found = TokenizerSource::find(architecture, |file| source.join(file).exists()).unwrap();
    assert_ne!(found, TokenizerSource::Ready);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), found.build(source).unwrap()).unwrap();
    let tokenizer = load_tokenizer(dir.path()).unwrap();
    (dir, tokenizer)
}

#[test]
fn built_tokenizers_equal_transformers() {
    let table = [
        ("roberta", Architecture::Roberta),
        ("bert-uncased", Architecture::Bert),
        ("bert-cased", Architecture::Bert),
        ("t5", Architecture::T5),
        ("xlm-roberta", Architecture::XlmRoberta),
        ("bert-uncased", Architecture::DistilBert),
        ("deberta-v3", Architecture::DebertaV2),
        ("deberta-v2", Architecture::DebertaV2),
    ];
    for (name, architecture) in table {
        let source = fixture(name);
        let (_dir, tokenizer) = built(&source, architecture);
        let rows = std::fs::read_to_string(source.join("expected.json")).unwrap();
        let rows: Vec<Expected> = serde_json::from_str(&rows).unwrap();
        assert!(rows.len() >= 25);
        for (at, row) in rows.iter().enumerate() {
            let text = row.text.as_str();
            let single = tokenizer.encode(text, true).unwrap();
            assert_eq!(single.get_ids(), row.ids, "{name}: {text:?}");
            let next = rows[(at + 1) % rows.len()].text.as_str();
            let pair = tokenizer.encode((text, next), true).unwrap();
            assert_eq!(pair.get_ids(), row.pair, "{name}: {text:?} and {next:?}");
            assert_eq!(tokenizer.decode(&row.ids, true).unwrap(), row.decoded, "{name}: {text:?}");
        }
    }
}

#[test]
fn damaged_vocabularies_are_named() {
    let copy = |name: &str| {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        dir
    };
    let t5_model = std::fs::read(fixture("t5").join("spiece.model")).unwrap();
    let table: [(&str, Architecture, &str, Vec<u8>, &str); 8] = [
        ("roberta", Architecture::Roberta, "vocab.json", b"{".to_vec(), "`vocab.json`: it is not JSON"),
        (
            "roberta",
            Architecture::Roberta,
            "vocab.json",
            b"{\"a\":0}".to_vec(),
            "special token `</s>` is missing",
        ),
        ("roberta", Architecture::Roberta, "vocab.json", b"{\"a\":-1}".to_vec(), "the id of `a`"),
        (
            "roberta",
            Architecture::Roberta,
            "merges.txt",
            b"#\nab\n".to_vec(),
            "`merges.txt`: line 2 is not a pair",
        ),
        (
            "roberta",
            Architecture::Roberta,
            "merges.txt",
            b"#\nq\xc3\xa9 \xff\n".to_vec(),
            "`merges.txt`: it is not UTF-8",
        ),
        ("bert-cased", Architecture::Bert, "vocab.txt", b"a\nb".to_vec(), "special token `[CLS]` is missing"),
        (
            "t5",
            Architecture::T5,
            "spiece.model",
            t5_model[..t5_model.len() / 2].to_vec(),
            "not a sentencepiece model",
        ),
        (
            "t5",
            Architecture::T5,
            "added_tokens.json",
            br#"{"new": 7}"#.to_vec(),
            "added token `new` cannot have another id",
        ),
    ];
    for (name, architecture, file, content, expected) in table {
        let dir = copy(name);
        std::fs::write(dir.path().join(file), content).unwrap();
        let source = TokenizerSource::find(architecture, |file| dir.path().join(file).exists()).unwrap();
        let error = source.build(dir.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = TokenizerSource::find(Architecture::T5, |_| false).unwrap_err().to_string();
    assert!(error.contains("spiece.model"), "{error}");
    let error = TokenizerSource::find(Architecture::ModernBert, |_| false).unwrap_err().to_string();
    assert!(
        error.contains("`tokenizer.json` is missing; modernbert models are published with one"),
        "{error}"
    );
}

#[test]
fn foreign_tokenizer_files_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
    let refused = || load_tokenizer(dir.path()).unwrap_err().to_string();

    write(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)));
    assert!(refused().contains("recursion limit"), "{}", refused());
    write("{}");
    assert!(refused().contains("it is not a tokenizer"), "{}", refused());
    write(
        r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"post_processor":null,
            "decoder":null,"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(a+)+$"},"behavior":"Isolated","invert":false},
            "model":{"type":"WordPiece","unk_token":"a","continuing_subword_prefix":"","max_input_chars_per_word":9,"vocab":{"a":0}}}"#,
    );
    assert!(refused().contains("repeats a repetition"), "{}", refused());
    std::fs::File::create(dir.path().join("tokenizer.json")).unwrap().set_len(1 << 40).unwrap();
    assert!(refused().contains("1099511627776 bytes, more than"), "{}", refused());
}
