//! The header of a safetensors file, checked before anything is allocated from what it claims.
//!
//! Format: `u64` little-endian length, that many bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the
//! tensors, which must cover the rest of the file without gap or overlap.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// The longest header that is read, as in the reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

const METADATA_KEY: &str = "__metadata__";

/// A number format of safetensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Dtype {
    Bool,
    U8,
    I8,
    U16,
    I16,
    F16,
    BF16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
}

impl Dtype {
    /// As it is written in a header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::U16 => "U16",
            Self::I16 => "I16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::U32 => "U32",
            Self::I32 => "I32",
            Self::F32 => "F32",
            Self::U64 => "U64",
            Self::I64 => "I64",
            Self::F64 => "F64",
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> u64 {
        match self {
            Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 | Self::F16 | Self::BF16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        use Dtype::*;
        [Bool, U8, I8, U16, I16, F16, BF16, U32, I32, F32, U64, I64, F64]
            .into_iter()
            .find(|d| d.name() == name)
    }
}

/// What a header says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name of the parameter.
    pub name: String,
    /// Number format.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<u64>,
    /// Bytes of the data, counted from the header's end.
    pub data: Range<u64>,
}

/// A file that is not what its header says.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Fewer than eight bytes.
    #[error("the file has {0} bytes, too few for a safetensors file: download it again")]
    TooShort(u64),
    /// The length field claims more than there is.
    #[error("the header claims {claimed} bytes, the file has {file}: it is truncated or no safetensors file")]
    HeaderBeyondFile {
        /// Value of the length field.
        claimed: u64,
        /// Bytes of the whole file.
        file: u64,
    },
    /// The length field claims more than any real model needs.
    #[error("the header claims {0} bytes, more than the {MAX_HEADER_BYTES} that are read")]
    HeaderTooLong(u64),
    /// The header's bytes are no text.
    #[error("the header is not UTF-8")]
    NotUtf8,
    /// The header's text is not the JSON that the format asks for.
    #[error("the header is not valid: {0}")]
    NotJson(String),
    /// A name twice.
    #[error("tensor `{0}` occurs twice in the header")]
    Duplicate(String),
    /// A number format that is not supported.
    #[error("tensor `{tensor}` has dtype `{dtype}`, which is not supported")]
    Dtype {
        /// Which tensor.
        tensor: String,
        /// As written.
        dtype: String,
    },
    /// Shape and number of bytes disagree, or overflow.
    #[error("tensor `{0}`: its shape does not match its data_offsets")]
    Size(String),
    /// Tensors must follow each other without gap or overlap.
    #[error("tensor `{tensor}` starts at byte {start}, the one before it ends at {expected}: gap or overlap")]
    NotContiguous {
        /// Which tensor.
        tensor: String,
        /// Where it starts.
        start: u64,
        /// Where it should start.
        expected: u64,
    },
    /// The data end before or behind the file's end.
    #[error(
        "the tensors need {needed} bytes and the file holds {held}: it is truncated or damaged, download it again"
    )]
    DataLength {
        /// By the header.
        needed: u64,
        /// In the file.
        held: u64,
    },
    /// The system refused to read.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

