//! Loop filters that are asked item by item.
//!
//! `{% for a in b if c %}` asks `c` just before the body runs for `a` in Jinja2, and for all items before the first body
//! in MiniJinja. The two differ where the body changes what `c` looks at (`if name not in seen`). So a filter becomes an
//! `if` around the body, unless the body counts its rounds (`loop`) or the loop has an `else`.

use std::borrow::Cow;
use std::ops::Range;

/// A `{% ... %}` of a template.
struct Statement {
    /// From `{%` to behind `%}`.
    whole: Range<usize>,
    /// What stands between, `-` and `+` marks aside.
    inner: Range<usize>,
}

/// A word of a statement outside of brackets and texts, and where it starts.
type Word<'a> = (usize, &'a str);

/// The source with every loop filter as a condition of the body, where that is the same.
pub(super) fn with_lazy_filters(source: &str) -> Cow<'_, str> {
    if !source.contains(" for ") || !source.contains(" if ") {
        return Cow::Borrowed(source);
    }
    let statements = statements(source);
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    for (at, statement) in statements.iter().enumerate() {
        let Some(filter) = filter_of(source, statement) else { continue };
        let Some(end) = end_of(source, &statements, at) else { continue };
        let body = &source[statement.whole.end..statements[end].whole.start];
        // Anywhere: too careful rather than wrong.
        if body.contains("loop") || has_else(source, &statements, at, end) {
            continue;
        }
        let condition = source[filter + "if".len()..statement.inner.end].trim();
        let closing = &source[statement.inner.end..statement.whole.end];
        // The marks that strip blanks of the body go to the tags that now stand next to it.
        edits.push((filter..statement.whole.end, format!("%}}{{% if {condition} {}", closing.trim_start())));
        let end = &statements[end];
        let opening = &source[end.whole.start..end.inner.start];
        edits.push((end.whole.start..end.inner.start, format!("{} endif %}}{{%", opening.trim_end())));
    }
    if edits.is_empty() {
        return Cow::Borrowed(source);
    }
    edits.sort_by_key(|(range, _)| range.start);
    let mut out = String::with_capacity(source.len() + 32 * edits.len());
    let mut copied = 0;
    for (range, text) in edits {
        out.push_str(&source[copied..range.start]);
        out.push_str(&text);
        copied = range.end;
    }
    out.push_str(&source[copied..]);
    Cow::Owned(out)
}

/// Where the `if` of a `for` stands.
fn filter_of(source: &str, statement: &Statement) -> Option<usize> {
    let words = words(source, &statement.inner);
    let is_filtered = words.first().is_some_and(|(_, word)| *word == "for")
        && !words.iter().any(|(_, word)| matches!(*word, "else" | "recursive"));
    words.iter().find(|(_, word)| *word == "if").map(|(at, _)| *at).filter(|_| is_filtered)
}

/// Which statement ends the loop that starts at `start`.
fn end_of(source: &str, statements: &[Statement], start: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, statement) in statements.iter().enumerate().skip(start) {
        match keyword(source, statement) {
            "for" => depth += 1,
            "endfor" => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Whether a loop has an `else` of its own.
fn has_else(source: &str, statements: &[Statement], start: usize, end: usize) -> bool {
    let mut depth = 0;
    statements[start + 1..end].iter().any(|statement| {
        match keyword(source, statement) {
            "for" | "if" => depth += 1,
            "endfor" | "endif" => depth -= 1,
            "else" => return depth == 0,
            _ => {}
        }
        false
    })
}

fn keyword<'a>(source: &'a str, statement: &Statement) -> &'a str {
    source[statement.inner.clone()].split_whitespace().next().unwrap_or_default()
}

