//! Filters and functions that MiniJinja lacks or does otherwise than Jinja2 in Python.

use minijinja::value::{Kwargs, Rest, StringInput, Tuple, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State};

use super::scratch::Shared;
use super::{literals, text};

pub(super) fn register(environment: &mut Environment<'static>) {
    environment.add_function(literals::LIST, |state: &State<'_, '_>, items: Value| -> Result<Value, Error> {
        Ok(Shared::of(state)?.list(items.try_iter()?.collect()))
    });
    environment.add_function(
        literals::DICT,
        |state: &State<'_, '_>, entries: Value| -> Result<Value, Error> {
            let keys: Vec<Value> = entries.try_iter()?.collect();
            let pairs: Result<Vec<_>, Error> =
                keys.into_iter().map(|key| entries.get_item(&key).map(|value| (key, value))).collect();
            Ok(Shared::of(state)?.dict(pairs?))
        },
    );
    environment.add_function("zip", zip);
    environment.add_filter("list", list);
    environment.add_filter("choice", choice);
    environment.add_filter("random", choice);
    environment.add_filter("most_frequent", most_frequent);
    environment.add_filter("round", round);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("trim", trim);
    environment.add_filter("truncate", truncate);
    environment.add_filter("string", super::text_of);
    environment.add_filter("join", join);
    environment.add_filter("replace", replace);
    environment.add_filter("lower", |value: &Value| Ok::<_, Error>(super::text_of(value)?.to_lowercase()));
    environment.add_filter("upper", |value: &Value| Ok::<_, Error>(super::text_of(value)?.to_uppercase()));
    environment.add_filter("capitalize", |state: &State<'_, '_>, value: &Value| -> Result<Value, Error> {
        let text = Value::from(super::text_of(value)?);
        Ok(minijinja::filters::capitalize(StringInput::new(state, &text)?))
    });
}

fn bad_operation(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// The items of a list, or the characters of a text.
fn items_of(state: &State<'_, '_>, value: &Value) -> Result<Vec<Value>, Error> {
    let items: Vec<Value> = match value.as_str() {
        Some(text) => text.chars().map(Value::from).collect(),
        None if value.is_undefined() => Vec::new(),
        None => value.try_iter()?.collect(),
    };
    state.consume_fuel(items.len() as u64)?;
    Ok(items)
}

fn list(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    Ok(Shared::of(state)?.list(items_of(state, value)?))
}

fn zip(state: &State<'_, '_>, lists: Rest<Value>) -> Result<Value, Error> {
    let columns: Vec<Vec<Value>> =
        lists.iter().map(|list| items_of(state, list)).collect::<Result<_, _>>()?;
    let rows = columns.iter().map(Vec::len).min().unwrap_or(0);
    let row = |at: usize| {
        let cells: Vec<Value> = columns.iter().map(|column| column[at].clone()).collect();
        Value::from(Tuple::from(cells))
    };
    Ok(Shared::of(state)?.list((0..rows).map(row).collect()))
}

/// One item, drawn from the rendering's keyed random numbers: the same example always gets the same.
fn choice(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    let mut items = items_of(state, value)?;
    if items.is_empty() {
        return Err(bad_operation("cannot choose from an empty sequence"));
    }
    let at = Shared::of(state)?.draw(items.len());
    Ok(items.swap_remove(at))
}

/// The items that appear most often, in the order in which they first appear; `None` for no items.
fn most_frequent(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    let items = items_of(state, value)?;
    if items.is_empty() {
        return Ok(Value::from(()));
    }
    let mut counts = indexmap::IndexMap::<Value, usize>::new();
    items.into_iter().for_each(|item| *counts.entry(item).or_default() += 1);
    let most = counts.values().copied().max().unwrap_or(0);
    let winners = counts.into_iter().filter(|(_, count)| *count == most).map(|(item, _)| item);
    Ok(Shared::of(state)?.list(winners.collect()))
}

/// Python's `round`: to the nearest decimal, exact ties to the even digit.
fn round(
    value: &Value,
    precision: Option<i32>,
    method: Option<String>,
    options: Kwargs,
) -> Result<Value, Error> {
    let precision = match precision {
        Some(precision) => precision,
        None => options.get::<Option<i32>>("precision")?.unwrap_or(0),
    };
    let method = match method {
        Some(method) => method,
        None => options.get::<Option<String>>("method")?.unwrap_or_else(|| "common".into()),
    };
    options.assert_all_used()?;
    if !matches!(value.kind(), ValueKind::Number | ValueKind::Bool) {
        return Err(bad_operation(format!("cannot round a value of type {}", value.kind())));
    }
    let is_integer = value.is_integer() || value.kind() == ValueKind::Bool;
    let x = match value.kind() {
        ValueKind::Bool => f64::from(u8::from(value.is_true())),
        _ => f64::try_from(value.clone())?,
    };
    let scale = 10f64.powi(precision);
    match method.as_str() {
        "common" if is_integer && precision >= 0 => Ok(Value::from(i128::try_from(value.clone())?)),
        "common" if is_integer => Ok(Value::from(((x * scale).round_ties_even() / scale) as i64)),
        "common" => Ok(Value::from(rounded(x, precision))),
        "ceil" => Ok(Value::from((x * scale).ceil() / scale)),
        "floor" => Ok(Value::from((x * scale).floor() / scale)),
        other => Err(bad_operation(format!("cannot round by method `{other}`"))),
    }
}

fn rounded(x: f64, precision: i32) -> f64 {
    match usize::try_from(precision) {
        // A double has no more than 1074 places behind the point.
        Ok(places) if x.is_finite() => format!("{x:.*}", places.min(1100)).parse().unwrap_or(x),
        Ok(_) => x,
        Err(_) => {
            let scale = 10f64.powi(-precision);
            (x / scale).round_ties_even() * scale
        }
    }
}

/// `int(value)`, else `int(float(value))`, else the default.
fn int(value: &Value, default: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = match default {
        Some(default) => default,
        None => options.get::<Option<Value>>("default")?.unwrap_or_else(|| Value::from(0)),
    };
    options.assert_all_used()?;
    let whole = |x: f64| x.is_finite().then(|| Value::from(x.trunc() as i128));
    let found = match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => whole(f64::try_from(value.clone())?),
        ValueKind::String => {
            let digits = number_text(value);
            digits.parse::<i128>().ok().map(Value::from).or_else(|| digits.parse().ok().and_then(whole))
        }
        _ => None,
    };
    Ok(found.unwrap_or(default))
}

