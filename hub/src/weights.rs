//! Which files hold a model's weights, in the order of preference, and the index of sharded ones.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::check::{CheckError, read_capped};

/// How a file keeps tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Read by backends as it is.
    Safetensors,
    /// `torch.save` of a state dict; converted once.
    PyTorch,
    /// Flax's `to_bytes` of a parameter tree; converted once.
    Flax,
}

impl WeightFormat {
    /// In the order of preference.
    pub const ALL: [Self; 3] = [Self::Safetensors, Self::PyTorch, Self::Flax];

    /// Name of the file that holds all weights.
    pub fn single_file(self) -> &'static str {
        match self {
            Self::Safetensors => "model.safetensors",
            Self::PyTorch => "pytorch_model.bin",
            Self::Flax => "flax_model.msgpack",
        }
    }

    /// Name of the index of sharded weights.
    pub fn index_file(self) -> &'static str {
        match self {
            Self::Safetensors => "model.safetensors.index.json",
            Self::PyTorch => "pytorch_model.bin.index.json",
            Self::Flax => "flax_model.msgpack.index.json",
        }
    }
}

/// An index lists every tensor once: a few MiB for the largest models.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The weights of a model directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightFiles {
    /// How they are kept.
    pub format: WeightFormat,
    /// The index, if they are sharded.
    pub index: Option<&'static str>,
    /// Files relative to the directory, sorted by name.
    pub files: Vec<String>,
}

/// Finds the preferred weights of a directory.
///
/// # Errors
/// [`CheckError`] when there are none, or an index names a file that is absent or outside the directory.
pub fn find_weights(dir: &Path) -> Result<WeightFiles, CheckError> {
    for format in WeightFormat::ALL {
        if dir.join(format.single_file()).exists() {
            return Ok(WeightFiles { format, index: None, files: vec![format.single_file().to_owned()] });
        }
        let index = format.index_file();
        if dir.join(index).exists() {
            let bytes = read_capped(dir, index, MAX_INDEX_BYTES, "it was there a moment ago")?;
            let files = shards_of_index(index, &bytes)?;
            if let Some(absent) = files.iter().find(|file| !dir.join(file).exists()) {
                return Err(CheckError::Missing {
                    file: absent.clone(),
                    advice: format!("`{index}` lists it: download the model again"),
                });
            }
            return Ok(WeightFiles { format, index: Some(index), files });
        }
    }
    Err(CheckError::Missing {
        file: WeightFormat::Safetensors.single_file().to_owned(),
        advice: "nor is there a pytorch_model.bin or flax_model.msgpack: download the model again".into(),
    })
}

/// The shard files that an index names, sorted, each once.
///
/// # Errors
/// [`CheckError::Index`], also for a name that is not a plain file name: an index must not reach outside its directory.
pub fn shards_of_index(index: &str, json: &[u8]) -> Result<Vec<String>, CheckError> {
    let refuse = |reason: String| CheckError::Index { file: index.to_owned(), reason };
    let value: Value =
        serde_json::from_slice(json).map_err(|error| refuse(format!("it is not JSON: {error}")))?;
    let map = value.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| refuse("it has no `weight_map` object".into()))?;
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| refuse(format!("the file of `{tensor}` is not a string")))?;
        if !is_plain_file_name(file) {
            return Err(refuse(format!("it names `{file}`, which is not a file of the same directory")));
        }
        files.insert(file.to_owned());
    }
    if files.is_empty() {
        return Err(refuse("its `weight_map` is empty".into()));
    }
    Ok(files.into_iter().collect())
}

fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && !name.contains(|c: char| matches!(c, '/' | '\\' | ':') || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_never_reaches_outside() {
        let index =
            |file: &str| serde_json::json!({"weight_map": {"a": file, "b": "two", "c": "one"}}).to_string();
        assert_eq!(shards_of_index("i", index("two").as_bytes()).unwrap(), ["one", "two"]);
        for bad in ["../x", "/etc/passwd", "a/b", "..", "", "a\\b", ".hidden", "c:x", "a\0"] {
            let error = shards_of_index("i", index(bad).as_bytes()).unwrap_err();
            assert!(matches!(error, CheckError::Index { .. }), "{bad}");
        }
        for bad in [r#"{"weight_map": {}}"#, "{}", "{", r#"{"weight_map": {"a": 1}}"#] {
            assert!(shards_of_index("i", bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
