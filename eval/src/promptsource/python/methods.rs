//! Methods of Python's strings, and of lists that MiniJinja made.

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

use super::scratch::Shared;
use super::text;

/// Calls a method that the value itself does not know.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => of_string(state, value, method, args),
        ValueKind::Seq | ValueKind::Iterable if matches!(method, "index" | "count" | "copy") => {
            let list = Shared::of(state)?.list(value.try_iter()?.collect());
            list.call_method(state, method, args)
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn of_string(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let text = value.as_str().unwrap_or_default();
    state.consume_fuel(text.len() as u64 / 64)?;
    match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<String>,) = from_args(args)?;
            let cut = |c: char| chars.as_ref().map_or_else(|| text::is_space(c), |chars| chars.contains(c));
            Ok(Value::from(match method {
                "strip" => text.trim_matches(cut),
                "lstrip" => text.trim_start_matches(cut),
                _ => text.trim_end_matches(cut),
            }))
        }
        "split" => {
            let (separator, most): (Option<String>, Option<i64>) = from_args(args)?;
            let parts = split(text, separator.as_deref(), most.and_then(|most| usize::try_from(most).ok()))?;
            state.consume_fuel(parts.len() as u64)?;
            Ok(Shared::of(state)?.list(parts.into_iter().map(Value::from).collect()))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (wanted,): (String,) = from_args(args)?;
            let at = if method.starts_with('r') { text.rfind(&wanted) } else { text.find(&wanted) };
            match at {
                Some(at) => Ok(Value::from(text[..at].chars().count())),
                None if method.ends_with("find") => Ok(Value::from(-1)),
                None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
            }
        }
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            let mut joined = String::new();
            for (at, item) in items.try_iter()?.enumerate() {
                let item = item.as_str().ok_or_else(|| {
                    Error::new(ErrorKind::InvalidOperation, format!("item {at} to join is not a string"))
                })?;
                if at > 0 {
                    joined.push_str(text);
                }
                joined.push_str(item);
                state.consume_fuel(1 + (text.len() + item.len()) as u64 / 64)?;
            }
            Ok(Value::from(joined))
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Python's `str.split`: by blanks without empty parts, or by a separator with them; at most `most` cuts.
fn split<'a>(text: &'a str, separator: Option<&str>, most: Option<usize>) -> Result<Vec<&'a str>, Error> {
    match (separator, most) {
        (Some(""), _) => Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        (Some(separator), None) => Ok(text.split(separator).collect()),
        (Some(separator), Some(most)) => Ok(text.splitn(most.saturating_add(1), separator).collect()),
        (None, None) => Ok(text.split(text::is_space).filter(|part| !part.is_empty()).collect()),
        (None, Some(most)) => {
            let mut parts = Vec::new();
            let mut rest = text.trim_start_matches(text::is_space);
            while parts.len() < most
                && let Some(end) = rest.find(text::is_space)
            {
                parts.push(&rest[..end]);
                rest = rest[end..].trim_start_matches(text::is_space);
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
            Ok(parts)
        }
    }
}
