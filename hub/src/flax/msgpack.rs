//! Finds the arrays of a Flax file. Format: msgpack maps of maps whose leaves are extension 1, an array
//! `[shape, dtype name, bytes]`; arrays above 1 GiB are maps `{__msgpack_chunked_array__, shape, chunks}` of flat ones.
//!
//! Source: `flax.serialization`. Bytes are skipped, not read.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use super::FlaxError;
use crate::writer::Segment;

/// An array of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    /// Keys from the root.
    pub path: Vec<String>,
    pub shape: Vec<u64>,
    /// numpy's name of the number format.
    pub dtype: String,
    pub segments: Vec<Segment>,
}

const MAX_DEPTH: usize = 32;
const MAX_DIMENSIONS: u64 = 32;
const MAX_TEXT: u64 = 4096;
/// Of a T5 with 48 layers there are about 1,500.
const MAX_ENTRIES: u64 = 1 << 20;

const EXT_ARRAY: u8 = 1;
const CHUNKED: &str = "__msgpack_chunked_array__";

pub(super) fn read(file: &File) -> Result<Vec<Parameter>, FlaxError> {
    let end = file.metadata()?.len();
    let mut reader = Reader { input: BufReader::new(file), at: 0, end, entries: 0 };
    reader.input.seek(SeekFrom::Start(0))?;
    let root = reader.node(0)?;
    if reader.at != end {
        return Err(FlaxError::Malformed("bytes follow the tree"));
    }
    if !matches!(root, Node::Map(_)) {
        return Err(FlaxError::Malformed("its root is not a map"));
    }
    let mut parameters = Vec::new();
    flatten(root, &mut Vec::new(), &mut parameters)?;
    Ok(parameters)
}

enum Node {
    Map(Vec<(String, Node)>),
    Array { shape: Vec<u64>, dtype: String, bytes: Segment },
    Number(u64),
    Flag,
}

/// Recursion is bounded by [`MAX_DEPTH`].
fn flatten(node: Node, path: &mut Vec<String>, found: &mut Vec<Parameter>) -> Result<(), FlaxError> {
    match node {
        Node::Array { shape, dtype, bytes } => {
            found.push(Parameter { path: path.clone(), shape, dtype, segments: vec![bytes] });
            Ok(())
        }
        Node::Map(entries) if entries.iter().any(|(key, _)| key == CHUNKED) => {
            found.push(chunked(path.clone(), entries)?);
            Ok(())
        }
        Node::Map(entries) => {
            for (key, child) in entries {
                path.push(key);
                flatten(child, path, found)?;
                path.pop();
            }
            Ok(())
        }
        Node::Number(_) | Node::Flag => Err(FlaxError::Malformed("a leaf is not an array")),
    }
}

fn chunked(path: Vec<String>, entries: Vec<(String, Node)>) -> Result<Parameter, FlaxError> {
    let wrong = FlaxError::Malformed("a chunked array lacks its shape or chunks");
    let (mut shape, mut chunks) = (None, None);
    for (key, node) in entries {
        match (key.as_str(), node) {
            ("shape", Node::Map(dims)) => shape = Some(in_order(dims)?),
            ("chunks", Node::Map(parts)) => chunks = Some(in_order(parts)?),
            _ => {}
        }
    }
    let (Some(shape), Some(chunks)) = (shape, chunks) else { return Err(wrong) };
    let dim = |node| if let Node::Number(n) = node { Some(n) } else { None };
    let shape: Option<Vec<u64>> = shape.into_iter().map(dim).collect();
    let mut dtype: Option<String> = None;
    let mut segments = Vec::new();
    for chunk in chunks {
        match chunk {
            Node::Array { dtype: part, bytes, .. } if dtype.as_ref().is_none_or(|d| *d == part) => {
                dtype = Some(part);
                segments.push(bytes);
            }
            _ => return Err(FlaxError::Malformed("the chunks of an array differ")),
        }
    }
    match (shape, dtype) {
        (Some(shape), Some(dtype)) => Ok(Parameter { path, shape, dtype, segments }),
        _ => Err(wrong),
    }
}

/// Flax writes tuples as maps `{"0": .., "1": ..}`.
fn in_order(entries: Vec<(String, Node)>) -> Result<Vec<Node>, FlaxError> {
    let numbered = entries.into_iter().map(|(key, node)| key.parse::<u32>().map(|key| (key, node)));
    let mut numbered: Vec<(u32, Node)> = numbered
        .collect::<Result<_, _>>()
        .map_err(|_| FlaxError::Malformed("a tuple's index is not a number"))?;
    numbered.sort_by_key(|(key, _)| *key);
    if numbered.iter().zip(0..).any(|((key, _), at)| *key != at) {
        return Err(FlaxError::Malformed("a tuple has a hole"));
    }
    Ok(numbered.into_iter().map(|(_, node)| node).collect())
}

struct Reader<R> {
    input: BufReader<R>,
    at: u64,
    end: u64,
    entries: u64,
}

