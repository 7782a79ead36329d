//! Writes a safetensors file from tensors that lie somewhere in other files, one tensor in memory at a time.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::header::Dtype;

/// A run of bytes of an input file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

/// A tensor inside an input file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceTensor {
    /// Its name in the output.
    pub name: String,
    /// Number format, little-endian.
    pub dtype: Dtype,
    /// Row-major shape of the output.
    pub shape: Vec<u64>,
    /// Elements from one index to the next in each dimension; `None`: row-major without holes.
    pub strides: Option<Vec<u64>>,
    /// Which input.
    pub file: usize,
    /// Where its elements are; the runs follow each other.
    pub segments: Vec<Segment>,
}

impl SourceTensor {
    /// Number of elements. The makers of these have checked that it does not overflow.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        self.elements() * self.dtype.size()
    }
}

/// The strides of a row-major tensor of this shape.
pub(crate) fn row_major(shape: &[u64]) -> Vec<u64> {
    let mut strides = vec![1; shape.len()];
    for at in (1..shape.len()).rev() {
        strides[at - 1] = strides[at] * shape[at].max(1);
    }
    strides
}

const COPY_BYTES: usize = 1 << 20;

/// Writes `output`; tensors are ordered by element size and name, as the reference implementation does.
///
/// # Errors
/// When an input ends early (it was checked before, so it changed) or the disk refuses. The output is then removed.
pub(crate) fn write_safetensors(
    inputs: &[File],
    mut tensors: Vec<SourceTensor>,
    output: &Path,
) -> io::Result<()> {
    tensors.sort_by(|a, b| (b.dtype.size(), b.dtype, &a.name).cmp(&(a.dtype.size(), a.dtype, &b.name)));
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0;
    for tensor in &tensors {
        let end = at + tensor.bytes();
        let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [at, end]});
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut header = serde_json::to_vec(&Value::Object(header)).expect("a JSON value has a text");
    header.resize(header.len().next_multiple_of(8), b' ');

    let written = (|| {
        let mut out = BufWriter::with_capacity(COPY_BYTES, File::create(output)?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for tensor in &tensors {
            let input = &inputs[tensor.file];
            match &tensor.strides {
                None => copy(input, &tensor.segments, &mut out)?,
                Some(strides) => gather(input, tensor, strides, &mut out)?,
            }
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(output);
    }
    written
}

fn copy(input: &File, segments: &[Segment], out: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    for segment in segments {
        let mut done = 0;
        while done < segment.bytes {
            let part = (segment.bytes - done).min(COPY_BYTES as u64) as usize;
            input.read_exact_at(&mut buffer[..part], segment.offset + done)?;
            out.write_all(&buffer[..part])?;
            done += part as u64;
        }
    }
    Ok(())
}

/// Brings the elements into row-major order.
fn gather(input: &File, tensor: &SourceTensor, strides: &[u64], out: &mut impl Write) -> io::Result<()> {
    if tensor.elements() == 0 {
        return Ok(());
    }
    let total: u64 = tensor.segments.iter().map(|segment| segment.bytes).sum();
    let mut source = vec![0; usize::try_from(total).map_err(io::Error::other)?];
    let mut filled = 0;
    for segment in &tensor.segments {
        let part = segment.bytes as usize;
        input.read_exact_at(&mut source[filled..filled + part], segment.offset)?;
        filled += part;
    }
    let size = tensor.dtype.size() as usize;
    let (Some((&columns, rows)), Some((&step, row_strides))) =
        (tensor.shape.split_last(), strides.split_last())
    else {
        return out.write_all(&source[..size]);
    };
    let step = step as usize * size;
    let mut index = vec![0; rows.len()];
    let mut row = vec![0; columns as usize * size];
    loop {
        let start: u64 = index.iter().zip(row_strides).map(|(i, stride)| i * stride).sum();
        let start = start as usize * size;
        for (column, element) in row.chunks_exact_mut(size).enumerate() {
            let from = start + column * step;
            element.copy_from_slice(&source[from..from + size]);
        }
        out.write_all(&row)?;
        // Count up, the last dimension first.
        let Some(at) = (0..rows.len()).rev().find(|&at| index[at] + 1 < rows[at]) else { return Ok(()) };
        index[at] += 1;
        index[at + 1..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::read_header;

    #[test]
    fn views_become_row_major_tensors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        let numbers: Vec<u8> = (0u16..24).flat_map(u16::to_le_bytes).collect();
        std::fs::write(&path, &numbers).unwrap();
        let all = vec![Segment { offset: 0, bytes: 48 }];
        let view = |name: &str, shape: &[u64], strides: Option<&[u64]>, segments: &[Segment]| SourceTensor {
            name: name.into(),
            dtype: Dtype::U16,
            shape: shape.to_vec(),
            strides: strides.map(<[u64]>::to_vec),
            file: 0,
            segments: segments.to_vec(),
        };
        let halves = [Segment { offset: 24, bytes: 24 }, Segment { offset: 0, bytes: 24 }];
        let tensors = vec![
            view("transposed", &[4, 6], Some(&[1, 4]), &all),
            view("cube", &[2, 3, 4], Some(&[1, 2, 6]), &all),
            view("swapped", &[24], None, &halves),
            view("empty", &[0, 3], Some(&[1, 1]), &[]),
            view("scalar", &[], Some(&[]), &[Segment { offset: 6, bytes: 2 }]),
            SourceTensor {
                dtype: Dtype::F32,
                ..view("wide", &[2], None, &[Segment { offset: 0, bytes: 8 }])
            },
        ];
        let out = dir.path().join("out");
        write_safetensors(&[File::open(&path).unwrap()], tensors, &out).unwrap();

        let header = read_header(&out).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(start % 8, 0, "data are aligned");
        assert_eq!(header[0].name, "wide", "widest elements first");
        let read = |name: &str| -> Vec<u16> {
            let tensor = header.iter().find(|tensor| tensor.name == name).unwrap();
            let data = &bytes[start + tensor.data.start as usize..start + tensor.data.end as usize];
            data.chunks(2).map(|pair| u16::from_le_bytes(pair.try_into().unwrap())).collect()
        };
        let transposed: Vec<u16> = (0..4).flat_map(|i| (0..6).map(move |j| i + 4 * j)).collect();
        assert_eq!(read("transposed"), transposed);
        let cube: Vec<u16> =
            (0..2).flat_map(|i| (0..3).flat_map(move |j| (0..4).map(move |k| i + 2 * j + 6 * k))).collect();
        assert_eq!(read("cube"), cube);
        assert_eq!(read("swapped"), (12..24).chain(0..12).collect::<Vec<u16>>());
        assert_eq!((read("empty"), read("scalar")), (vec![], vec![3]));

        let gone = view("gone", &[1], None, &[Segment { offset: 48, bytes: 2 }]);
        assert!(write_safetensors(&[File::open(&path).unwrap()], vec![gone], &out).is_err());
        assert!(!out.exists(), "nothing half-written stays");
    }
}