/// Reads and checks the header of a file. Tensors come in the order of their data.
///
/// # Errors
/// [`HeaderError`]; nothing larger than the file itself is allocated before it is known to be well-formed.
pub fn read_header(path: &Path) -> Result<Vec<TensorInfo>, HeaderError> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    if size < 8 {
        return Err(HeaderError::TooShort(size));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > size - 8 {
        return Err(HeaderError::HeaderBeyondFile { claimed: length, file: size });
    }
    if length > MAX_HEADER_BYTES {
        return Err(HeaderError::HeaderTooLong(length));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    if header.len() as u64 != length {
        return Err(HeaderError::HeaderBeyondFile { claimed: length, file: 8 + header.len() as u64 });
    }
    parse_header(&header, size - 8 - length)
}

/// Checks a header's JSON against the number of bytes that follow it.
pub(crate) fn parse_header(json: &[u8], data_bytes: u64) -> Result<Vec<TensorInfo>, HeaderError> {
    let text = std::str::from_utf8(json).map_err(|_| HeaderError::NotUtf8)?;
    let Entries(entries) =
        serde_json::from_str(text).map_err(|error| HeaderError::NotJson(error.to_string()))?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let Some(dtype) = Dtype::from_name(&entry.dtype) else {
            return Err(HeaderError::Dtype { tensor: name, dtype: entry.dtype });
        };
        let (start, end) = entry.data_offsets;
        let bytes = entry.shape.iter().try_fold(dtype.size(), |n, &dim| n.checked_mul(dim));
        if start > end || bytes != Some(end - start) {
            return Err(HeaderError::Size(name));
        }
        tensors.push(TensorInfo { name, dtype, shape: entry.shape, data: start..end });
    }
    // An empty tensor may share its start with the next one.
    tensors.sort_by(|a, b| (a.data.start, a.data.end, &a.name).cmp(&(b.data.start, b.data.end, &b.name)));
    let mut expected = 0;
    for tensor in &tensors {
        if tensor.data.start != expected {
            return Err(HeaderError::NotContiguous {
                tensor: tensor.name.clone(),
                start: tensor.data.start,
                expected,
            });
        }
        expected = tensor.data.end;
    }
    if expected != data_bytes {
        return Err(HeaderError::DataLength { needed: expected, held: data_bytes });
    }
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(HeaderError::Duplicate(pair[0].to_owned()));
    }
    Ok(tensors)
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's object as a list, so that a repeated name is seen.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        map.next_value::<std::collections::HashMap<String, String>>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(length: u64, header: &[u8], data: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes = [&length.to_le_bytes()[..], header, &vec![0; data]].concat();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn read(header: &str, data: usize) -> Result<Vec<TensorInfo>, HeaderError> {
        read_header(file(header.len() as u64, header.as_bytes(), data).path())
    }

    #[test]
    fn well_formed_headers_are_read() {
        let tensors = read(
            r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2],"data_offsets":[8,12]},
                "e":{"dtype":"F32","shape":[0,4],"data_offsets":[8,8]},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}} "#,
            12,
        )
        .unwrap();
        let names: Vec<_> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "e", "b"]);
        assert_eq!((tensors[2].dtype, tensors[2].shape.as_slice()), (Dtype::F16, &[2][..]));
    }

    #[test]
    fn hostile_headers_are_refused_before_allocation() {
        use HeaderError as E;
        assert!(matches!(
            read_header(file(1 << 63, b"{}", 0).path()),
            Err(E::HeaderBeyondFile { claimed, .. }) if claimed == 1 << 63
        ));
        assert!(matches!(read_header(file(u64::MAX, b"", 0).path()), Err(E::HeaderBeyondFile { .. })));
        assert!(matches!(read_header(file(3, b"\xff\xfe{", 0).path()), Err(E::NotUtf8)));
        let short = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(read_header(short.path()), Err(E::TooShort(0))));

        let one = |shape: &str, offsets: &str| {
            format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        type Expected = fn(&HeaderError) -> bool;
        let table: Vec<(String, usize, Expected)> = vec![
            ("{".into(), 0, |e| matches!(e, E::NotJson(_))),
            ("[]".into(), 0, |e| matches!(e, E::NotJson(_))),
            ("[".repeat(100_000), 0, |e| matches!(e, E::NotJson(_))),
            (one("[-1]", "[0,4]"), 4, |e| matches!(e, E::NotJson(_))),
            (one("[18446744073709551616]", "[0,4]"), 4, |e| matches!(e, E::NotJson(_))),
            (one("[4611686018427387904, 4]", "[0,0]"), 0, |e| matches!(e, E::Size(_))),
            (one("[2]", "[0,4]"), 4, |e| matches!(e, E::Size(_))),
            (one("[1]", "[4,0]"), 4, |e| matches!(e, E::Size(_))),
            (one("[1]", "[4,8]"), 8, |e| matches!(e, E::NotContiguous { .. })),
            (one("[2]", "[0,8]"), 4, |e| matches!(e, E::DataLength { needed: 8, held: 4 })),
            (one("[1]", "[0,4]"), 8, |e| matches!(e, E::DataLength { needed: 4, held: 8 })),
            (one("[1]", "[0,4]").replace("F32", "F31"), 4, |e| matches!(e, E::Dtype { .. })),
            (
                r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"y":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#.into(),
                6,
                |e| matches!(e, E::NotContiguous { .. }),
            ),
            (
                r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#.into(),
                2,
                |e| matches!(e, E::Duplicate(_)),
            ),
        ];
        for (header, data, expected) in table {
            let error = read(&header, data).expect_err(&header[..header.len().min(80)]);
            assert!(expected(&error), "{error}");
        }
    }
}
