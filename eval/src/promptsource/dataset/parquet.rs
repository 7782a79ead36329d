//! Parquet files, read row by row; one row group's column pages are in memory at a time.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::Value;

use super::{Example, ExampleRow};
use crate::rows::ReadError;

pub(super) fn read(path: &Path) -> Result<Box<dyn Iterator<Item = ExampleRow>>, ReadError> {
    let name = path.display().to_string();
    let io_error = |source| ReadError::Io { source_name: name.clone(), source };
    let file = File::open(path).map_err(io_error)?;
    let mut rows =
        guarded(|| SerializedFileReader::new(file).map(|reader| RowIter::from_file_into(Box::new(reader))))
            .map_err(|reason| io_error(std::io::Error::other(format!("no whole Parquet file: {reason}"))))?;
    let mut place = 0;
    let mut ended = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        place += 1;
        match guarded(|| rows.next().transpose()) {
            Ok(row) => row.map(|row| Ok((place, example(&row)))),
            Err(reason) => {
                ended = true;
                let reason = format!("row {place} cannot be read: {reason}");
                Some(Err(ReadError::Io { source_name: name.clone(), source: std::io::Error::other(reason) }))
            }
        }
    })))
}

/// The reader trusts parts of a file; what it finds broken there, it panics about.
fn guarded<T>(step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("its content contradicts its description".into()),
    }
}

fn example(row: &Row) -> Example {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(x) => Value::from(*x),
        Field::Byte(x) => Value::from(*x),
        Field::Short(x) => Value::from(*x),
        Field::Int(x) => Value::from(*x),
        Field::Long(x) => Value::from(*x),
        Field::UByte(x) => Value::from(*x),
        Field::UShort(x) => Value::from(*x),
        Field::UInt(x) => Value::from(*x),
        Field::ULong(x) => Value::from(*x),
        // Through its own digits: 0.1 shall print as 0.1.
        Field::Float(x) => x.to_string().parse::<f64>().map_or(Value::Null, Value::from),
        Field::Double(x) => Value::from(*x),
        Field::Str(text) => Value::from(text.as_str()),
        Field::Bytes(bytes) => Value::from(String::from_utf8_lossy(bytes.data())),
        Field::Group(row) => Value::Object(example(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            map.entries().iter().map(|(key, of)| (text_of(key), value(of))).collect::<Example>().into()
        }
        other => Value::from(other.to_string()),
    }
}

fn text_of(field: &Field) -> String {
    match value(field) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}
