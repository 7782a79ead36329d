//! Examples as the hub's files hold them: JSON Lines, CSV or Parquet, one row at a time.

mod columns;
mod csv;
mod parquet;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::rows::{JsonLines, ReadError};

/// An example: its columns by name.
pub type Example = Map<String, Value>;

/// A row with its place in the file, from 1, or why there is none.
type ExampleRow = Result<(u64, Example), ReadError>;

/// File endings, longest first.
const ENDINGS: [(&str, Format); 7] = [
    (".jsonl.zst", Format::JsonLines),
    (".jsonl.gz", Format::JsonLines),
    (".jsonl", Format::JsonLines),
    (".csv.zst", Format::Csv),
    (".csv.gz", Format::Csv),
    (".csv", Format::Csv),
    (".parquet", Format::Parquet),
];

#[derive(Clone, Copy)]
enum Format {
    JsonLines,
    Csv,
    Parquet,
}

/// The files of examples in a folder, by name.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn files_in(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if format_of(&path).is_some() && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn format_of(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?;
    if name.starts_with('.') {
        return None;
    }
    ENDINGS.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, format)| *format)
}

/// The examples of a file, in order. `folder` is the dataset, whose known columns get the types that its templates
/// expect (class names become numbers, for example).
///
/// Yields `Err(ReadError::Bad)` for a bad row and goes on behind it; after `Err(ReadError::Io)` it ends.
pub(super) fn read<'a>(path: &Path, folder: &'a str) -> Box<dyn Iterator<Item = ExampleRow> + 'a> {
    let rows: Result<Box<dyn Iterator<Item = ExampleRow>>, ReadError> = match format_of(path) {
        Some(Format::Csv) => csv::read(path),
        Some(Format::Parquet) => parquet::read(path),
        Some(Format::JsonLines) | None => JsonLines::<Example>::open(path).map(|lines| {
            let rows = lines.map(|row| row.map(|numbered| (numbered.line, numbered.value)));
            Box::new(rows) as Box<dyn Iterator<Item = ExampleRow>>
        }),
    };
    match rows {
        Ok(rows) => {
            let name = path.display().to_string();
            Box::new(rows.map(move |row| {
                let (line, mut example) = row?;
                match columns::settle(folder, &mut example) {
                    Ok(()) => Ok((line, example)),
                    Err(reason) => {
                        Err(ReadError::Bad(crate::rows::BadLine { source_name: name.clone(), line, reason }))
                    }
                }
            }))
        }
        Err(error) => Box::new(std::iter::once(Err(error))),
    }
}

#[cfg(test)]
mod tests;
