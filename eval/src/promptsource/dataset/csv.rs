//! CSV files, their columns typed by what all rows of the file hold.
//!
//! The file is read twice: a column is a number only if every row says so, as the hub's loader (pandas) decides.

use std::path::Path;

use csv::{ReaderBuilder, StringRecord};
use serde_json::Value;

use super::{Example, ExampleRow};
use crate::rows::{BadLine, ReadError, open_source};

/// What every field of a column can be read as, most special first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Integer,
    Float,
    Flag,
    Text,
}

type Reader = csv::Reader<Box<dyn std::io::BufRead + Send>>;

pub(super) fn read(path: &Path) -> Result<Box<dyn Iterator<Item = ExampleRow>>, ReadError> {
    let name = path.display().to_string();
    let kinds = kinds_of(path, &name)?;
    let (mut reader, heads) = open(path, &name)?;
    let mut record = StringRecord::new();
    let mut ended = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        match next(&mut reader, &mut record, &name) {
            Ok(true) => {
                let line = record.position().map_or(0, csv::Position::line);
                Some(Ok((line, example(&heads, &kinds, &record))))
            }
            Ok(false) => None,
            Err(error) => {
                ended = matches!(error, ReadError::Io { .. });
                Some(Err(error))
            }
        }
    })))
}

fn open(path: &Path, name: &str) -> Result<(Reader, Vec<String>), ReadError> {
    let source =
        open_source(path).map_err(|source| ReadError::Io { source_name: name.to_owned(), source })?;
    let mut reader = ReaderBuilder::new().from_reader(source);
    let heads = reader.headers().map_err(|error| explain(error, name))?;
    let heads = heads.iter().map(|head| head.trim_start_matches('\u{feff}').to_owned()).collect();
    Ok((reader, heads))
}

fn kinds_of(path: &Path, name: &str) -> Result<Vec<Kind>, ReadError> {
    let (mut reader, heads) = open(path, name)?;
    let mut kinds = vec![None; heads.len()];
    let mut has_gaps = vec![false; heads.len()];
    let mut record = StringRecord::new();
    loop {
        match next(&mut reader, &mut record, name) {
            Ok(true) => {
                for (at, field) in record.iter().enumerate() {
                    if field.is_empty() {
                        has_gaps[at] = true;
                    } else {
                        let kind = kind_of(field);
                        kinds[at] = Some(kinds[at].map_or(kind, |known| common(known, kind)));
                    }
                }
            }
            Ok(false) => break,
            // Named when it is read again.
            Err(ReadError::Bad(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let settled = |(kind, gaps): (Option<Kind>, bool)| match kind {
        // The loader has no whole numbers with gaps.
        Some(Kind::Integer) if gaps => Kind::Float,
        Some(kind) => kind,
        None => Kind::Text,
    };
    Ok(kinds.into_iter().zip(has_gaps).map(settled).collect())
}

fn kind_of(field: &str) -> Kind {
    if field.parse::<i64>().is_ok() {
        Kind::Integer
    } else if field.parse::<f64>().is_ok_and(f64::is_finite) {
        Kind::Float
    } else if matches!(field, "True" | "False" | "true" | "false") {
        Kind::Flag
    } else {
        Kind::Text
    }
}

fn common(a: Kind, b: Kind) -> Kind {
    match (a.min(b), a.max(b)) {
        (a, b) if a == b => a,
        (Kind::Integer, Kind::Float) => Kind::Float,
        _ => Kind::Text,
    }
}

fn example(heads: &[String], kinds: &[Kind], record: &StringRecord) -> Example {
    let value = |kind: Kind, field: &str| match kind {
        _ if field.is_empty() => Value::Null,
        Kind::Integer => field.parse::<i64>().map_or(Value::Null, Value::from),
        Kind::Float => field.parse::<f64>().map_or(Value::Null, Value::from),
        Kind::Flag => Value::Bool(field.eq_ignore_ascii_case("true")),
        Kind::Text => Value::from(field),
    };
    heads
        .iter()
        .zip(kinds)
        .zip(record)
        .map(|((head, kind), field)| (head.clone(), value(*kind, field)))
        .collect()
}

fn next(reader: &mut Reader, record: &mut StringRecord, name: &str) -> Result<bool, ReadError> {
    reader.read_record(record).map_err(|error| explain(error, name))
}

fn explain(error: csv::Error, name: &str) -> ReadError {
    let line = error.position().map_or(0, csv::Position::line);
    let bad = |reason| ReadError::Bad(BadLine { source_name: name.to_owned(), line, reason });
    match error.into_kind() {
        csv::ErrorKind::Io(source) => ReadError::Io { source_name: name.to_owned(), source },
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            bad(format!("{len} fields where the heads name {expected_len}"))
        }
        csv::ErrorKind::Utf8 { err, .. } => bad(format!("not UTF-8 in field {}", err.field() + 1)),
        other => bad(format!("not CSV: {other:?}")),
    }
}
