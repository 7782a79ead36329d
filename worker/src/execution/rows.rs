//! Input rows: JSONL over several files, read as one list, each row named by its index when it is wrong.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use serde_json::{Map, Value};

use super::ExecutionError;

/// Longest line that is read.
const MAX_ROW_BYTES: u64 = 64 * 1024 * 1024;

/// One JSON object.
pub type Row = Map<String, Value>;

/// A wrong row: the shard fails everywhere.
pub fn bad_row(index: u64, reason: impl std::fmt::Display) -> ExecutionError {
    ExecutionError::permanent("invalid_argument", format!("row {index} of the input (from 0): {reason}"))
}

/// Where a row starts: file and byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    file: u32,
    offset: u64,
}

/// Reads the rows of files, one after the other; blank lines are no rows.
pub struct RowReader {
    files: VecDeque<PathBuf>,
    file_index: u32,
    open: Option<BufReader<File>>,
    offset: u64,
    next: u64,
}

impl RowReader {
    /// At the first row.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self { files: files.into(), file_index: 0, open: None, offset: 0, next: 0 }
    }

    /// The next row's index, place and text; `None` after the last.
    ///
    /// # Errors
    /// An unreadable file, or a row that is too long.
    pub fn next_line(&mut self) -> Result<Option<(u64, Place, Vec<u8>)>, ExecutionError> {
        loop {
            let Some(reader) = &mut self.open else {
                let Some(path) = self.files.pop_front() else { return Ok(None) };
                let file = File::open(path).map_err(|error| ExecutionError::disk("read an input", &error))?;
                self.open = Some(BufReader::with_capacity(1 << 18, file));
                self.offset = 0;
                continue;
            };
            let mut line = Vec::new();
            let place = Place { file: self.file_index, offset: self.offset };
            let read = reader
                .by_ref()
                .take(MAX_ROW_BYTES + 1)
                .read_until(b'\n', &mut line)
                .map_err(|error| ExecutionError::disk("read an input", &error))?;
            if read == 0 {
                self.open = None;
                self.file_index += 1;
                continue;
            }
            if read as u64 > MAX_ROW_BYTES {
                return Err(bad_row(self.next, format!("longer than {MAX_ROW_BYTES} bytes")));
            }
            self.offset += read as u64;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let index = self.next;
            self.next += 1;
            return Ok(Some((index, place, line)));
        }
    }

    /// Passes over the rows before `start`.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn skip_to(&mut self, start: u64) -> Result<(), ExecutionError> {
        while self.next < start {
            if self.next_line()?.is_none() {
                return Err(too_few(self.next, start));
            }
        }
        Ok(())
    }

    /// Up to `count` rows, parsed, with the index of the first; fewer only where `end` comes first.
    ///
    /// # Errors
    /// A row that is not a JSON object, or an input that ends before `end`.
    pub fn window(&mut self, count: usize, end: u64) -> Result<(u64, Vec<Row>), ExecutionError> {
        let first = self.next;
        let mut rows = Vec::new();
        while rows.len() < count && self.next < end {
            let Some((index, _, line)) = self.next_line()? else { return Err(too_few(self.next, end)) };
            rows.push(parse(index, &line)?);
        }
        Ok((first, rows))
    }
}

fn too_few(rows: u64, wanted: u64) -> ExecutionError {
    ExecutionError::permanent(
        "invalid_argument",
        format!("the input has {rows} rows, the shard goes to row {wanted}"),
    )
}

/// Random access to rows by their places.
pub struct RowFiles {
    files: Vec<BufReader<File>>,
}

impl RowFiles {
    /// Opens the same files that the places come from.
    ///
    /// # Errors
    /// An unreadable file.
    pub fn open(paths: &[PathBuf]) -> Result<Self, ExecutionError> {
        let open = |path| File::open(path).map(BufReader::new);
        let files = paths.iter().map(open).collect::<Result<_, _>>();
        Ok(Self { files: files.map_err(|error| ExecutionError::disk("read an input", &error))? })
    }

    /// The text of the row at a place.
    ///
    /// # Errors
    /// An unreadable file.
    pub fn line(&mut self, place: Place) -> Result<Vec<u8>, ExecutionError> {
        let file = &mut self.files[place.file as usize];
        let mut line = Vec::new();
        file.seek(SeekFrom::Start(place.offset))
            .and_then(|_| file.read_until(b'\n', &mut line))
            .map_err(|error| ExecutionError::disk("read an input", &error))?;
        Ok(line)
    }
}

/// A line as a JSON object.
///
/// # Errors
/// Names the row.
pub fn parse(index: u64, line: &[u8]) -> Result<Row, ExecutionError> {
    match serde_json::from_slice::<Value>(line) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(_) => Err(bad_row(index, "not a JSON object")),
        Err(error) => Err(bad_row(index, format!("not JSON: {}", without_line(&error)))),
    }
}

