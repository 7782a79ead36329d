//! [`Control`] across the border: the plugin calls back into the host.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;

use super::values::ControlRecord;
use crate::Control;

/// Host side: the caller's control, and the panic of one of its functions.
///
/// A panic must not unwind into the plugin. It cancels the call and goes on once the call is back.
struct Watched<'a> {
    control: &'a dyn Control,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Watched<'_> {
    fn run<R>(&self, body: impl FnOnce(&dyn Control) -> R) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(|| body(self.control))) {
            Ok(result) => Some(result),
            Err(payload) => {
                // A poisoned lock only says that another callback panicked too.
                self.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(payload);
                None
            }
        }
    }
}

/// Calls `call` with `control` as the plugin takes it.
pub(super) fn lend<R>(control: &dyn Control, call: impl FnOnce(ControlRecord) -> R) -> R {
    let watched = Watched { control, panic: Mutex::new(None) };
    let result = call(ControlRecord { context: (&raw const watched).cast(), cancelled, progress });
    if let Some(payload) = watched.panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        resume_unwind(payload);
    }
    result
}

unsafe extern "C" fn cancelled(context: *const c_void) -> u8 {
    // SAFETY: `lend` made the context and keeps it alive until the call, whose backend calls us, is back.
    let watched = unsafe { &*context.cast::<Watched<'_>>() };
    u8::from(watched.run(|control| control.cancelled()).unwrap_or(true))
}

unsafe extern "C" fn progress(context: *const c_void, done: u64, total: u64) {
    // SAFETY: as in `cancelled`.
    let watched = unsafe { &*context.cast::<Watched<'_>>() };
    watched.run(|control| control.progress(done, total));
}

/// Plugin side: a control that asks the host.
pub(super) struct Remote(ControlRecord);

impl Remote {
    /// # Safety
    /// The result is dropped before the call that lent `record` returns.
    pub(super) unsafe fn new(record: ControlRecord) -> Self {
        Self(record)
    }
}

// SAFETY: the context is a `Watched` with a `dyn Control`, which is `Sync`, and a mutex.
unsafe impl Sync for Remote {}

impl Control for Remote {
    fn cancelled(&self) -> bool {
        // SAFETY: the host's function on the host's context, alive as `new` was promised.
        unsafe { (self.0.cancelled)(self.0.context) != 0 }
    }

    fn progress(&self, done: u64, total: u64) {
        // SAFETY: as in `cancelled`.
        unsafe { (self.0.progress)(self.0.context, done, total) }
    }
}
