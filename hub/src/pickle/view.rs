//! Storages and the tensors that view them, checked so that no view reaches outside its storage.

use super::PickleError;
use crate::header::Dtype;
use crate::writer::row_major;

/// A storage as a pickle names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StorageRef {
    /// Its name among the file's storages.
    pub key: String,
    /// Number format.
    pub dtype: Dtype,
    /// Length.
    pub elements: u64,
}

/// A tensor: part of a storage. All numbers count elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub storage: StorageRef,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
    /// From the first element to behind the last one.
    pub span: u64,
}

/// More than PyTorch itself allows.
const MAX_DIMENSIONS: usize = 64;

impl View {
    /// A view is inside its storage, and its elements are distinct ones as far as their number tells: an expanded
    /// tensor (stride 0) would let a small file ask for a huge one.
    pub fn new(
        storage: &StorageRef,
        offset: u64,
        shape: Vec<u64>,
        strides: Vec<u64>,
    ) -> Result<Self, PickleError> {
        let outside = || PickleError::OutsideStorage(storage.key.clone());
        if shape.len() != strides.len() || shape.len() > MAX_DIMENSIONS {
            return Err(PickleError::Malformed("a tensor's shape and strides do not match"));
        }
        let count = shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim)).ok_or_else(outside)?;
        let span = if count == 0 {
            0
        } else {
            let reach =
                |last: u64, (dim, stride): (&u64, &u64)| last.checked_add((dim - 1).checked_mul(*stride)?);
            let last = shape.iter().zip(&strides).try_fold(0u64, reach).ok_or_else(outside)?;
            last.checked_add(1).ok_or_else(outside)?
        };
        let end = offset.checked_add(span).ok_or_else(outside)?;
        if end > storage.elements || count > span {
            return Err(outside());
        }
        Ok(Self { storage: storage.clone(), offset, shape, strides, span })
    }

    /// Whether the elements lie in row-major order without holes. Strides of dimensions of length 1 say nothing.
    pub fn is_row_major(&self) -> bool {
        let wanted = row_major(&self.shape);
        self.shape.contains(&0)
            || self
                .shape
                .iter()
                .zip(self.strides.iter().zip(&wanted))
                .all(|(dim, (a, b))| *dim == 1 || a == b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_stay_inside_their_storage() {
        let storage = StorageRef { key: "0".into(), dtype: Dtype::F32, elements: 12 };
        let view = |offset, shape: &[u64], strides: &[u64]| {
            View::new(&storage, offset, shape.to_vec(), strides.to_vec())
        };
        assert!(view(0, &[3, 4], &[4, 1]).unwrap().is_row_major());
        assert!(view(0, &[1, 4], &[999, 1]).is_ok_and(|v| v.is_row_major()));
        assert!(!view(0, &[4, 3], &[1, 4]).unwrap().is_row_major());
        assert!(view(11, &[], &[]).is_ok());
        assert!(view(12, &[0, 7], &[7, 1]).is_ok(), "nothing, at the end");
        let huge = u64::MAX;
        for (offset, shape, strides) in [
            (0, vec![13], vec![1]),
            (12, vec![1], vec![1]),
            (huge, vec![1], vec![1]),
            (0, vec![huge, huge], vec![1, 1]),
            (0, vec![huge], vec![0]),
            (0, vec![1000, 12], vec![0, 1]),
            (0, vec![2, 2], vec![huge, 1]),
            (0, vec![2], vec![1, 1]),
            (0, vec![1; 65], vec![1; 65]),
        ] {
            assert!(view(offset, &shape, &strides).is_err(), "{offset} {shape:?} {strides:?}");
        }
    }
}
