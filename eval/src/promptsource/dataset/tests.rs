use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::*;

const PARQUET: &[u8] = include_bytes!("../../../tests/fixtures/examples.parquet");

fn read_bytes(name: &str, bytes: &[u8], folder: &str) -> Vec<Result<(u64, Value), String>> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join(name);
    fs::write(&path, bytes).unwrap();
    let short = |text: String| text.replace(&format!("{}/", scratch.path().display()), "");
    read(&path, folder)
        .map(|row| match row {
            Ok((line, example)) => Ok((line, Value::Object(example))),
            Err(error) => Err(short(crate::rows::explain_chain(&error))),
        })
        .collect()
}

/// Expected values are those that pyarrow reads.
#[test]
fn parquet_columns_of_every_type_load() {
    let rows: Vec<Value> =
        read_bytes("a.parquet", PARQUET, "mine").into_iter().map(|row| row.unwrap().1).collect();
    assert_eq!(
        rows,
        [
            json!({"text": "first é", "label": 1, "score": 0.1, "wide": 0.1, "flag": true,
                   "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "lists": [[1, 2], []], "small": 200}),
            json!({"text": null, "label": 0, "score": 2.0, "wide": 2.0, "flag": false,
                   "choices": {"text": [], "label": []}, "lists": [], "small": 1}),
            json!({"text": "third", "label": -1, "score": 1e-5, "wide": 1e16, "flag": null,
                   "choices": null, "lists": null, "small": 2}),
        ]
    );
}

#[test]
fn a_parquet_file_cut_short_is_named() {
    for kept in [0, 3, 100, PARQUET.len() / 2, PARQUET.len() - 1] {
        let rows = read_bytes("a.parquet", &PARQUET[..kept], "mine");
        let [Err(error)] = rows.as_slice() else { panic!("{kept}: {rows:?}") };
        assert!(error.starts_with("failed to read a.parquet: no whole Parquet file: "), "{error}");
    }
    let missing = read(Path::new("nowhere.parquet"), "mine").next().unwrap().unwrap_err();
    assert_eq!(missing.to_string(), "failed to read nowhere.parquet");
}

#[test]
fn csv_columns_have_the_types_that_all_rows_agree_on() {
    let text = "\u{feff}id,score,flag,gaps,text,empty\n1,0.5,True,1,\"a, \"\"b\"\"\nc\",\n-2,3,False,,7x,\n";
    let rows = read_bytes("a.csv", text.as_bytes(), "mine");
    assert_eq!(
        rows,
        [
            Ok((
                2,
                json!({"id": 1, "score": 0.5, "flag": true, "gaps": 1.0, "text": "a, \"b\"\nc", "empty": null})
            )),
            Ok((
                4,
                json!({"id": -2, "score": 3.0, "flag": false, "gaps": null, "text": "7x", "empty": null})
            )),
        ]
    );
    let rows = read_bytes("a.csv", b"a,b\n1,2\n3\n\xff,x\n4,y\n", "mine");
    assert_eq!(rows[0], Ok((2, json!({"a": 1, "b": "2"}))));
    assert_eq!(rows[1], Err("a.csv:3: 1 fields where the heads name 2".into()));
    assert_eq!(rows[2], Err("a.csv:4: not UTF-8 in field 1".into()));
    assert_eq!(rows[3], Ok((5, json!({"a": 4, "b": "y"}))));
}

#[test]
fn known_columns_get_the_types_that_templates_expect() {
    for (folder, line, expected) in [
        ("anli", json!({"label": "Neutral", "uid": 1}), Ok(json!({"label": 1, "uid": 1}))),
        ("super_glue/wic", json!({"label": true}), Ok(json!({"label": 1}))),
        ("super_glue/rte", json!({"label": "1"}), Ok(json!({"label": 1}))),
        ("super_glue/cb", json!({"label": -1}), Ok(json!({"label": -1}))),
        ("winogrande/winogrande_xl", json!({"answer": 1}), Ok(json!({"answer": "1"}))),
        (
            "crows_pairs",
            json!({"bias_type": "age", "stereo_antistereo": 0.0}),
            Ok(json!({"bias_type": 8, "stereo_antistereo": 0})),
        ),
        ("mine", json!({"label": "Neutral"}), Ok(json!({"label": "Neutral"}))),
        (
            "super_glue/rte",
            json!({"label": "maybe"}),
            Err("column `label`: \"maybe\" is not a class (0 to 1, or entailment, not_entailment)"),
        ),
        (
            "story_cloze/2016",
            json!({"answer_right_ending": 1.5}),
            Err("column `answer_right_ending`: 1.5 is not a whole number"),
        ),
    ] {
        let rows = read_bytes("a.jsonl", line.to_string().as_bytes(), folder);
        let expected = expected.map(|row| (1, row)).map_err(|reason| format!("a.jsonl:1: {reason}"));
        assert_eq!(rows, [expected], "{folder}");
    }
}

#[test]
fn only_files_of_examples_are_found() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["b.jsonl.gz", "a.parquet", "c.csv", ".hidden.csv", "readme.md", "templates.yaml"] {
        fs::write(scratch.path().join(name), "").unwrap();
    }
    let names: Vec<_> =
        files_in(scratch.path()).unwrap().into_iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["a.parquet", "b.jsonl.gz", "c.csv"]);
}

proptest! {
    #[test]
    fn damaged_files_are_survived(
        format in prop::sample::select(vec!["a.parquet", "a.csv", "a.jsonl", "a.jsonl.gz", "a.csv.zst"]),
        at in 0..PARQUET.len(),
        with in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut bytes = PARQUET.to_vec();
        let end = (at + with.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&with[..end - at]);
        // Ends, whatever it says.
        prop_assert!(read_bytes(format, &bytes, "anli").len() < 10_000);
    }
}
