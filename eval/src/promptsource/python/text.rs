//! Values as Python's `str` and `repr` print them, and what Python takes for blanks.

use std::fmt;

use minijinja::value::{Value, ValueKind};

use crate::python_json::float_repr;

/// Deeper structures are printed as Python prints a list within itself.
const MAX_DEPTH: usize = 100;

/// A list that holds another twice, and that another twice, and so on, is small and prints without end.
const MAX_BYTES: usize = 16 << 20;

/// `str(value)`; an undefined value is empty, as Jinja2 prints it.
///
/// # Errors
/// If the text would be longer than 16 MiB.
pub(super) fn to_str(value: &Value) -> Result<String, fmt::Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => to_repr(value),
    }
}

/// `repr(value)`.
///
/// # Errors
/// If the text would be longer than 16 MiB.
pub(super) fn to_repr(value: &Value) -> Result<String, fmt::Error> {
    let mut out = String::new();
    push_repr(value, 0, &mut out)?;
    Ok(out)
}

fn push_repr(value: &Value, depth: usize, out: &mut String) -> fmt::Result {
    if out.len() > MAX_BYTES {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(x) => out.push_str(&float_repr(x)),
            Err(_) => out.push_str(&value.to_string()),
        },
        ValueKind::String => push_quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq if depth >= MAX_DEPTH => out.push_str("[...]"),
        ValueKind::Map if depth >= MAX_DEPTH => out.push_str("{...}"),
        ValueKind::Seq => push_sequence(value, depth, out)?,
        // `list + list` is an iterable of known length, and a list to Python.
        ValueKind::Iterable if value.len().is_some() && depth < MAX_DEPTH => {
            push_sequence(value, depth, out)?;
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter().into_iter().flatten().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                push_repr(&key, depth + 1, out)?;
                out.push_str(": ");
                push_repr(&value.get_item(&key).unwrap_or_default(), depth + 1, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn push_sequence(value: &Value, depth: usize, out: &mut String) -> fmt::Result {
    let is_tuple = value.is_tuple();
    out.push(if is_tuple { '(' } else { '[' });
    let mut count = 0;
    for item in value.try_iter().into_iter().flatten() {
        if count > 0 {
            out.push_str(", ");
        }
        push_repr(&item, depth + 1, out)?;
        count += 1;
    }
    if is_tuple && count == 1 {
        out.push(',');
    }
    out.push(if is_tuple { ')' } else { ']' });
    Ok(())
}

/// A string literal: single quotes unless only double ones spare escapes.
fn push_quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => match u32::from(c) {
                code @ ..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ ..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
}

/// `str.isprintable` of one character.
///
/// Rust prints the same characters as they are, but for combining marks at the start of a text: hence the `a`.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    let mut buffer = ['a'; 2];
    buffer[1] = c;
    let text: String = buffer.iter().collect();
    text.escape_debug().nth(1) == Some(c)
}

/// What Python's `str.strip` and `str.split` take for blanks: Unicode's white space and the four separators of ASCII.
pub(in super::super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `text.strip()`
pub(in super::super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}