/// serde_json counts lines within the row, which would be read as the file's.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    format!("{reason} at byte {}", error.column())
}

/// A field that must be text.
///
/// # Errors
/// Names row and field.
pub fn text<'a>(index: u64, row: &'a Row, field: &str) -> Result<&'a str, ExecutionError> {
    match row.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(bad_row(index, format!("`{field}` is not text"))),
        None => Err(bad_row(index, format!("`{field}` is missing"))),
    }
}

/// The candidates of a row: `responses`, a single `response`, or `flan_samples` flattened in the order of `decodings`
/// (none named: in the row's own order).
///
/// # Errors
/// Names the row, and what is missing.
pub fn responses(index: u64, row: &Row, decodings: &[String]) -> Result<Vec<String>, ExecutionError> {
    if let Some(samples) = row.get("flan_samples") {
        let Value::Object(samples) = samples else {
            return Err(bad_row(index, "`flan_samples` is not an object"));
        };
        let named: Vec<&String> =
            if decodings.is_empty() { samples.keys().collect() } else { decodings.iter().collect() };
        let mut all = Vec::new();
        for name in named {
            let list = match samples.get(name) {
                Some(Value::Array(list)) => list,
                Some(_) => return Err(bad_row(index, format!("`flan_samples.{name}` is not a list"))),
                None => return Err(bad_row(index, format!("`flan_samples` lacks the decoding `{name}`"))),
            };
            for sample in list {
                let Some(response) = sample.get("response").and_then(Value::as_str) else {
                    return Err(bad_row(index, format!("a sample of `{name}` has no text `response`")));
                };
                all.push(response.to_owned());
            }
        }
        return Ok(all);
    }
    match row.get("responses") {
        Some(Value::Array(list)) => list
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| bad_row(index, "`responses` holds something that is not text")),
        Some(_) => Err(bad_row(index, "`responses` is not a list")),
        None if row.contains_key("response") => Ok(vec![text(index, row, "response")?.to_owned()]),
        None => Err(bad_row(index, "neither `responses` nor `flan_samples` is there")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn rows_of_several_files_are_one_list() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = ["{\"a\":0}\n\n{\"a\":1}\n", "", "{\"a\":2}\n{\"a\":3}"]
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let path = dir.path().join(i.to_string());
                fs::write(&path, text).unwrap();
                path
            })
            .collect();
        let mut reader = RowReader::new(paths.clone());
        reader.skip_to(1).unwrap();
        let (first, rows) = reader.window(9, 3).unwrap();
        assert_eq!(
            (first, rows.iter().map(|row| row["a"].clone()).collect::<Vec<_>>()),
            (1, vec![1.into(), 2.into()])
        );
        assert!(reader.window(9, 5).unwrap_err().message.contains("4 rows"));

        let mut reader = RowReader::new(paths.clone());
        let mut files = RowFiles::open(&paths).unwrap();
        let mut places = Vec::new();
        while let Some((_, place, line)) = reader.next_line().unwrap() {
            places.push((place, line));
        }
        assert_eq!(places.len(), 4);
        for (place, line) in places.into_iter().rev() {
            assert_eq!(files.line(place).unwrap(), line);
        }
    }

    #[test]
    fn a_wrong_row_is_named() {
        for (line, words) in [
            (r#"{"instruction": "a""#, "row 7 of the input (from 0): not JSON: EOF"),
            ("[1]", "not a JSON object"),
            (r#"{"responses": "x"}"#, "`responses` is not a list"),
            (r#"{"responses": [1]}"#, "not text"),
            (r#"{"flan_samples": {"sampling": []}}"#, "lacks the decoding `beam4`"),
            (r#"{"flan_samples": {"beam4": [{"text": "x"}]}}"#, "a sample of `beam4`"),
            ("{}", "neither `responses` nor `flan_samples`"),
        ] {
            let error = parse(7, line.as_bytes())
                .and_then(|row| responses(7, &row, &["beam4".to_owned()]))
                .unwrap_err();
            assert!(error.message.contains(words), "{line}: {error}");
            assert_eq!(error.class, super::super::FailureClass::Permanent);
        }
        let invalid = parse(0, b"{\"instruction\": \"\xff\"}").unwrap_err();
        assert!(invalid.message.contains("row 0"), "{invalid}");
    }

    #[test]
    fn candidates_come_in_the_order_of_the_decodings() {
        let line =
            br#"{"flan_samples": {"b": [{"response": "3"}], "a": [{"response": "1"}, {"response": ""}]}}"#;
        let row = parse(0, line).unwrap();
        assert_eq!(responses(0, &row, &["a".into(), "b".into()]).unwrap(), ["1", "", "3"]);
        assert_eq!(responses(0, &row, &[]).unwrap(), ["3", "1", ""]);
    }
}
