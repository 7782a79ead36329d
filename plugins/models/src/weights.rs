//! Reading checkpoints: `model.safetensors`, or several files named by `model.safetensors.index.json`.
//!
//! Files are checked once (header, offsets, length), and read tensor by tensor, or block by block of a tensor, as f32.
//! Reads are positioned, so that only what is asked for ever takes memory.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cappy_plugin_abi::Failure;
use cappy_plugin_abi::random::{fold, key_of};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorInfo};

/// Name of a checkpoint in one file.
pub const SINGLE: &str = "model.safetensors";
/// Name of the index of a checkpoint in several files.
pub const INDEX: &str = "model.safetensors.index.json";
/// Elements read and converted by one task.
const CONVERT_CHUNK: usize = 1 << 18;

/// Bytes of each tensor that a fingerprint covers.
const SAMPLE_BYTES: usize = 256;

/// An open, checked checkpoint.
pub struct Checkpoint {
    files: Vec<Stored>,
    tensors: HashMap<String, (usize, TensorInfo)>,
}

struct Stored {
    name: String,
    file: File,
    /// Where tensor data begins.
    data: u64,
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Opens the checkpoint of a model directory.
    ///
    /// # Errors
    /// `BadModel` naming the file (and tensor) that is missing, truncated or inconsistent.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        let mut checkpoint = Self { files: Vec::new(), tensors: HashMap::new() };
        if dir.join(SINGLE).exists() {
            checkpoint.add(dir, SINGLE)?;
            return Ok(checkpoint);
        }
        if !dir.join(INDEX).exists() {
            return Err(Failure::bad_model(format!(
                "the model directory has neither `{SINGLE}` nor `{INDEX}`; convert the checkpoint to safetensors"
            )));
        }
        let text = std::fs::read_to_string(dir.join(INDEX))
            .map_err(|e| Failure::bad_model(format!("`{INDEX}` cannot be read: {e}")))?;
        let index: Index = serde_json::from_str(&text)
            .map_err(|e| Failure::bad_model(format!("`{INDEX}` is not an index of weights: {e}")))?;
        for name in index.weight_map.values().collect::<BTreeSet<_>>() {
            if name.contains(['/', '\\']) || name == ".." {
                return Err(Failure::bad_model(format!(
                    "`{INDEX}` names `{name}`, which is not a plain file name"
                )));
            }
            checkpoint.add(dir, name)?;
        }
        for (tensor, file) in &index.weight_map {
            let found = checkpoint.tensors.get(tensor).map(|(i, _)| checkpoint.files[*i].name.as_str());
            if found != Some(file) {
                return Err(Failure::bad_model(format!(
                    "`{INDEX}` places tensor `{tensor}` in `{file}`, which does not hold it"
                )));
            }
        }
        Ok(checkpoint)
    }

    fn add(&mut self, dir: &Path, name: &str) -> Result<(), Failure> {
        let bad = |what: String| Failure::bad_model(format!("`{name}` {what}"));
        let file = File::open(dir.join(name)).map_err(|e| bad(format!("cannot be opened: {e}")))?;
        let length = file.metadata().map_err(|e| bad(format!("cannot be read: {e}")))?.len();
        if length == 0 {
            return Err(bad("is empty; fetch it again".into()));
        }
        // Mapped for the header's sake only: what stays mapped counts as this process's memory once it is read.
        // SAFETY: model files are replaced by renaming, never written in place (the hub's and our own convention).
        let map = unsafe { Mmap::map(&file) }.map_err(|e| bad(format!("cannot be mapped: {e}")))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| match e {
            SafeTensorError::MetadataIncompleteBuffer
            | SafeTensorError::InvalidHeaderLength
            | SafeTensorError::HeaderTooSmall => bad(format!(
                "is truncated or damaged: its header does not fit its {length} bytes; fetch it again"
            )),
            SafeTensorError::InvalidOffset(tensor) => {
                bad(format!("is damaged: tensor `{tensor}` overlaps another or leaves a gap"))
            }
            other => bad(format!("is not a safetensors file: {other}")),
        })?;
        let index = self.files.len();
        for (tensor, info) in metadata.tensors() {
            if let Some((other, _)) = self.tensors.get(&tensor) {
                let other = &self.files[*other].name;
                return Err(bad(format!("holds tensor `{tensor}`, which `{other}` also holds")));
            }
            self.tensors.insert(tensor, (index, info.clone()));
        }
        drop(map);
        self.files.push(Stored { name: name.into(), file, data: header as u64 + 8 });
        Ok(())
    }

    /// Whether the checkpoint has a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, info)| info.shape.as_slice())
    }

    /// A hash of what the checkpoint is: of every tensor the name, kind, shape and first bytes. It tells models of one
    /// shape and different training apart without reading them.
    ///
    /// # Errors
    /// `BadModel` when a file cannot be read.
    pub fn fingerprint(&self) -> Result<u64, Failure> {
        let mut names: Vec<&String> = self.tensors.keys().collect();
        names.sort();
        let mut all = 0;
        for name in names {
            let (file, info) = &self.tensors[name];
            let file = &self.files[*file];
            let (start, end) = info.data_offsets;
            let mut sample = vec![0; (end - start).min(SAMPLE_BYTES)];
            file.file.read_exact_at(&mut sample, file.data + start as u64).map_err(|e| {
                Failure::bad_model(format!("tensor `{name}` of `{}` cannot be read: {e}", file.name))
            })?;
            all = fold(all, key_of(&format!("{name} {:?} {:?} {sample:?}", info.dtype, info.shape)));
        }
        Ok(all)
    }

    /// A tensor as f32 (stored as f32, bf16 or f16).
    ///
    /// # Errors
    /// `BadModel` when it is missing, of another shape or of another kind of numbers.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Failure> {
        let mut values = vec![0.0; shape.iter().product()];
        self.read_into(name, shape, &mut values)?;
        Ok(values)
    }

    /// As [`Checkpoint::read`], into memory of the caller.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read_into(&self, name: &str, shape: &[usize], to: &mut [f32]) -> Result<(), Failure> {
        let width = shape.iter().skip(1).product();
        self.read_block_into(name, shape, 0..shape.first().copied().unwrap_or(1), 0..width, to)
    }

    /// A block of a tensor, `(rows.len(), columns.len())`, and nothing else of the file.
    ///
    /// `rows`: of the first dimension; `columns`: of all others, which are taken as one.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read_block_into(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        columns: Range<usize>,
        to: &mut [f32],
    ) -> Result<(), Failure> {
        let Some((file, info)) = self.tensors.get(name) else {
            let files = self.files.iter().map(|f| format!("`{}`", f.name)).collect::<Vec<_>>().join(", ");
            return Err(Failure::bad_model(format!("tensor `{name}` is missing from {files}")));
        };
        let file = &self.files[*file];
        if info.shape != shape {
            return Err(Failure::bad_model(format!(
                "tensor `{name}` of `{}` has shape {:?}, the configuration needs {shape:?}",
                file.name, info.shape
            )));
        }
        let convert = conversion(info.dtype).ok_or_else(|| {
            Failure::bad_model(format!(
                "tensor `{name}` of `{}` is stored as {:?}; f32, bf16 and f16 are understood",
                file.name, info.dtype
            ))
        })?;
        let width = shape.iter().skip(1).product::<usize>();
        assert!(
            rows.end <= shape.first().copied().unwrap_or(1) && columns.end <= width,
            "the block lies within the tensor"
        );
        assert_eq!(to.len(), rows.len() * columns.len(), "the destination has the block's size");
        if to.is_empty() {
            return Ok(());
        }
        let bytes = info.dtype.bitsize() / 8;
        let start = file.data + info.data_offsets.0 as u64;
        let read = |element: usize, to: &mut [f32]| {
            let mut raw = vec![0; to.len() * bytes];
            file.file.read_exact_at(&mut raw, start + (element * bytes) as u64).map_err(|e| {
                Failure::bad_model(format!("tensor `{name}` of `{}` cannot be read: {e}", file.name))
            })?;
            convert(&raw, to);
            Ok(())
        };
        if columns.len() == width {
            let first = rows.start * width;
            return to
                .par_chunks_mut(CONVERT_CHUNK)
                .enumerate()
                .try_for_each(|(chunk, to)| read(first + chunk * CONVERT_CHUNK, to));
        }
        to.par_chunks_exact_mut(columns.len())
            .enumerate()
            .try_for_each(|(row, to)| read((rows.start + row) * width + columns.start, to))
    }
}

