//! Python's list: changed in place, shared by everyone who holds it.

use std::fmt;
use std::sync::{Arc, Mutex};

use minijinja::value::{Enumerator, Object, ObjectRepr, Value, from_args};
use minijinja::{Error, ErrorKind, State};

use super::scratch::{Shared, lock};
use super::text;

pub(super) struct List {
    items: Mutex<Vec<Value>>,
}

impl List {
    pub(super) fn new(items: Vec<Value>) -> Self {
        Self { items: Mutex::new(items) }
    }

    /// The items as they are now.
    pub(super) fn items(&self) -> Vec<Value> {
        lock(&self.items).clone()
    }

    pub(super) fn take(&self) -> Vec<Value> {
        std::mem::take(&mut *lock(&self.items))
    }

    fn len(&self) -> usize {
        lock(&self.items).len()
    }

    /// Where an index points, counted from the end if negative.
    fn place(&self, index: i64) -> Option<usize> {
        let len = self.len();
        let place = if index < 0 { i64::try_from(len).ok()?.checked_add(index)? } else { index };
        usize::try_from(place).ok().filter(|place| *place < len)
    }

    fn position(&self, wanted: &Value) -> Result<usize, Error> {
        // Compared outside the lock: an item may be this very list.
        self.items().iter().position(|item| item == wanted).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidOperation,
                format!("{} is not in list", text::to_repr(wanted).unwrap_or_default()),
            )
        })
    }

    fn pop(&self, index: Option<i64>) -> Result<Value, Error> {
        let place = self
            .place(index.unwrap_or(-1))
            .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "pop index out of range"))?;
        Ok(lock(&self.items).remove(place))
    }

    fn insert(&self, index: i64, item: Value) {
        let mut items = lock(&self.items);
        let len = items.len();
        let place =
            if index < 0 { len.saturating_sub(index.unsigned_abs() as usize) } else { index as usize };
        items.insert(place.min(len), item);
    }
}

/// The place that a subscript means; Python's `True` is 1.
pub(super) fn subscript(key: &Value) -> Option<i64> {
    match key.kind() {
        minijinja::value::ValueKind::Bool => Some(key.is_true().into()),
        _ if key.is_integer() => key.as_i64(),
        // Python's lists do not take floats, not even whole ones.
        _ => None,
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let place = self.place(subscript(key)?)?;
        lock(&self.items).get(place).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        // Values that are already there, since the list may change while it is walked.
        Enumerator::Values(self.items())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.len())
    }

    fn call_method(
        self: &Arc<Self>,
        state: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        match method {
            "append" => {
                let (item,): (Value,) = from_args(args)?;
                state.consume_fuel(1)?;
                lock(&self.items).push(item);
            }
            "extend" => {
                let (more,): (Value,) = from_args(args)?;
                let more: Vec<Value> = more.try_iter()?.collect();
                state.consume_fuel(more.len() as u64)?;
                lock(&self.items).extend(more);
            }
            "insert" => {
                let (index, item): (i64, Value) = from_args(args)?;
                state.consume_fuel(1 + self.len() as u64 / 64)?;
                self.insert(index, item);
            }
            "remove" => {
                let (item,): (Value,) = from_args(args)?;
                state.consume_fuel(1 + self.len() as u64)?;
                let place = self.position(&item)?;
                lock(&self.items).remove(place);
            }
            "clear" => {
                let () = from_args(args)?;
                self.take();
            }
            "reverse" => {
                let () = from_args(args)?;
                lock(&self.items).reverse();
            }
            "pop" => {
                let (index,): (Option<i64>,) = from_args(args)?;
                return self.pop(index);
            }
            "index" => {
                let (item,): (Value,) = from_args(args)?;
                state.consume_fuel(1 + self.len() as u64)?;
                return self.position(&item).map(Value::from);
            }
            "count" => {
                let (wanted,): (Value,) = from_args(args)?;
                state.consume_fuel(1 + self.len() as u64)?;
                return Ok(Value::from(self.items().iter().filter(|item| **item == wanted).count()));
            }
            "copy" => {
                let () = from_args(args)?;
                return Ok(Shared::of(state)?.list(self.items()));
            }
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        }
        Ok(Value::from(()))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::to_str(&Value::from_dyn_object(Arc::clone(self)))?)
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "List({})", self.len())
    }
}
