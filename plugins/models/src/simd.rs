//! Which instruction set the kernels run with, chosen once a process.
//!
//! A kernel body is ordinary Rust over slices, written so that LLVM vectorises it, and compiled once for each
//! [`Level`] by `dispatched!`. Sums run over a fixed number of lanes, so levels differ only in whether a
//! multiply-add rounds once or twice.

use std::sync::OnceLock;

/// Instruction sets that the kernels know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the target guarantees.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// The best level of this machine.
#[inline]
pub fn level() -> Level {
    #[cfg(any(test, feature = "lowered"))]
    if let Some(level) = lowered::lowered() {
        return level;
    }
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    use std::arch::is_x86_feature_detected as has;
    if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("fma") {
        Level::Avx512
    } else if has!("avx2") && has!("fma") {
        Level::Avx2
    } else {
        Level::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

/// `a * b + c`, fused where the level being compiled has the instruction (without it the fused form would be a
/// library call for each element).
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Declares a function whose body is compiled for every [`Level`] and picked at run time. Inside the body the
/// constant `FMA` says whether multiply-adds are fused.
#[macro_export]
macro_rules! dispatched {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[allow(dead_code, clippy::too_many_arguments)]
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                #[allow(clippy::too_many_arguments)]
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                match $crate::simd::level() {
                    // SAFETY: `level` found these features on this machine.
                    $crate::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::simd::Level::Portable => {}
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub use crate::dispatched;

/// Levels below the best, for tests of kernels.
#[cfg(any(test, feature = "lowered"))]
pub mod lowered {
    use super::{Level, level};
    use std::cell::Cell;

    thread_local! {
        static LOWERED: Cell<Option<Level>> = const { Cell::new(None) };
    }

    /// The level that this thread's test asks for.
    pub(super) fn lowered() -> Option<Level> {
        LOWERED.get()
    }

    /// Runs a test of code that stays on its thread at every level of this machine.
    pub fn at_every_level(test: impl Fn()) {
        let best = level();
        for level in [Level::Portable, Level::Avx2, Level::Avx512] {
            if level <= best {
                LOWERED.set(Some(level));
                test();
            }
        }
        LOWERED.set(None);
    }
}
