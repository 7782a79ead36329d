//! How large a model is in memory, from the headers of its files alone.

use std::path::Path;

use cappy_hub::header::read_header;

/// Numbers in all safetensors files of a directory; `None` where one cannot be read.
pub fn parameters(dir: &Path) -> Option<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let tensors = read_header(&path).ok()?;
            total += tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum::<u64>();
        }
    }
    Some(total)
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
        file.extend_from_slice(&[0; 26]);
        std::fs::write(dir.path().join("model.safetensors"), &file).unwrap();
        assert_eq!(parameters(dir.path()), Some(7), "a scalar is one number");
        std::fs::write(dir.path().join("damaged.safetensors"), [255; 20]).unwrap();
        assert_eq!(parameters(dir.path()), None);
        assert_eq!(["auto", "f32", "bf16", "int8"].map(bytes_of), [4, 4, 2, 1]);
    }
}
