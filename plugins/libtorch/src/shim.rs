//! What the C functions of `cpp/` say when they fail.

use std::ffi::{CStr, c_char};

/// What libtorch said, on one line.
pub type Said<T> = Result<T, String>;

/// Null, or a text of the shim's to be freed.
pub type Text = *mut c_char;

unsafe extern "C" {
    fn cappy_text_free(text: Text);
}

/// Takes over a text.
///
/// # Safety
/// It was made by the shim and nobody else frees it.
pub unsafe fn owned(text: Text) -> String {
    // SAFETY: as promised; it ends with a zero.
    let said = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: as promised.
    unsafe { cappy_text_free(text) };
    said
}

/// What a function said that returns null, or a reason to be freed.
pub fn said(reason: Text) -> Said<()> {
    // C++ puts frames and hints on lines of their own.
    said_at_length(reason).map_err(|text| text.lines().next().unwrap_or_default().trim().to_owned())
}

/// With the lines that follow; of NCCL's reasons the last ones tell most.
pub fn said_at_length(reason: Text) -> Said<()> {
    if reason.is_null() {
        return Ok(());
    }
    // SAFETY: every caller passes what a function of the shim has just returned.
    Err(unsafe { owned(reason) })
}
