//! Python's dict: changed in place, in the order of insertion.

use std::fmt;
use std::sync::{Arc, Mutex};

use indexmap::IndexMap;
use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple, Value, from_args};
use minijinja::{Error, ErrorKind, State};

use super::scratch::{Shared, lock};
use super::text;

pub(super) struct Dict {
    entries: Mutex<IndexMap<Value, Value>>,
}

impl Dict {
    pub(super) fn new(entries: impl IntoIterator<Item = (Value, Value)>) -> Self {
        Self { entries: Mutex::new(entries.into_iter().collect()) }
    }

    /// The entries as they are now.
    pub(super) fn entries(&self) -> Vec<(Value, Value)> {
        lock(&self.entries).iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    pub(super) fn take(&self) -> IndexMap<Value, Value> {
        std::mem::take(&mut *lock(&self.entries))
    }

    fn update(&self, with: &Value) -> Result<(), Error> {
        let mut more = Vec::new();
        for key in with.try_iter()? {
            let value = with.get_item(&key)?;
            more.push((key, value));
        }
        lock(&self.entries).extend(more);
        Ok(())
    }
}

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        lock(&self.entries).get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        // Keys that are already there, since the dict may change while it is walked.
        Enumerator::Values(lock(&self.entries).keys().cloned().collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(lock(&self.entries).len())
    }

    fn call_method(
        self: &Arc<Self>,
        state: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let listed = |state: &State<'_, '_>, of: fn((Value, Value)) -> Value| {
            let entries = self.entries();
            state.consume_fuel(entries.len() as u64)?;
            Ok(Shared::of(state)?.list(entries.into_iter().map(of).collect()))
        };
        match method {
            "keys" => {
                let () = from_args(args)?;
                listed(state, |(key, _)| key)
            }
            "values" => {
                let () = from_args(args)?;
                listed(state, |(_, value)| value)
            }
            "items" => {
                let () = from_args(args)?;
                listed(state, |(key, value)| Value::from(Tuple::from([key, value])))
            }
            "update" => {
                let (with,): (Value,) = from_args(args)?;
                state.consume_fuel(1 + with.len().unwrap_or(0) as u64)?;
                self.update(&with)?;
                Ok(Value::from(()))
            }
            "get" => {
                let (key, default): (Value, Option<Value>) = from_args(args)?;
                Ok(self.get_value(&key).or(default).unwrap_or_else(|| Value::from(())))
            }
            "pop" => {
                let (key, default): (Value, Option<Value>) = from_args(args)?;
                state.consume_fuel(1 + lock(&self.entries).len() as u64 / 64)?;
                let found = lock(&self.entries).shift_remove(&key);
                found.or(default).ok_or_else(|| {
                    Error::new(
                        ErrorKind::InvalidOperation,
                        format!("no key {}", text::to_repr(&key).unwrap_or_default()),
                    )
                })
            }
            "setdefault" => {
                let (key, default): (Value, Option<Value>) = from_args(args)?;
                let default = default.unwrap_or_else(|| Value::from(()));
                Ok(lock(&self.entries).entry(key).or_insert(default).clone())
            }
            "clear" => {
                let () = from_args(args)?;
                self.take();
                Ok(Value::from(()))
            }
            "copy" => {
                let () = from_args(args)?;
                Ok(Shared::of(state)?.dict(self.entries()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::to_str(&Value::from_dyn_object(Arc::clone(self)))?)
    }
}

impl fmt::Debug for Dict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dict({})", lock(&self.entries).len())
    }
}
