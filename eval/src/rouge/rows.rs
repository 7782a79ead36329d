//! ROUGE-L over a file of rows: `{"references", "response"}` in, the same plus `"rougeL"` out.
//!
//! A row is parsed only as far as its two fields, borrowed from the line, and goes out as the text that came in with
//! one field appended: unknown fields keep their bytes.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead, Write};

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::RougeScorer;
use crate::python_json;
use crate::rows::{BadLine, BadLinePolicy, LineSplitter, ReadError};

/// The field that is added.
const FIELD: &str = "rougeL";

/// Why scoring a file stopped.
#[derive(Debug, thiserror::Error)]
pub enum ScoreRowsError {
    /// The rows could not be read, or a bad one was met under [`BadLinePolicy::Strict`].
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The scored rows could not be written.
    #[error("failed to write the scored rows")]
    Write(#[source] io::Error),
}

/// What scoring a file came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScoredRows {
    /// Rows written.
    pub rows: u64,
    /// Lines that are no rows or have no references.
    pub bad: u64,
}

/// Scores every row of `reader`, named `source_name` in complaints, and writes it to `writer` with its `rougeL`.
///
/// Bad lines are handed to `on_bad` as they are met and leave no line in the output.
///
/// # Errors
/// If reading or writing fails, or at the first bad line under [`BadLinePolicy::Strict`].
pub fn score_rows(
    source_name: &str,
    reader: impl BufRead,
    mut writer: impl Write,
    policy: BadLinePolicy,
    mut on_bad: impl FnMut(BadLine),
) -> Result<ScoredRows, ScoreRowsError> {
    let mut scorer = RougeScorer::new();
    let mut lines = LineSplitter::new(source_name, reader);
    let mut done = ScoredRows::default();
    let mut out = Vec::with_capacity(4096);
    while let Some(line) = lines.next_line() {
        let scored = match line {
            Ok((line, text)) => score_line(&mut scorer, text, &mut out).map_err(|reason| (line, reason)),
            Err(ReadError::Bad(bad)) => Err((bad.line, bad.reason)),
            Err(error) => return Err(error.into()),
        };
        match scored {
            Ok(()) => {
                writer.write_all(&out).map_err(ScoreRowsError::Write)?;
                done.rows += 1;
            }
            Err((line, reason)) => {
                let bad = lines.bad(line, reason);
                if policy == BadLinePolicy::Strict {
                    return Err(ReadError::Bad(bad).into());
                }
                done.bad += 1;
                on_bad(bad);
            }
        }
    }
    writer.flush().map_err(ScoreRowsError::Write)?;
    Ok(done)
}

/// Replaces `out` by the scored line, line end included.
fn score_line(scorer: &mut RougeScorer, text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    let row: Scorable<'_> = serde_json::from_str(text).map_err(|error| crate::rows::explain(&error))?;
    let f = scorer.rouge_l(&row.references, &row.response.0).map_err(|error| error.to_string())?;
    out.clear();
    if row.already_scored {
        let mut fields: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| crate::rows::explain(&error))?;
        fields.insert(FIELD.into(), f.into());
        python_json::to_writer(&mut *out, &fields).expect("a parsed object serialises");
    } else {
        // The row has at least two fields, so a comma belongs before the third.
        let open = text.strip_suffix('}').expect("the row parsed as an object");
        out.extend_from_slice(open.trim_ascii_end().as_bytes());
        write!(out, ", \"{FIELD}\": {}}}", Repr(f)).expect("a vector takes every write");
    }
    out.push(b'\n');
    Ok(())
}

struct Repr(f64);

impl fmt::Display for Repr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Most rows score 0 or 1.
        match self.0 {
            0.0 => f.write_str("0.0"),
            1.0 => f.write_str("1.0"),
            x => f.write_str(&python_json::float_repr(x)),
        }
    }
}

/// The two fields that matter, borrowed where the text has no escapes.
struct Scorable<'a> {
    references: Vec<Text<'a>>,
    response: Text<'a>,
    already_scored: bool,
}

struct Text<'a>(Cow<'a, str>);

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A list of texts.
struct References<'a>(Vec<Text<'a>>);

impl<'de> Deserialize<'de> for References<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReferencesVisitor;
        impl<'de> Visitor<'de> for ReferencesVisitor {
            type Value = References<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`references` to be a list of strings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<References<'de>, A::Error> {
                let mut references = Vec::with_capacity(items.size_hint().unwrap_or(1));
                while let Some(item) = items.next_element()? {
                    references.push(item);
                }
                Ok(References(references))
            }
        }
        deserializer.deserialize_seq(ReferencesVisitor)
    }
}

impl<'de> Deserialize<'de> for Scorable<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowVisitor;
        impl<'de> Visitor<'de> for RowVisitor {
            type Value = Scorable<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with `references` and `response`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Scorable<'de>, A::Error> {
                let (mut references, mut response, mut already_scored) = (None, None, false);
                while let Some(name) = fields.next_key::<Text<'de>>()? {
                    match name.0.as_ref() {
                        "references" => references = Some(fields.next_value::<References<'de>>()?.0),
                        "response" => response = Some(fields.next_value()?),
                        other => {
                            already_scored |= other == FIELD;
                            fields.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(Scorable {
                    references: references.ok_or_else(|| de::Error::missing_field("references"))?,
                    response: response.ok_or_else(|| de::Error::missing_field("response"))?,
                    already_scored,
                })
            }
        }
        deserializer.deserialize_map(RowVisitor)
    }
}
