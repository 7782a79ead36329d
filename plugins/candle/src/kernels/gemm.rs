//! Matrix products over f32 slices: `c = epilogue(a . b)`.
//!
//! `b` is packed once ([`Packed`]) into panels as wide as a tile; weights stay packed for as long as the model
//! lives. `a` is packed block by block into a buffer of the thread that works on the block. Blocks of rows (and,
//! for few rows, of columns) run in parallel on rayon's pool. The epilogue (bias, activation, residual) runs on a
//! strip of results while it is in the first-level cache.

use std::cell::RefCell;

use rayon::prelude::*;

use super::activation;
use super::buffer::Buffer;
use super::microkernel::{MAX_TILE, microkernel};
use super::operands::{Matrix, Packed};
use super::packing;

/// Depth of a packed block: a block of `a` fits the second-level cache, a panel of `b` streams through the first.
const KC: usize = 512;
/// Rows of a packed block, in tiles.
const BLOCK_TILES: usize = 16;
/// Products below this many multiply-adds run on the calling thread: a hand-over costs several microseconds.
const PARALLEL_FROM: usize = 500_000;
/// What happens to the results of a product.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// `c = ab`
    Store,
    /// `c += ab`
    Add,
    /// `c = ab + bias`, `bias`: `[cols]`.
    Bias(&'a [f32]),
    /// `c = gelu(ab + bias)`, the exact (erf) form.
    BiasGelu(&'a [f32]),
    /// `c += ab + bias`: `c` holds the residual.
    BiasAdd(&'a [f32]),
}

impl Epilogue<'_> {
    fn accumulates(self) -> bool {
        matches!(self, Self::Add | Self::BiasAdd(_))
    }
}

thread_local! {
    static BLOCK: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
}

/// Results of a product, written by several threads at disjoint places.
#[derive(Clone, Copy)]
struct Output {
    data: *mut f32,
    stride: usize,
}
// SAFETY: every task writes its own rows and columns only (see `gemm`).
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

/// `c = epilogue(a . b)`, rows of `c` `ldc` apart, in parallel.
///
/// `a`: `[m, k]`; `b`: `[k, n]`; `c`: `[m, n]`. The result does not depend on the number of threads, and a row's
/// result not on the other rows.
///
/// # Panics
/// When shapes disagree.
pub fn gemm(a: Matrix<'_>, b: &Packed, c: &mut [f32], ldc: usize, epilogue: Epilogue<'_>) {
    let threads = if a.rows * a.cols * b.n < PARALLEL_FROM { 1 } else { rayon::current_num_threads() };
    check_output(a, b, c, ldc);
    // SAFETY: `c` was checked to hold the output, and is borrowed mutably.
    unsafe { run(a, b, c.as_mut_ptr(), ldc, epilogue, threads) };
}

/// As [`gemm`], on the calling thread: for products that are themselves one of many parallel tasks.
pub fn gemm_here(a: Matrix<'_>, b: &Packed, c: &mut [f32], ldc: usize, epilogue: Epilogue<'_>) {
    check_output(a, b, c, ldc);
    // SAFETY: as in `gemm`.
    unsafe { run(a, b, c.as_mut_ptr(), ldc, epilogue, 1) };
}

/// As [`gemm_here`], into columns of a larger matrix whose other columns other threads may be writing.
///
/// # Safety
/// `c` holds `[m, n]` with rows `ldc` apart, and nobody else touches those elements.
pub(super) unsafe fn gemm_columns(
    a: Matrix<'_>,
    b: &Packed,
    c: *mut f32,
    ldc: usize,
    epilogue: Epilogue<'_>,
) {
    // SAFETY: promised by the caller.
    unsafe { run(a, b, c, ldc, epilogue, 1) };
}

fn check_output(a: Matrix<'_>, b: &Packed, c: &[f32], ldc: usize) {
    let (m, n) = (a.rows, b.n);
    assert!(m == 0 || n == 0 || (ldc >= n && (m - 1) * ldc + n <= c.len()), "the output does not fit");
}

/// # Safety
/// See [`gemm_columns`].
unsafe fn run(a: Matrix<'_>, b: &Packed, c: *mut f32, ldc: usize, epilogue: Epilogue<'_>, threads: usize) {
    let (m, n) = (a.rows, b.n);
    assert_eq!(a.cols, b.k, "depths of the operands differ");
    if m == 0 || n == 0 {
        return;
    }
    if let Epilogue::Bias(bias) | Epilogue::BiasGelu(bias) | Epilogue::BiasAdd(bias) = epilogue {
        assert_eq!(bias.len(), n, "one bias a column");
    }
    let kernel = microkernel();
    let tiles = m.div_ceil(kernel.mr());
    let panels = n.div_ceil(kernel.nr);
    let mut row_blocks = tiles.div_ceil(BLOCK_TILES);
    let mut col_blocks = 1;
    if threads > 1 {
        if tiles >= threads * 4 {
            row_blocks = row_blocks.next_multiple_of(threads);
        } else {
            col_blocks = (threads * 2).min(panels);
        }
    }
    let output = Output { data: c, stride: ldc };
    let task = |index: usize| {
        let (i, j) = (index % row_blocks, index / row_blocks);
        let tiles = i * tiles / row_blocks..(i + 1) * tiles / row_blocks;
        let panels = j * panels / col_blocks..(j + 1) * panels / col_blocks;
        BLOCK.with_borrow_mut(|block| {
            // SAFETY: blocks of tiles and panels are disjoint between tasks, and `c` was checked to hold them.
            unsafe { run_block(a, b, output, epilogue, tiles, panels, block) };
        });
    };
    let tasks = row_blocks * col_blocks;
    if threads == 1 || tasks == 1 {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// One block of tiles (rows) by panels (columns), over the whole depth.
///
/// # Safety
/// `c` holds the block's rows and columns, and nobody else touches them.
unsafe fn run_block(
    a: Matrix<'_>,
    b: &Packed,
    c: Output,
    epilogue: Epilogue<'_>,
    tiles: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
    block: &mut Buffer,
) {
    let kernel = microkernel();
    let (mr, nr) = (kernel.mr(), kernel.nr);
    let (m, n, k) = (a.rows, b.n, b.k);
    let first_row = tiles.start * mr;
    let end_row = (tiles.end * mr).min(m);
    let mut depth = 0;
    loop {
        let kc = KC.min(k - depth);
        let last = depth + kc == k;
        let packed = block.resized((end_row - first_row) * kc + packing::SLACK);
        for row in (first_row..end_row).step_by(mr) {
            let rows = mr.min(end_row - row);
            let to = &mut packed[(row - first_row) * kc..][..rows * kc + packing::SLACK];
            packing::tile(a, row, rows, depth, kc, to);
        }
        let accumulate = depth > 0 || epilogue.accumulates();
        for panel in panels.clone() {
            let col = panel * nr;
            let cols = nr.min(n - col);
            // The panel's part of this depth.
            let b_panel = &b.data[panel * nr * k + depth * nr..][..kc * nr];
            for row in (first_row..end_row).step_by(mr) {
                let rows = mr.min(end_row - row);
                let a_tile = packed[(row - first_row) * kc..].as_ptr();
                let tile = kernel.tiles[rows - 1];
                // SAFETY: the operands are packed for `kc`; `c` holds the tile (a partial one goes through a
                // temporary tile of full width).
                unsafe {
                    let to = c.data.add(row * c.stride + col);
                    if cols == nr {
                        tile(kc, a_tile, b_panel.as_ptr(), to, c.stride, accumulate);
                    } else {
                        let mut whole = [0.0_f32; MAX_TILE];
                        tile(kc, a_tile, b_panel.as_ptr(), whole.as_mut_ptr(), nr, false);
                        for r in 0..rows {
                            let to = std::slice::from_raw_parts_mut(to.add(r * c.stride), cols);
                            for (to, &sum) in to.iter_mut().zip(&whole[r * nr..]) {
                                *to = if accumulate { *to + sum } else { sum };
                            }
                        }
                    }
                }
            }
            if last {
                for row in first_row..end_row {
                    // SAFETY: part of this task's block.
                    let strip =
                        unsafe { std::slice::from_raw_parts_mut(c.data.add(row * c.stride + col), cols) };
                    match epilogue {
                        Epilogue::Store | Epilogue::Add => break,
                        Epilogue::Bias(bias) | Epilogue::BiasAdd(bias) => {
                            activation::add(strip, &bias[col..][..cols]);
                        }
                        Epilogue::BiasGelu(bias) => activation::bias_gelu(strip, &bias[col..][..cols]),
                    }
                }
            }
        }
        depth += kc;
        if last {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference::{filled, gelu_erf};
    use crate::kernels::simd;

    fn product(a: Matrix<'_>, b: Matrix<'_>, i: usize, j: usize) -> f64 {
        (0..a.cols)
            .map(|p| {
                f64::from(a.data[i * a.row_stride + p * a.col_stride])
                    * f64::from(b.data[p * b.row_stride + j * b.col_stride])
            })
            .sum()
    }

    #[test]
    fn products_of_all_shapes_strides_and_epilogues() {
        simd::lowered::at_every_level(|| check_products(gemm_here));
        check_products(gemm);
    }

    #[test]
    fn threads_do_not_change_a_product() {
        let (a, b) = (filled(130 * 700, 1), filled(700 * 200, 2));
        let packed = Packed::from_weight(&b, 200, 700);
        let (mut one, mut many) = (vec![0.0; 130 * 200], vec![0.0; 130 * 200]);
        gemm_here(Matrix::new(&a, 130, 700), &packed, &mut one, 200, Epilogue::Store);
        gemm(Matrix::new(&a, 130, 700), &packed, &mut many, 200, Epilogue::Store);
        assert_eq!(one, many);
    }

    fn check_products(gemm: fn(Matrix<'_>, &Packed, &mut [f32], usize, Epilogue<'_>)) {
        let shapes =
            [(1, 1, 1), (3, 7, 5), (14, 32, 32), (15, 600, 33), (29, 64, 100), (130, 520, 70), (5, 1030, 7)];
        for (m, k, n) in shapes {
            for transposed in [false, true] {
                let a_data = filled(m * k, 1);
                let b_data = filled(k * n, 2);
                let a = if transposed { Matrix::new(&a_data, k, m).t() } else { Matrix::new(&a_data, m, k) };
                let b = if transposed { Matrix::new(&b_data, n, k).t() } else { Matrix::new(&b_data, k, n) };
                let mut packed = Packed::new();
                packed.fill_here(b);
                let bias = filled(n, 3);
                let ldc = n + 3;
                for epilogue in [
                    Epilogue::Store,
                    Epilogue::Add,
                    Epilogue::Bias(&bias),
                    Epilogue::BiasGelu(&bias),
                    Epilogue::BiasAdd(&bias),
                ] {
                    let before = filled(m * ldc, 4);
                    let mut c = before.clone();
                    gemm(a, &packed, &mut c, ldc, epilogue);
                    for i in 0..m {
                        for j in 0..ldc {
                            let old = f64::from(before[i * ldc + j]);
                            let expected = if j >= n {
                                old
                            } else {
                                let ab = product(a, b, i, j);
                                let bias = f64::from(bias[j]);
                                match epilogue {
                                    Epilogue::Store => ab,
                                    Epilogue::Add => old + ab,
                                    Epilogue::Bias(_) => ab + bias,
                                    Epilogue::BiasGelu(_) => gelu_erf(ab + bias),
                                    Epilogue::BiasAdd(_) => old + ab + bias,
                                }
                            };
                            let got = f64::from(c[i * ldc + j]);
                            assert!(
                                (got - expected).abs() < 3e-6 * (k as f64).sqrt().max(1.0),
                                "{m}x{k}x{n} {epilogue:?} ({i}, {j}): {got} not {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}