/// Makes f32 of numbers as they are stored.
type Conversion = fn(&[u8], &mut [f32]);

fn conversion(dtype: Dtype) -> Option<Conversion> {
    Some(match dtype {
        Dtype::F32 => |from, to| {
            for (to, from) in to.iter_mut().zip(from.as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*from);
            }
        },
        Dtype::BF16 => |from, to| {
            for (to, from) in to.iter_mut().zip(from.as_chunks::<2>().0) {
                *to = bf16::from_le_bytes(*from).to_f32();
            }
        },
        Dtype::F16 => |from, to| {
            let halves: Vec<f16> = from.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
            halves.convert_to_f32_slice(to);
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::Code;
    use std::path::PathBuf;

    /// A directory of this test's own, removed at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("cappy-weights-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend((0..data).map(|i| i as u8));
        bytes
    }

    #[test]
    fn all_dtypes_and_shards_are_read() {
        let dir = Dir::new("shards");
        let f32s: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let bf16s: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        let f16s: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let mut one = file(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 0);
        one.extend(f32s);
        let mut two = file(
            r#"{"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]},"c":{"dtype":"F16","shape":[2],"data_offsets":[4,8]}}"#,
            0,
        );
        two.extend(bf16s);
        two.extend(f16s);
        std::fs::write(dir.0.join("one.safetensors"), one).unwrap();
        std::fs::write(dir.0.join("two.safetensors"), two).unwrap();
        let index = r#"{"metadata":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}}"#;
        std::fs::write(dir.0.join(INDEX), index).unwrap();
        let checkpoint = Checkpoint::open(&dir.0).unwrap();
        for (name, shape) in [("a", vec![2]), ("b", vec![2, 1]), ("c", vec![2])] {
            assert_eq!(checkpoint.read(name, &shape).unwrap(), [1.5, -2.0], "{name}");
        }
        let missing = index.replace(r#""c":"two"#, r#""c":"one"#);
        std::fs::write(dir.0.join(INDEX), missing).unwrap();
        let failure = Checkpoint::open(&dir.0).err().unwrap();
        assert!(failure.message.contains("`c`") && failure.message.contains("one.safetensors"), "{failure}");
    }

    #[test]
    fn blocks_are_what_the_whole_has_there() {
        let dir = Dir::new("blocks");
        let (rows, width) = (7, 3 * 5);
        let numbers: Vec<f32> = (0..rows * width).map(|i| i as f32 - 50.0).collect();
        for (dtype, bytes) in [
            ("F32", numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()),
            ("BF16", numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()),
            ("F16", numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()),
        ] {
            let header = format!(
                r#"{{"a":{{"dtype":"{dtype}","shape":[7,3,5],"data_offsets":[0,{}]}}}}"#,
                bytes.len()
            );
            let mut all = file(&header, 0);
            all.extend(bytes);
            std::fs::write(dir.0.join(SINGLE), all).unwrap();
            let checkpoint = Checkpoint::open(&dir.0).unwrap();
            for (of, columns) in [(0..7, 0..15), (2..5, 0..15), (0..7, 4..9), (6..7, 14..15), (3..3, 0..15)] {
                let mut got = vec![0.0; of.len() * columns.len()];
                checkpoint.read_block_into("a", &[7, 3, 5], of.clone(), columns.clone(), &mut got).unwrap();
                let expected: Vec<f32> =
                    of.clone().flat_map(|row| numbers[row * width..][columns.clone()].to_vec()).collect();
                assert_eq!(got, expected, "{dtype} {of:?} {columns:?}");
            }
        }
    }

    #[test]
    fn fingerprints_tell_contents_apart_and_not_files() {
        let fingerprint = |name: &str, header: &str, data: &[u8]| {
            let dir = Dir::new(name);
            std::fs::write(dir.0.join(SINGLE), [&file(header, 0), data].concat()).unwrap();
            Checkpoint::open(&dir.0).unwrap().fingerprint().unwrap()
        };
        let header = |order: [&str; 2]| {
            let at = order.map(|name| if name == order[0] { "0,4" } else { "4,8" });
            let one = |i: usize| {
                format!(r#""{}":{{"dtype":"F32","shape":[1],"data_offsets":[{}]}}"#, order[i], at[i])
            };
            format!("{{{},{}}}", one(0), one(1))
        };
        let ab = fingerprint("fp1", &header(["a", "b"]), &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(ab, fingerprint("fp2", &header(["b", "a"]), &[5, 6, 7, 8, 1, 2, 3, 4]), "another layout");
        assert_ne!(ab, fingerprint("fp3", &header(["a", "b"]), &[1, 2, 3, 4, 5, 6, 7, 9]), "another number");
        assert_ne!(ab, fingerprint("fp4", &header(["a", "c"]), &[1, 2, 3, 4, 5, 6, 7, 8]), "another name");
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        let good = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        let table: [(&str, Vec<u8>, &str); 6] = [
            ("empty", Vec::new(), "is empty"),
            ("truncated data", file(good, 7), "truncated"),
            ("truncated header", file(good, 0)[..20].to_vec(), "truncated"),
            ("overlap", file(overlap, 12), "overlaps"),
            ("json", file("{not json", 0), "not a safetensors file"),
            ("shape", file(&good.replace("[2]", "[3]"), 8), "not a safetensors file"),
        ];
        for (name, bytes, expected) in table {
            let dir = Dir::new(&name.replace(' ', "-"));
            std::fs::write(dir.0.join(SINGLE), bytes).unwrap();
            let failure = Checkpoint::open(&dir.0).err().expect(name);
            assert_eq!(failure.code, Code::BadModel);
            assert!(
                failure.message.contains(expected) && failure.message.contains(SINGLE),
                "{name}: {failure}"
            );
        }
        let dir = Dir::new("tensors");
        assert!(Checkpoint::open(&dir.0).err().unwrap().message.contains("neither"));
        std::fs::write(dir.0.join(SINGLE), file(&good.replace("F32", "I32"), 8)).unwrap();
        let checkpoint = Checkpoint::open(&dir.0).unwrap();
        for (name, shape, expected) in [("x", 2, "`x` is missing"), ("a", 3, "shape [2]"), ("a", 2, "I32")] {
            let failure = checkpoint.read(name, &[shape]).unwrap_err();
            assert!(failure.message.contains(expected) && failure.message.contains(SINGLE), "{failure}");
        }
    }
}