fn statements(source: &str) -> Vec<Statement> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = source[at..].find('{') {
        at += next;
        let rest = &source[at..];
        if rest.starts_with("{#") {
            at += rest.find("#}").map_or(rest.len(), |end| end + 2);
        } else if rest.starts_with("{{") {
            at = end_from(source, at + 2, "}}") + 2;
        } else if rest.starts_with("{%") {
            let end = end_from(source, at + 2, "%}");
            let is_mark = |c: char| matches!(c, '-' | '+');
            let between = &source[(at + 2).min(end)..end];
            let inner = between.trim_start_matches(is_mark);
            let start = end - inner.len();
            let stop = start + inner.trim_end_matches(is_mark).len();
            found.push(Statement { whole: at..(end + 2).min(source.len()), inner: start..stop });
            at = end + 2;
            if source[start..stop].trim() == "raw" {
                at = source[at.min(source.len())..].find("endraw").map_or(source.len(), |raw| at + raw);
            }
        } else {
            at += 1;
        }
        at = at.min(source.len());
    }
    found
}

/// Where `end` stands from `from` on, outside of brackets and texts; the end of the source if nowhere.
fn end_from(source: &str, from: usize, end: &str) -> usize {
    let mut depth = 0;
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in source[from.min(source.len())..].char_indices() {
        let at = from + at;
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, _) if depth == 0 && source[at..].starts_with(end) => return at,
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = (depth - 1).max(0),
            (None, _) => {}
        }
    }
    source.len()
}

fn words<'a>(source: &'a str, inner: &Range<usize>) -> Vec<Word<'a>> {
    let mut found = Vec::new();
    let mut at = inner.start;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while at < inner.end {
        let rest = &source[at..inner.end];
        let Some(c) = rest.chars().next() else { break };
        if is_word(c) {
            let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            found.push((at, &rest[..len]));
            at += len;
        } else if matches!(c, '"' | '\'' | '(' | '[' | '{') {
            // Behind the text or the brackets: to where nothing is open, looked for as an end of no length.
            at = skip(source, at, inner.end);
        } else {
            at += c.len_utf8();
        }
    }
    found
}

/// Behind the text or the brackets that open at `from`.
fn skip(source: &str, from: usize, limit: usize) -> usize {
    let mut depth = 0;
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in source[from..limit].char_indices() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth -= 1,
            (None, _) => {}
        }
        if depth <= 0 && quote.is_none() {
            return from + at + c.len_utf8();
        }
    }
    limit
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn filters_become_conditions_where_that_is_the_same() {
        for (source, expected) in [
            ("{% for a in b if a %}x{% endfor %}", "{% for a in b %}{% if a %}x{% endif %}{% endfor %}"),
            (
                "{%- for a in b if a['if'] not in (c if d else e) -%} x {%- endfor -%}",
                "{%- for a in b %}{% if a['if'] not in (c if d else e) -%} x {%- endif %}{% endfor -%}",
            ),
            (
                "{% for a in b if a %}{% for c in a if c %}{% if c %}1{% else %}2{% endif %}{% endfor %}{% endfor %}",
                "{% for a in b %}{% if a %}{% for c in a %}{% if c %}{% if c %}1{% else %}2{% endif %}{% endif %}{% endfor %}{% endif %}{% endfor %}",
            ),
            ("{% for a in b if a %}{{ loop.index }}{% set x = 1 %}{% endfor %}", ""),
            ("{% for a in b if a %}x{% else %}y{% endfor %}", ""),
            ("{% for a in (b if c else d) %}x{% endfor %} if ", ""),
            ("{% for a in b if a %}x", ""),
            ("{% raw %}{% for a in b if a %}x{% endfor %}{% endraw %}", ""),
        ] {
            let expected = if expected.is_empty() { source } else { expected };
            assert_eq!(with_lazy_filters(source), expected, "{source}");
        }
    }

    proptest! {
        #[test]
        fn any_source_survives(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "{%", "%}", "{{", "}}", "{#", "#}", "-", " for ", " if ", " in ", "else", " endfor ", "endif", "raw",
                    "endraw", "'", "\"", "\\", "(", ")", "[", "}", "a", "é", " ", "loop", "recursive",
                ]),
                0..40,
            )
        ) {
            let source = parts.concat();
            prop_assert!(with_lazy_filters(&source).len() >= source.len() / 2);
        }
    }
}
