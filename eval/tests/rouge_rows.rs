//! Bad input of the file path of ROUGE-L.

use cappy_eval::rouge::rows::{ScoreRowsError, score_rows};
use cappy_eval::rows::BadLinePolicy;

const ROWS: &str = concat!(
    r#"{"references": ["a"], "response": "a"}"#,
    "\n",
    r#"{"references": [], "response": "a"}"#,
    "\n",
    r#"{"references": "a", "response": "a"}"#,
    "\nnot JSON\n",
    r#"{"response": "a"}"#,
    "\n",
    r#"{"rougeL": 9, "response": "\u212Aa B", "x": {"response": 1}, "references": ["b", "ka"]}"#,
);

#[test]
fn bad_rows_are_named_and_the_others_scored() {
    let (mut out, mut bad) = (Vec::new(), Vec::new());
    let done = score_rows("in", ROWS.as_bytes(), &mut out, BadLinePolicy::Collect, |line| {
        bad.push(line.to_string())
    })
    .unwrap();
    assert_eq!((done.rows, done.bad), (2, 4));
    for (bad, expected) in bad.iter().zip([
        "in:2: the list of references is empty",
        "in:3: invalid type: string \"a\", expected `references` to be a list of strings",
        "in:4: expected",
        "in:5: missing field `references`",
    ]) {
        assert!(bad.starts_with(expected), "{bad}");
    }
    assert_eq!(
        String::from_utf8(out).unwrap(),
        concat!(
            r#"{"references": ["a"], "response": "a", "rougeL": 1.0}"#,
            "\n",
            r#"{"rougeL": 0.6666666666666666, "response": "\u212aa B", "x": {"response": 1}, "references": ["b", "ka"]}"#,
            "\n"
        )
    );
    let strict = score_rows("in", ROWS.as_bytes(), Vec::new(), BadLinePolicy::Strict, |_| ());
    let Err(ScoreRowsError::Read(error)) = strict else { panic!("strict") };
    assert!(error.to_string().starts_with("in:2: "));
}
