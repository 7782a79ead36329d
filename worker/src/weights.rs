//! How large a model is in memory, from the headers of its files alone.
//!
//! A safetensors file begins with the length of a JSON header (u64, little endian), which gives every tensor's shape.
//! Source: <https://github.com/huggingface/safetensors#format>.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use serde::Deserialize;

/// Longest header that is read.
const MAX_HEADER_BYTES: u64 = 100 << 20;

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    shape: Vec<u64>,
}

/// Numbers in all safetensors files of a directory; `None` where one cannot be read.
pub fn parameters(dir: &Path) -> Option<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            total += of_file(&path).ok()?;
        }
    }
    Some(total)
}

fn of_file(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(io::Error::other("the header is too long"));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let mut entries: HashMap<String, serde_json::Value> = serde_json::from_slice(&header)?;
    entries.remove("__metadata__");
    entries.into_values().try_fold(0, |total, entry| {
        let entry: Entry = serde_json::from_value(entry)?;
        Ok(total + entry.shape.iter().product::<u64>())
    })
}

/// Bytes of a number in a backend's number format. `auto` is taken for f32, which is what a CPU gets.
pub fn bytes_of(dtype: &str) -> u64 {
    match dtype {
        "bf16" | "f16" => 2,
        "int8" => 1,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_tell_how_many_numbers_there_are() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(parameters(dir.path()), Some(0));
        let header = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}}"#;
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header);
        std::fs::write(dir.path().join("model.safetensors"), &file).unwrap();
        assert_eq!(parameters(dir.path()), Some(7), "a scalar is one number");
        std::fs::write(dir.path().join("damaged.safetensors"), [255; 20]).unwrap();
        assert_eq!(parameters(dir.path()), None);
        assert_eq!(["auto", "f32", "bf16", "int8"].map(bytes_of), [4, 4, 2, 1]);
    }
}
