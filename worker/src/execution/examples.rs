//! Labelled pairs, checked once and then read from disk as they are needed: memory holds their places only.

use std::path::PathBuf;

use super::{
    ExecutionError,
    rows::{Place, RowFiles, RowReader, bad_row, parse, text},
};
use crate::tokenization::{EncodedRow, ModelTokenizer};

/// Rows `{"instruction", "response", "label"}` of several files, as one list.
pub(super) struct Examples {
    files: RowFiles,
    places: Vec<Place>,
}

impl Examples {
    /// Checks every row, so that a wrong one is told before hours of training.
    ///
    /// # Errors
    /// An unreadable file, or the first row that is no example, named.
    pub fn open(paths: Vec<PathBuf>) -> Result<Self, ExecutionError> {
        let files = RowFiles::open(&paths)?;
        let mut reader = RowReader::new(paths);
        let mut places = Vec::new();
        while let Some((index, place, line)) = reader.next_line()? {
            read(index, &line)?;
            places.push(place);
        }
        Ok(Self { files, places })
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.places.len() as u64
    }

    /// Example `index` as the model takes it, with its label.
    ///
    /// # Errors
    /// An unreadable file, or a text that cannot be tokenized.
    pub fn encoded(
        &mut self,
        index: u64,
        tokenizer: &ModelTokenizer,
        max_tokens: usize,
    ) -> Result<(EncodedRow, f32), ExecutionError> {
        let line = self.files.line(self.places[index as usize])?;
        let (instruction, response, label) = read(index, &line)?;
        let row = tokenizer
            .side(&instruction)
            .and_then(|first| tokenizer.pair(&first, &tokenizer.side(&response)?, max_tokens))
            .map_err(|error| bad_row(index, error))?;
        Ok((row, label))
    }
}

fn read(index: u64, line: &[u8]) -> Result<(String, String, f32), ExecutionError> {
    let row = parse(index, line)?;
    let label = match row.get("label").map(serde_json::Value::as_f64) {
        Some(Some(label)) if (label as f32).is_finite() => label as f32,
        Some(_) => return Err(bad_row(index, "`label` is not a number")),
        None => return Err(bad_row(index, "`label` is missing")),
    };
    let [instruction, response] =
        ["instruction", "response"].map(|field| text(index, &row, field).map(str::to_owned));
    Ok((instruction?, response?, label))
}
