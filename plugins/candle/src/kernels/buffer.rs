//! Buffers that are kept and reused: a fresh temporary of this size costs a page fault every 4 KiB.

/// One cache line of numbers.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; Buffer::LANES]);

/// A growable slice of f32 aligned to a cache line, which never shrinks.
#[derive(Clone, Default)]
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    const LANES: usize = 16;

    /// Empty, without memory.
    pub const fn new() -> Self {
        Self { lines: Vec::new(), len: 0 }
    }

    /// Length `len` with unspecified (old or zero) content.
    pub fn resized(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(Self::LANES);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0.0; Self::LANES]));
        }
        self.len = len;
        self
    }

    /// Length `len`, all zero.
    pub fn zeroed(&mut self, len: usize) -> &mut [f32] {
        let slice = self.resized(len);
        slice.fill(0.0);
        slice
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `Line` is `repr(C)` over 16 f32 without padding, and `resized` keeps `len` within the lines.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
