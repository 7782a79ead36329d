//! The innermost loops of the matrix product: a tile of `rows x NR` results held in registers.
//!
//! Operands are packed: `a` is `[k][rows]`, `b` is `[k][NR]`. A result is one chain of multiply-adds over `k` in
//! ascending order whatever the tile, so it does not depend on how a product is cut into tiles or threads.
//! Source: Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.

use super::simd::{Level, level};

/// Computes (or, with `accumulate`, adds) a tile into `c`, whose rows are `ldc` apart.
///
/// # Safety
/// `a` holds `k * rows`, `b` `k * NR` numbers aligned to 64 bytes, `c` `rows` rows of `NR`; the level's
/// instructions exist.
pub(super) type Tile =
    unsafe fn(k: usize, a: *const f32, b: *const f32, c: *mut f32, ldc: usize, accumulate: bool);

/// The tile functions of one level.
pub(super) struct Microkernel {
    /// Columns of a tile.
    pub nr: usize,
    /// `tiles[r - 1]` computes `r` rows; the last is the preferred one.
    pub tiles: &'static [Tile],
}

impl Microkernel {
    /// Rows of the preferred tile.
    pub fn mr(&self) -> usize {
        self.tiles.len()
    }
}

/// Largest `rows * NR` of any level.
pub(super) const MAX_TILE: usize = 14 * 32;

/// The tile functions for this machine.
pub(super) fn microkernel() -> &'static Microkernel {
    match level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => &x86::AVX512,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => &x86::AVX2,
        _ => &portable::PORTABLE,
    }
}

mod portable {
    use super::{Microkernel, Tile};

    const NR: usize = 8;
    pub static PORTABLE: Microkernel =
        Microkernel { nr: NR, tiles: &[tile::<1> as Tile, tile::<2>, tile::<3>, tile::<4>] };

    /// # Safety
    /// See [`Tile`].
    unsafe fn tile<const R: usize>(
        k: usize,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
    ) {
        let mut sums = [[0.0_f32; NR]; R];
        for p in 0..k {
            // SAFETY: the caller promises k * NR and k * R numbers.
            let (b, a) = unsafe { (&*b.add(p * NR).cast::<[f32; NR]>(), &*a.add(p * R).cast::<[f32; R]>()) };
            for r in 0..R {
                for j in 0..NR {
                    sums[r][j] += a[r] * b[j];
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: the caller promises R rows of NR, `ldc` apart.
            let c = unsafe { &mut *c.add(r * ldc).cast::<[f32; NR]>() };
            for j in 0..NR {
                c[j] = if accumulate { c[j] + sums[j] } else { sums[j] };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Microkernel, Tile};

    pub static AVX512: Microkernel = Microkernel {
        nr: 32,
        tiles: &[
            avx512::<1> as Tile,
            avx512::<2>,
            avx512::<3>,
            avx512::<4>,
            avx512::<5>,
            avx512::<6>,
            avx512::<7>,
            avx512::<8>,
            avx512::<9>,
            avx512::<10>,
            avx512::<11>,
            avx512::<12>,
            avx512::<13>,
            avx512::<14>,
        ],
    };

    pub static AVX2: Microkernel = Microkernel {
        nr: 16,
        tiles: &[avx2::<1> as Tile, avx2::<2>, avx2::<3>, avx2::<4>, avx2::<5>, avx2::<6>],
    };

    /// # Safety
    /// See [`Tile`].
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const R: usize>(
        k: usize,
        mut a: *const f32,
        mut b: *const f32,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
    ) {
        // SAFETY: all reads and writes stay within what the caller promises.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            for _ in 0..k {
                let b0 = _mm512_load_ps(b);
                let b1 = _mm512_load_ps(b.add(16));
                // Two panel rows ahead of the hardware's prefetcher: panels start on new pages.
                _mm_prefetch::<_MM_HINT_T0>(b.add(32 * 16).cast());
                _mm_prefetch::<_MM_HINT_T0>(b.add(32 * 16 + 16).cast());
                #[expect(
                    clippy::needless_range_loop,
                    reason = "`r` also steps through `a`; the loop unrolls"
                )]
                for r in 0..R {
                    let x = _mm512_set1_ps(*a.add(r));
                    sums[r][0] = _mm512_fmadd_ps(x, b0, sums[r][0]);
                    sums[r][1] = _mm512_fmadd_ps(x, b1, sums[r][1]);
                }
                a = a.add(R);
                b = b.add(32);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (half, &sum) in sums.iter().enumerate() {
                    let to = c.add(r * ldc + half * 16);
                    _mm512_storeu_ps(
                        to,
                        if accumulate { _mm512_add_ps(_mm512_loadu_ps(to), sum) } else { sum },
                    );
                }
            }
        }
    }

    /// # Safety
    /// See [`Tile`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const R: usize>(
        k: usize,
        mut a: *const f32,
        mut b: *const f32,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
    ) {
        // SAFETY: all reads and writes stay within what the caller promises.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; R];
            for _ in 0..k {
                let b0 = _mm256_load_ps(b);
                let b1 = _mm256_load_ps(b.add(8));
                #[expect(
                    clippy::needless_range_loop,
                    reason = "`r` also steps through `a`; the loop unrolls"
                )]
                for r in 0..R {
                    let x = _mm256_set1_ps(*a.add(r));
                    sums[r][0] = _mm256_fmadd_ps(x, b0, sums[r][0]);
                    sums[r][1] = _mm256_fmadd_ps(x, b1, sums[r][1]);
                }
                a = a.add(R);
                b = b.add(16);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (half, &sum) in sums.iter().enumerate() {
                    let to = c.add(r * ldc + half * 8);
                    _mm256_storeu_ps(
                        to,
                        if accumulate { _mm256_add_ps(_mm256_loadu_ps(to), sum) } else { sum },
                    );
                }
            }
        }
    }
}
