//! Reading rows, one line at a time, naming the bad ones by file and line.

use std::fmt;
use std::io::{self, BufRead};
use std::marker::PhantomData;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::source::open_source;

/// A longer line is refused: no row of any known benchmark comes near, and memory must stay bounded.
const MAX_LINE_BYTES: usize = 256 * 1024 * 1024;

/// A line that is not a row, with the reason. Prints as `FILE:LINE: reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// The file, or `-` for standard input.
    pub source_name: String,
    /// Counted from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.source_name, self.line, self.reason)
    }
}

impl std::error::Error for BadLine {}

/// Why a row could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// One line is bad; reading can go on behind it.
    #[error("{0}")]
    Bad(BadLine),
    /// The source itself failed; nothing more will come.
    #[error("failed to read {source_name}")]
    Io {
        /// The file, or `-` for standard input.
        source_name: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// What to do about a bad line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BadLinePolicy {
    /// Note it and go on.
    #[default]
    Collect,
    /// Stop at the first.
    Strict,
}

/// A value with the line it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbered<T> {
    /// Counted from 1.
    pub line: u64,
    /// The row.
    pub value: T,
}

/// The rows of a source, in order; empty lines are skipped.
///
/// Yields `Err(ReadError::Bad)` for a bad line and goes on behind it; after `Err(ReadError::Io)` it ends.
pub struct JsonLines<T, R = Box<dyn BufRead + Send>> {
    lines: LineSplitter<R>,
    row: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> JsonLines<T> {
    /// Opens a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file, or standard input for `-`.
    ///
    /// # Errors
    /// [`ReadError::Io`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let source_name = path.display().to_string();
        let reader =
            open_source(path).map_err(|source| ReadError::Io { source_name: source_name.clone(), source })?;
        Ok(Self::new(source_name, reader))
    }
}

impl<T: DeserializeOwned, R: BufRead> JsonLines<T, R> {
    /// Rows from any reader; `source_name` is what errors call it.
    pub fn new(source_name: impl Into<String>, reader: R) -> Self {
        Self { lines: LineSplitter::new(source_name, reader), row: PhantomData }
    }
}

impl<T: DeserializeOwned, R: BufRead> Iterator for JsonLines<T, R> {
    type Item = Result<Numbered<T>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let parsed = match self.lines.next_line()? {
            Ok((line, text)) => parse(text).map(|value| Numbered { line, value }).map_err(|e| (line, e)),
            Err(error) => return Some(Err(error)),
        };
        Some(parsed.map_err(|(line, reason)| ReadError::Bad(self.lines.bad(line, reason))))
    }
}

/// The rows that could be read, and the lines that could not.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded<T> {
    /// Good rows, in order.
    pub rows: Vec<T>,
    /// Bad lines, in order.
    pub bad: Vec<BadLine>,
}

/// Reads a whole file of rows.
///
/// # Errors
/// [`ReadError::Io`] if it cannot be read; [`ReadError::Bad`] for the first bad line under [`BadLinePolicy::Strict`].
pub fn load<T: DeserializeOwned>(path: &Path, policy: BadLinePolicy) -> Result<Loaded<T>, ReadError> {
    let mut loaded = Loaded { rows: Vec::new(), bad: Vec::new() };
    for row in JsonLines::open(path)? {
        match row {
            Ok(row) => loaded.rows.push(row.value),
            Err(ReadError::Bad(bad)) if policy == BadLinePolicy::Collect => loaded.bad.push(bad),
            Err(error) => return Err(error),
        }
    }
    Ok(loaded)
}

/// Lines with their numbers, from a buffer that is used again for each.
pub struct LineSplitter<R> {
    source_name: String,
    reader: R,
    buffer: Vec<u8>,
    line: u64,
    ended: bool,
}

impl<R: BufRead> LineSplitter<R> {
    /// `source_name` is what errors call it.
    pub fn new(source_name: impl Into<String>, reader: R) -> Self {
        Self { source_name: source_name.into(), reader, buffer: Vec::new(), line: 0, ended: false }
    }

    /// A complaint about one of these lines.
    pub fn bad(&self, line: u64, reason: String) -> BadLine {
        BadLine { source_name: self.source_name.clone(), line, reason }
    }

