//! Inference mode: what is computed in it keeps no graph and no version counters.

use std::ffi::c_void;
use std::marker::PhantomData;

unsafe extern "C" {
    fn cappy_inference_enter() -> *mut c_void;
    fn cappy_inference_leave(guard: *mut c_void);
}

/// Lasts until it is dropped, for the thread that made it. Tensors made meanwhile can never take part in training.
#[must_use]
pub struct InferenceMode {
    guard: *mut c_void,
    /// The mode belongs to a thread.
    _thread: PhantomData<*const ()>,
}

impl InferenceMode {
    /// Starts it.
    pub fn enter() -> Self {
        // SAFETY: takes nothing; the guard is left once, in `drop`, on this thread.
        Self { guard: unsafe { cappy_inference_enter() }, _thread: PhantomData }
    }
}

impl Drop for InferenceMode {
    fn drop(&mut self) {
        // SAFETY: made by `enter` on this thread, as the type is not `Send`, and left only here.
        unsafe { cappy_inference_leave(self.guard) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn a_graph_is_kept_outside_the_mode_only() {
        let x = Tensor::ones([2], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        {
            let _mode = InferenceMode::enter();
            assert!((&x * 2.0).is_inference() && !(&x * 2.0).requires_grad());
        }
        assert!((&x * 2.0).requires_grad());
    }
}
