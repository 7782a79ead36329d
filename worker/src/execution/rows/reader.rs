//! Rows in order, and rows by their places.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead, BufReader, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use super::{
    ExecutionError, Row, bad_row,
    index::{Found, RowIndex},
    parse,
};

/// Longest line that is read.
const MAX_ROW_BYTES: u64 = 64 * 1024 * 1024;

/// Where a row starts: file and byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    file: u32,
    offset: u64,
}

/// The rows of one file; blank lines are no rows.
pub(super) struct Lines {
    reader: BufReader<File>,
    offset: u64,
}

impl Lines {
    /// From the row, or the blank line, that starts at this byte.
    ///
    /// # Errors
    /// An unreadable file.
    pub(super) fn open(path: &Path, offset: u64) -> Result<Self, ExecutionError> {
        let open = || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            Ok(file)
        };
        let file = open().map_err(|error| ExecutionError::disk("read an input", &error))?;
        Ok(Self { reader: BufReader::with_capacity(1 << 18, file), offset })
    }

    /// Where what is read next starts.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Puts the next row's text into `line`; returns where it starts, `None` after the last. `index` names it.
    ///
    /// # Errors
    /// An unreadable file, or a row that is too long.
    pub(super) fn next(&mut self, index: u64, line: &mut Vec<u8>) -> Result<Option<u64>, ExecutionError> {
        loop {
            line.clear();
            let start = self.offset;
            let read = self
                .reader
                .by_ref()
                .take(MAX_ROW_BYTES + 1)
                .read_until(b'\n', line)
                .map_err(|error| ExecutionError::disk("read an input", &error))?;
            if read == 0 {
                return Ok(None);
            }
            if read as u64 > MAX_ROW_BYTES {
                return Err(bad_row(index, format!("longer than {MAX_ROW_BYTES} bytes")));
            }
            self.offset += read as u64;
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(start));
            }
        }
    }
}

/// Reads the rows of files, one after the other.
pub struct RowReader {
    files: VecDeque<PathBuf>,
    file_index: u32,
    open: Option<Lines>,
    next: u64,
}

impl RowReader {
    /// At the first row.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self { files: files.into(), file_index: 0, open: None, next: 0 }
    }

    /// At row `start`, without reading all that is before it where `index` knows the files.
    ///
    /// # Errors
    /// An unreadable file, a row before `start` that is too long, or fewer rows.
    pub fn from_row(files: Vec<PathBuf>, start: u64, index: &RowIndex) -> Result<Self, ExecutionError> {
        let mut reader = Self::new(files);
        while reader.next < start {
            let Some(path) = reader.files.front() else { return Err(too_few(reader.next, start)) };
            match index.find(path, start - reader.next, reader.next)? {
                Found::Start { row, offset } => {
                    reader.open = Some(Lines::open(path, offset)?);
                    reader.next += row;
                    reader.files.pop_front();
                    break;
                }
                Found::Fewer { rows } => {
                    reader.next += rows;
                    reader.files.pop_front();
                    reader.file_index += 1;
                }
            }
        }
        while reader.next < start {
            if reader.next_line()?.is_none() {
                return Err(too_few(reader.next, start));
            }
        }
        Ok(reader)
    }

    /// The next row's index, place and text; `None` after the last.
    ///
    /// # Errors
    /// An unreadable file, or a row that is too long.
    pub fn next_line(&mut self) -> Result<Option<(u64, Place, Vec<u8>)>, ExecutionError> {
        loop {
            let Some(lines) = &mut self.open else {
                let Some(path) = self.files.pop_front() else { return Ok(None) };
                self.open = Some(Lines::open(&path, 0)?);
                continue;
            };
            let mut line = Vec::new();
            let Some(offset) = lines.next(self.next, &mut line)? else {
                self.open = None;
                self.file_index += 1;
                continue;
            };
            let place = Place { file: self.file_index, offset };
            let index = self.next;
            self.next += 1;
            return Ok(Some((index, place, line)));
        }
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
        let mut reader = RowReader::from_row(paths.clone(), 1, &RowIndex::default()).unwrap();
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
}
