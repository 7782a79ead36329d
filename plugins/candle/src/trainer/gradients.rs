//! Accumulated gradients, and the proof that every parameter got one.

use std::ops::Range;

use crate::encoder::layout::Layout;
use crate::kernels::Buffer;

/// One gradient for each parameter, laid out like the parameters.
pub(super) struct Gradients {
    values: Buffer,
    written: Vec<bool>,
}

impl Gradients {
    /// All zero, none written.
    pub fn new(layout: &Layout) -> Self {
        let mut values = Buffer::new();
        values.zeroed(layout.len());
        Self { values, written: vec![false; layout.slots.list().len()] }
    }

    /// The part that the backward pass is about to add to; its tensors count as written.
    pub fn at(&mut self, layout: &Layout, range: &Range<usize>) -> &mut [f32] {
        self.written[layout.slots.within(range)].fill(true);
        &mut self.values[range.clone()]
    }

    /// All of them.
    pub fn values(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Index of a tensor that got no gradient.
    pub fn missing(&self) -> Option<usize> {
        self.written.iter().position(|written| !written)
    }

    /// Forgets which tensors were written; the values are zero already.
    pub fn rearm(&mut self) {
        self.written.fill(false);
    }

    /// Starts again from zero.
    pub fn clear(&mut self) {
        self.values.fill(0.0);
        self.rearm();
    }
}