    /// The next line that is not empty, without its end (and without a byte order mark), and its number from 1.
    pub fn next_line(&mut self) -> Option<Result<(u64, &str), ReadError>> {
        while !self.ended {
            self.buffer.clear();
            let too_long = match read_bounded_line(&mut self.reader, &mut self.buffer, MAX_LINE_BYTES) {
                Ok(LineEnd::EndOfSource) => {
                    self.ended = true;
                    if self.buffer.is_empty() {
                        return None;
                    }
                    false
                }
                Ok(LineEnd::Newline) => false,
                Ok(LineEnd::TooLong) => true,
                Err(source) => {
                    self.ended = true;
                    return Some(Err(ReadError::Io { source_name: self.source_name.clone(), source }));
                }
            };
            self.line += 1;
            if too_long {
                let reason = format!("longer than {} MiB", MAX_LINE_BYTES >> 20);
                return Some(Err(ReadError::Bad(self.bad(self.line, reason))));
            }
            let start = if self.line == 1 && self.buffer.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
            if self.buffer[start..].iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            // Checked twice because a borrow returned from one branch would otherwise outlive the other.
            if let Err(error) = std::str::from_utf8(&self.buffer[start..]) {
                let reason = format!("not UTF-8 at byte {}", start + error.valid_up_to() + 1);
                return Some(Err(ReadError::Bad(self.bad(self.line, reason))));
            }
            let text = std::str::from_utf8(&self.buffer[start..]).expect("checked above");
            return Some(Ok((self.line, text.trim_ascii())));
        }
        None
    }
}

enum LineEnd {
    Newline,
    EndOfSource,
    TooLong,
}

/// Appends the next line to `buffer` without its `\n`; of a line longer than `limit`, only skips the rest.
fn read_bounded_line(reader: &mut impl BufRead, buffer: &mut Vec<u8>, limit: usize) -> io::Result<LineEnd> {
    let mut too_long = false;
    loop {
        let available = match reader.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if available.is_empty() {
            return Ok(if too_long { LineEnd::TooLong } else { LineEnd::EndOfSource });
        }
        let newline = memchr::memchr(b'\n', available);
        let taken = newline.unwrap_or(available.len());
        too_long |= buffer.len() + taken > limit;
        if !too_long {
            buffer.extend_from_slice(&available[..taken]);
        }
        reader.consume(newline.map_or(taken, |at| at + 1));
        if newline.is_some() {
            return Ok(if too_long { LineEnd::TooLong } else { LineEnd::Newline });
        }
    }
}

/// One row from its line.
fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).or_else(|error| {
        // Python writes numbers that are not finite as bare names, which JSON does not know.
        let named = if error.is_syntax() { quote_python_constants(text) } else { None };
        match named {
            Some(text) => serde_json::from_str(&text).map_err(|error| explain(&error)),
            None => Err(explain(&error)),
        }
    })
}

/// serde_json's message, with its `at line 1 column N` cut down: a row is always one line.
pub(crate) fn explain(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let short = message.rsplit_once(" at line ").map_or(message.as_str(), |(short, _)| short);
    match error.column() {
        0 => short.to_owned(),
        column => format!("{short} (column {column})"),
    }
}

/// An error and what it came from, in one line.
pub(crate) fn explain_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The text with bare `NaN`, `Infinity` and `-Infinity` put in quotes; `None` if there are none.
fn quote_python_constants(text: &str) -> Option<String> {
    let mut quoted = String::new();
    let mut copied = 0;
    let (mut in_string, mut escaped) = (false, false);
    let mut at = 0;
    while at < text.len() {
        let byte = text.as_bytes()[at];
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else if byte == b'"' {
            in_string = true;
        } else if matches!(byte, b'N' | b'I' | b'-')
            && let Some(name) =
                ["NaN", "Infinity", "-Infinity"].iter().find(|name| text[at..].starts_with(**name))
        {
            quoted.push_str(&text[copied..at]);
            quoted.extend(["\"", name, "\""]);
            at += name.len();
            copied = at;
            continue;
        }
        at += 1;
    }
    if copied == 0 {
        return None;
    }
    quoted.push_str(&text[copied..]);
    Some(quoted)
}
