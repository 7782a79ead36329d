//! What may cross the border, and a hash of how it is laid out.
//!
//! [`Crossing`] is implemented for a few primitives, for pointers to what crosses, for C functions whose arguments
//! and result cross, and for structs declared with `crossing!`, whose fields must all cross. So the layout of the
//! factory's type covers, by construction, every struct, field and signature that can be reached through it.

use std::ffi::c_void;
use std::mem::{align_of, size_of};

use crate::random::fold;

/// A type with a layout that C defines, passed between host and plugin.
///
/// # Safety
/// The type is `repr(C)`, a primitive, a pointer or a C function pointer, and `LAYOUT` changes whenever its layout,
/// or that of anything reached through it, changes.
pub unsafe trait Crossing: Sized {
    /// Hash of name, size, alignment and fields, through pointers and signatures.
    const LAYOUT: u64;
}

/// Hash of a name (FNV-1a).
pub(crate) const fn text(name: &str) -> u64 {
    let bytes = name.as_bytes();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
}

/// Hash that a named type starts from.
pub(crate) const fn named<T>(name: &str) -> u64 {
    fold(fold(text(name), size_of::<T>() as u64), align_of::<T>() as u64)
}

macro_rules! primitives {
    ($($type:ty),*) => { $(
        // SAFETY: the primitive's layout is C's.
        unsafe impl Crossing for $type {
            const LAYOUT: u64 = named::<$type>(stringify!($type));
        }
    )* };
}
primitives!(u8, u32, u64, usize, f32, f64);

// SAFETY: an opaque target, only ever behind a pointer.
unsafe impl Crossing for c_void {
    const LAYOUT: u64 = text("c_void");
}

// SAFETY: C's `void`, only ever as a result.
unsafe impl Crossing for () {
    const LAYOUT: u64 = text("void");
}

// SAFETY: a thin pointer, since `T` is sized.
unsafe impl<T: Crossing> Crossing for *const T {
    const LAYOUT: u64 = fold(named::<Self>("const pointer"), T::LAYOUT);
}

// SAFETY: as above.
unsafe impl<T: Crossing> Crossing for *mut T {
    const LAYOUT: u64 = fold(named::<Self>("mut pointer"), T::LAYOUT);
}

macro_rules! functions {
    ($($argument:ident),*) => {
        // SAFETY: a C function pointer; what it takes and returns crosses.
        unsafe impl<$($argument: Crossing,)* R: Crossing> Crossing for unsafe extern "C" fn($($argument),*) -> R {
            const LAYOUT: u64 = {
                let hash = named::<Self>("function");
                $(let hash = fold(hash, $argument::LAYOUT);)*
                fold(hash, R::LAYOUT)
            };
        }
    };
}
functions!();
functions!(A);
functions!(A, B);
functions!(A, B, C);
functions!(A, B, C, D);
functions!(A, B, C, D, E);
functions!(A, B, C, D, E, F);

/// Declares a `repr(C)` struct that crosses; refuses to compile when a field does not.
macro_rules! crossing {
    (
        $(#[$meta:meta])*
        pub struct $name:ident $(<$parameter:ident>)? { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        pub struct $name $(<$parameter>)? { $($(#[$field_meta])* pub $field: $type,)* }

        // SAFETY: `repr(C)`, every field crosses, and the hash covers name, place and layout of each.
        unsafe impl $(<$parameter: $crate::border::layout::Crossing>)?
            $crate::border::layout::Crossing for $name $(<$parameter>)?
        {
            const LAYOUT: u64 = {
                use $crate::random::fold;
                let hash = $crate::border::layout::named::<Self>(stringify!($name));
                $(
                    let hash = fold(hash, $crate::border::layout::text(stringify!($field)));
                    let hash = fold(hash, std::mem::offset_of!(Self, $field) as u64);
                    let hash = fold(hash, <$type as $crate::border::layout::Crossing>::LAYOUT);
                )*
                hash
            };
        }
    };
}
pub(crate) use crossing;

#[cfg(test)]
mod tests {
    use super::*;

    mod one {
        crossing! { pub struct Record { pub code: u32, pub size: usize, } }
        crossing! { pub struct Table { pub call: unsafe extern "C" fn(*const Record, u32) -> u64, } }
    }
    mod added_field {
        crossing! { pub struct Record { pub code: u32, pub size: usize, pub hint: u8, } }
        crossing! { pub struct Table { pub call: unsafe extern "C" fn(*const Record, u32) -> u64, } }
    }
    mod renamed_field {
        crossing! { pub struct Record { pub code: u32, pub length: usize, } }
        crossing! { pub struct Table { pub call: unsafe extern "C" fn(*const Record, u32) -> u64, } }
    }
    mod swapped_arguments {
        crossing! { pub struct Record { pub code: u32, pub size: usize, } }
        crossing! { pub struct Table { pub call: unsafe extern "C" fn(u32, *const Record) -> u64, } }
    }
    mod other_result {
        crossing! { pub struct Record { pub code: u32, pub size: usize, } }
        crossing! { pub struct Table { pub call: unsafe extern "C" fn(*const Record, u32) -> f64, } }
    }

    #[test]
    fn a_change_behind_a_pointer_in_a_signature_is_seen_from_the_table() {
        let layouts = [
            one::Table::LAYOUT,
            added_field::Table::LAYOUT,
            renamed_field::Table::LAYOUT,
            swapped_arguments::Table::LAYOUT,
            other_result::Table::LAYOUT,
        ];
        for (i, a) in layouts.iter().enumerate() {
            for b in &layouts[..i] {
                assert_ne!(a, b, "{layouts:x?}");
            }
        }
    }
}
