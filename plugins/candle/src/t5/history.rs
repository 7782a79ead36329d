//! Keys and values of decoded positions, stored by the step that made them.
//!
//! A step's buffer is `(rows of that step, layers, 2, inner)`; a sequence names its positions by the row it had at
//! each step. So a beam's fork copies a list of rows and nothing else, and rows may come and go at any step.

use crate::kernels::Buffer;
use std::collections::VecDeque;

/// The buffers of the steps that some sequence still needs.
#[derive(Default)]
pub struct History {
    row: usize,
    first: usize,
    steps: VecDeque<Buffer>,
    spare: Vec<Buffer>,
}

impl History {
    /// Forgets everything; a row of a step shall have `row` values.
    pub fn reset(&mut self, row: usize) {
        self.row = row;
        self.first = 0;
        self.spare.extend(self.steps.drain(..));
    }

    /// A buffer for a step of `rows` rows, to be filled and given to [`Self::push`].
    pub fn buffer(&mut self, rows: usize) -> Buffer {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resized(rows * self.row);
        buffer
    }

    /// Appends a step.
    pub fn push(&mut self, step: Buffer) {
        self.steps.push_back(step);
    }

    /// Frees the steps before `step`.
    pub fn forget_before(&mut self, step: usize) {
        while self.first < step
            && let Some(buffer) = self.steps.pop_front()
        {
            self.spare.push(buffer);
            self.first += 1;
        }
    }

    /// What `row` of `step` stored.
    pub fn at(&self, step: usize, row: usize) -> &[f32] {
        &self.steps[step - self.first][row * self.row..][..self.row]
    }
}
