//! Copies of a matrix in the order in which the microkernel reads it.
//!
//! Both orders are transpositions or plain copies of short runs; AVX-512 does them 16 x 16 numbers at a time.

use super::microkernel::microkernel;
use super::operands::Matrix;
#[cfg(target_arch = "x86_64")]
use super::simd::{Level, level};

/// Numbers that a packed tile may write beyond its end, where the next tile or nothing is kept.
pub(super) const SLACK: usize = 16;
const SIDE: usize = 16;

/// Columns `index * nr ..` of `b` as `[k][nr]`, zero beyond the last.
pub(super) fn panel(b: Matrix<'_>, index: usize, to: &mut [f32]) {
    let nr = microkernel().nr;
    let first = index * nr;
    let cols = nr.min(b.cols - first);
    if b.col_stride == 1 {
        match nr {
            32 if cols == 32 => copy_rows::<32>(b, first, to),
            16 if cols == 16 => copy_rows::<16>(b, first, to),
            _ => {
                for (i, to) in to.chunks_exact_mut(nr).enumerate() {
                    to[..cols].copy_from_slice(&b.data[i * b.row_stride + first..][..cols]);
                    to[cols..].fill(0.0);
                }
            }
        }
        return;
    }
    if cols < nr {
        to.fill(0.0);
    }
    for start in (0..b.rows).step_by(SIDE) {
        let height = SIDE.min(b.rows - start);
        for left in (0..cols).step_by(SIDE) {
            let width = SIDE.min(cols - left);
            let from = &b.data[(first + left) * b.col_stride + start * b.row_stride..];
            let to = &mut to[start * nr + left..];
            // A full square leaves nothing beyond its columns; a partial one must not either.
            if b.row_stride == 1 && width == SIDE {
                transpose(from, b.col_stride, width, height, to, nr);
            } else {
                for j in 0..width {
                    for i in 0..height {
                        to[i * nr + j] = from[j * b.col_stride + i * b.row_stride];
                    }
                }
            }
        }
    }
}

fn copy_rows<const N: usize>(b: Matrix<'_>, first: usize, to: &mut [f32]) {
    for (i, to) in to.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        *to = *b.data[i * b.row_stride + first..].first_chunk::<N>().expect("the matrix has N more columns");
    }
}

/// Rows `row..row + rows` (at most 16), columns `depth..depth + kc` of `a` as `[kc][rows]`. `to` has [`SLACK`] more
/// numbers, which may be overwritten.
pub(super) fn tile(a: Matrix<'_>, row: usize, rows: usize, depth: usize, kc: usize, to: &mut [f32]) {
    if a.row_stride == 1 {
        for p in 0..kc {
            let from = &a.data[(depth + p) * a.col_stride + row..];
            let to = &mut to[p * rows..];
            match (from.first_chunk::<SIDE>(), to.first_chunk_mut::<SIDE>()) {
                // Ascending order repairs what a longer copy overwrites.
                (Some(from), Some(to)) => *to = *from,
                _ => to[..rows].copy_from_slice(&from[..rows]),
            }
        }
        return;
    }
    for start in (0..kc).step_by(SIDE) {
        let width = SIDE.min(kc - start);
        let from = &a.data[row * a.row_stride + (depth + start) * a.col_stride..];
        let to = &mut to[start * rows..];
        if a.col_stride == 1 {
            transpose(from, a.row_stride, rows, width, to, rows);
        } else {
            for r in 0..rows {
                for p in 0..width {
                    to[p * rows + r] = from[r * a.row_stride + p * a.col_stride];
                }
            }
        }
    }
}

/// `to[j * to_stride + i] = from[i * stride + j]` for `i < rows`, `j < cols`, both at most 16. Where `to` has room, up
/// to 16 numbers a row are written, rows ascending.
fn transpose(from: &[f32], stride: usize, rows: usize, cols: usize, to: &mut [f32], to_stride: usize) {
    assert!((rows - 1) * stride + cols <= from.len() && (cols - 1) * to_stride + rows <= to.len());
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 && (cols - 1) * to_stride + SIDE <= to.len() {
        // SAFETY: the level has the instructions; reads are masked to `rows x cols`, which `from` was checked to hold,
        // and `to` was checked to hold `cols` rows of 16.
        unsafe { x86::transpose(from.as_ptr(), stride, rows, cols, to.as_mut_ptr(), to_stride) };
        return;
    }
    for i in 0..rows {
        for j in 0..cols {
            to[j * to_stride + i] = from[i * stride + j];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// # Safety
    /// `from` holds `rows` rows of `cols`, `stride` apart; `to` `cols` rows of 16, `to_stride` apart; AVX-512 F exists.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose(
        from: *const f32,
        stride: usize,
        rows: usize,
        cols: usize,
        to: *mut f32,
        to_stride: usize,
    ) {
        let mask = (0xffff_u32 >> (16 - cols)) as __mmask16;
        let mut x = [_mm512_setzero_ps(); 16];
        for (i, x) in x.iter_mut().enumerate() {
            if i < rows {
                // SAFETY: masked to what the caller promises.
                *x = unsafe { _mm512_maskz_loadu_ps(mask, from.add(i * stride)) };
            }
        }
        // Pairs of rows, then fours: y[4 g + c] has, in each quarter q, column 4 q + c of rows 4 g .. 4 g + 3.
        let mut y = [_mm512_setzero_ps(); 16];
        for g in 0..4 {
            let low =
                (_mm512_unpacklo_ps(x[4 * g], x[4 * g + 1]), _mm512_unpacklo_ps(x[4 * g + 2], x[4 * g + 3]));
            let high =
                (_mm512_unpackhi_ps(x[4 * g], x[4 * g + 1]), _mm512_unpackhi_ps(x[4 * g + 2], x[4 * g + 3]));
            y[4 * g] = _mm512_shuffle_ps::<0b01_00_01_00>(low.0, low.1);
            y[4 * g + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(low.0, low.1);
            y[4 * g + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(high.0, high.1);
            y[4 * g + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(high.0, high.1);
        }
        // Gather the quarters of the four groups.
        let mut z = [_mm512_setzero_ps(); 16];
        for c in 0..4 {
            let a = _mm512_shuffle_f32x4::<0b10_00_10_00>(y[c], y[4 + c]);
            let b = _mm512_shuffle_f32x4::<0b11_01_11_01>(y[c], y[4 + c]);
            let d = _mm512_shuffle_f32x4::<0b10_00_10_00>(y[8 + c], y[12 + c]);
            let e = _mm512_shuffle_f32x4::<0b11_01_11_01>(y[8 + c], y[12 + c]);
            z[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, d);
            z[8 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, d);
            z[4 + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(b, e);
            z[12 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(b, e);
        }
        for (j, z) in z.iter().enumerate() {
            if j < cols {
                // SAFETY: the caller promises rows of 16.
                unsafe { _mm512_storeu_ps(to.add(j * to_stride), *z) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::lowered::at_every_level;

    #[test]
    fn transposition_of_all_sizes() {
        at_every_level(check_transposition);
    }

    fn check_transposition() {
        for rows in 1..=16 {
            for cols in 1..=16 {
                let (stride, to_stride) = (cols + 3, rows.max(2));
                let from: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
                let mut to = vec![-1.0; cols * to_stride + SLACK];
                transpose(&from, stride, rows, cols, &mut to, to_stride);
                for i in 0..rows {
                    for j in 0..cols {
                        assert_eq!(
                            to[j * to_stride + i],
                            from[i * stride + j],
                            "{rows}x{cols} at ({i}, {j})"
                        );
                    }
                }
            }
        }
    }
}