impl<R: Read + Seek> Reader<R> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FlaxError> {
        if self.end - self.at < N as u64 {
            return Err(FlaxError::Truncated);
        }
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    /// A big-endian number of 1, 2, 4 or 8 bytes.
    fn number(&mut self, bytes: u8) -> Result<u64, FlaxError> {
        Ok(match bytes {
            1 => self.take::<1>()?[0].into(),
            2 => u16::from_be_bytes(self.take()?).into(),
            4 => u32::from_be_bytes(self.take()?).into(),
            _ => u64::from_be_bytes(self.take()?),
        })
    }

    /// The bytes from here on, not read.
    fn skip(&mut self, bytes: u64) -> Result<Segment, FlaxError> {
        if self.end - self.at < bytes {
            return Err(FlaxError::Truncated);
        }
        let segment = Segment { offset: self.at, bytes };
        self.input.seek_relative(i64::try_from(bytes).map_err(|_| FlaxError::Truncated)?)?;
        self.at += bytes;
        Ok(segment)
    }

    fn node(&mut self, depth: usize) -> Result<Node, FlaxError> {
        if depth > MAX_DEPTH {
            return Err(FlaxError::Malformed("it is nested too deeply"));
        }
        let start = self.at;
        let marker = self.take::<1>()?[0];
        match marker {
            0x80..=0x8f => self.map(u64::from(marker & 0x0f), depth),
            0xde => self.number(2).and_then(|n| self.map(n, depth)),
            0xdf => self.number(4).and_then(|n| self.map(n, depth)),
            0xd4..=0xd8 => self.extension(1 << (marker - 0xd4), start),
            0xc7..=0xc9 => self.number(1 << (marker - 0xc7)).and_then(|n| self.extension(n, start)),
            0x00..=0x7f => Ok(Node::Number(marker.into())),
            0xcc..=0xcf => self.number(1 << (marker - 0xcc)).map(Node::Number),
            0xc2 | 0xc3 => Ok(Node::Flag),
            0xc0 => Err(FlaxError::Foreign("nothing (nil)", start)),
            0xa0..=0xbf | 0xd9..=0xdb => Err(FlaxError::Foreign("a text", start)),
            0x90..=0x9f | 0xdc | 0xdd => Err(FlaxError::Foreign("a list", start)),
            _ => Err(FlaxError::Foreign("a value", start)),
        }
    }

    fn map(&mut self, length: u64, depth: usize) -> Result<Node, FlaxError> {
        let mut entries = Vec::new();
        for _ in 0..length {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(FlaxError::Malformed("it has more entries than any model"));
            }
            let key = self.text()?;
            entries.push((key, self.node(depth + 1)?));
        }
        Ok(Node::Map(entries))
    }

    fn text(&mut self) -> Result<String, FlaxError> {
        let start = self.at;
        let marker = self.take::<1>()?[0];
        let length = match marker {
            0xa0..=0xbf => u64::from(marker & 0x1f),
            0xd9..=0xdb => self.number(1 << (marker - 0xd9))?,
            _ => return Err(FlaxError::Foreign("a name that is no text", start)),
        };
        if length > MAX_TEXT {
            return Err(FlaxError::Malformed("a name is too long"));
        }
        if self.end - self.at < length {
            return Err(FlaxError::Truncated);
        }
        let mut bytes = vec![0; length as usize];
        self.input.read_exact(&mut bytes)?;
        self.at += length;
        String::from_utf8(bytes).map_err(|_| FlaxError::Malformed("a name is not UTF-8"))
    }

    fn extension(&mut self, length: u64, start: u64) -> Result<Node, FlaxError> {
        if self.take::<1>()?[0] != EXT_ARRAY {
            return Err(FlaxError::Foreign("a scalar or complex number", start));
        }
        let end = self.at.checked_add(length).filter(|end| *end <= self.end).ok_or(FlaxError::Truncated)?;
        if self.list_length()? != 3 {
            return Err(FlaxError::Malformed("an array is not (shape, dtype, bytes)"));
        }
        let dimensions = self.list_length()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(FlaxError::Malformed("an array has too many dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            match self.node(MAX_DEPTH)? {
                Node::Number(n) => shape.push(n),
                _ => return Err(FlaxError::Malformed("an array's shape is not numbers")),
            }
        }
        let dtype = self.text()?;
        let length = match self.take::<1>()?[0] {
            marker @ 0xc4..=0xc6 => self.number(1 << (marker - 0xc4))?,
            _ => return Err(FlaxError::Malformed("an array has no bytes")),
        };
        let bytes = self.skip(length)?;
        if self.at != end {
            return Err(FlaxError::Malformed("an array's length is wrong"));
        }
        Ok(Node::Array { shape, dtype, bytes })
    }

    fn list_length(&mut self) -> Result<u64, FlaxError> {
        match self.take::<1>()?[0] {
            marker @ 0x90..=0x9f => Ok(u64::from(marker & 0x0f)),
            0xdc => self.number(2),
            0xdd => self.number(4),
            _ => Err(FlaxError::Malformed("an array is not (shape, dtype, bytes)")),
        }
    }
}
