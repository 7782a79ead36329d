//! What one rendering makes and draws.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::value::{Object, ObjectRepr, Value};
use minijinja::{Error, ErrorKind, State};

use super::{Dict, List};
use crate::keyed::Keyed;

/// The name under which a rendering finds its scratch; no column can have it, since it is no Python identifier.
const NAME: &str = " scratch";

/// The objects and the random numbers of one rendering.
///
/// Objects are emptied when it is dropped: a template can nest them without end or put one into itself, and taking
/// such a structure apart by recursion would overflow the stack, or never happen.
pub(in super::super) struct Scratch {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    draws: Mutex<Keyed>,
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    lists: Vec<Arc<List>>,
    dicts: Vec<Arc<Dict>>,
}

impl Scratch {
    /// A scratch whose random numbers are those of `draws`.
    pub(in super::super) fn new(draws: Keyed) -> Self {
        Self { shared: Arc::new(Shared { draws: Mutex::new(draws), made: Mutex::default() }) }
    }

    /// The variable through which a rendering finds it.
    pub(in super::super) fn variable(&self) -> (&'static str, Value) {
        (NAME, Value::from_dyn_object(Arc::clone(&self.shared)))
    }

    /// A list that this rendering may change.
    pub(in super::super) fn list(&self, items: Vec<Value>) -> Value {
        self.shared.list(items)
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Shared {
    /// The scratch of a running template.
    pub(super) fn of(state: &State<'_, '_>) -> Result<Arc<Self>, Error> {
        state
            .lookup(NAME)
            .and_then(|value| value.downcast_object::<Self>())
            .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "not within a PromptSource template"))
    }

    pub(super) fn list(&self, items: Vec<Value>) -> Value {
        let list = Arc::new(List::new(items));
        lock(&self.made).lists.push(Arc::clone(&list));
        Value::from_dyn_object(list)
    }

    pub(super) fn dict(&self, entries: impl IntoIterator<Item = (Value, Value)>) -> Value {
        let dict = Arc::new(Dict::new(entries));
        lock(&self.made).dicts.push(Arc::clone(&dict));
        Value::from_dyn_object(dict)
    }

    /// A random index below `bound`, which is not 0.
    pub(super) fn draw(&self, bound: usize) -> usize {
        lock(&self.draws).below(bound)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let made = std::mem::take(&mut *lock(&self.shared.made));
        // Everything is emptied before anything is dropped.
        let items: Vec<_> = made.lists.iter().map(|list| list.take()).collect();
        let entries: Vec<_> = made.dicts.iter().map(|dict| dict.take()).collect();
        drop((items, entries));
    }
}

impl Object for Shared {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch")
    }
}

/// A rendering is over when one of its steps panics, so what a panicking step held is whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