/// `float(value)`, else the default.
fn float(value: &Value, default: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = match default {
        Some(default) => default,
        None => options.get::<Option<Value>>("default")?.unwrap_or_else(|| Value::from(0.0)),
    };
    options.assert_all_used()?;
    let found = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => number_text(value).parse().ok(),
        _ => None,
    };
    Ok(found.map_or(default, Value::from))
}

/// A number's digits as Python reads them: blanks around do not matter, single `_` between digits neither.
fn number_text(value: &Value) -> String {
    let text = text::strip(value.as_str().unwrap_or_default());
    let bytes = text.as_bytes();
    let between_digits = |at: usize| {
        let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
        digit(at.checked_sub(1)) && digit(at.checked_add(1))
    };
    match text.contains('_') {
        true if text.match_indices('_').all(|(at, _)| between_digits(at)) => text.replace('_', ""),
        true => String::new(),
        false => text.to_owned(),
    }
}

/// Any items, printed as Python prints them.
fn join(
    state: &State<'_, '_>,
    value: &Value,
    separator: Option<Value>,
    attribute: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let separator = separator.or(options.get("d")?).map_or(Ok(String::new()), |d| super::text_of(&d))?;
    let attribute = match attribute.or(options.get("attribute")?) {
        Some(path) => Some(super::text_of(&path)?),
        None => None,
    };
    options.assert_all_used()?;
    let mut joined = String::new();
    for (at, mut item) in items_of(state, value)?.into_iter().enumerate() {
        for key in attribute.iter().flat_map(|path| path.split('.')) {
            item = match key.parse::<usize>() {
                Ok(index) => item.get_item_by_index(index)?,
                Err(_) => item.get_attr(key)?,
            };
        }
        let item = super::text_of(&item)?;
        if at > 0 {
            joined.push_str(&separator);
        }
        joined.push_str(&item);
        state.consume_fuel((separator.len() + item.len()) as u64 / 64)?;
    }
    Ok(joined)
}

fn replace(
    state: &State<'_, '_>,
    value: &Value,
    from: &Value,
    to: &Value,
    count: Option<usize>,
) -> Result<String, Error> {
    let (text, from, to) = (super::text_of(value)?, super::text_of(from)?, super::text_of(to)?);
    // The most that may come out: every occurrence replaced.
    let found = if from.is_empty() { text.len() + 1 } else { text.len() / from.len() };
    state.consume_fuel((text.len() + found.saturating_mul(to.len())) as u64 / 64)?;
    Ok(match count {
        Some(count) => text.replacen(&from, &to, count),
        None => text.replace(&from, &to),
    })
}

fn trim(value: &Value, chars: Option<String>) -> Result<String, Error> {
    let text = super::text_of(value)?;
    Ok(match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => text::strip(&text).to_owned(),
    })
}

/// Jinja2's `truncate`: cuts at the last blank before `length` characters, unless no more than `leeway` are over.
fn truncate(state: &State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    type Arguments = (Option<usize>, Option<bool>, Option<String>, Option<usize>, Kwargs);
    let args = args.into_values();
    let (length, killwords, end, leeway, options): Arguments = from_args(&args)?;
    let length = length.or(options.get("length")?).unwrap_or(255);
    let killwords = killwords.or(options.get("killwords")?).unwrap_or(false);
    let end = end.or(options.get("end")?).unwrap_or_else(|| "...".to_owned());
    let leeway = leeway.or(options.get("leeway")?).unwrap_or(5);
    options.assert_all_used()?;
    let text = super::text_of(value)?;
    state.consume_fuel(text.len() as u64 / 64)?;
    let end_chars = end.chars().count();
    if length < end_chars {
        return Err(bad_operation(format!("truncate needs a length of at least {end_chars}")));
    }
    if text.len() <= length + leeway || text.chars().count() <= length + leeway {
        return Ok(text);
    }
    let cut = text.char_indices().nth(length - end_chars).map_or(text.len(), |(at, _)| at);
    let kept = &text[..cut];
    let kept = if killwords { kept } else { kept.rsplit_once(' ').map_or(kept, |(before, _)| before) };
    Ok(format!("{kept}{end}"))
}
