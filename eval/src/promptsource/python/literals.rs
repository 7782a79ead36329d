//! List and dict literals that can be changed in place.
//!
//! MiniJinja's lists never change, and templates say `{% set found = [] %}` and `found.append(...)`. So every literal
//! is wrapped in a call that copies it into an object of its own each time it is evaluated: `[a, b]` becomes
//! `LIST([a, b])`, `{"a": b}` becomes `DICT({"a": b})`.

use std::borrow::Cow;

/// The function that makes a list; not a name that a template would use.
pub(super) const LIST: &str = "__live_list";
/// The function that makes a dict.
pub(super) const DICT: &str = "__live_dict";

/// Words after which a bracket opens a literal; after any other word it is a subscript.
const OPERATORS: [&str; 9] = ["in", "and", "or", "not", "if", "elif", "else", "is", "set"];

/// The source with every literal wrapped; a source that Jinja would refuse stays one.
pub(super) fn with_live_literals(source: &str) -> Cow<'_, str> {
    if !source.contains(['[', '{']) {
        return Cow::Borrowed(source);
    }
    let mut rewriter = Rewriter { source, at: 0, copied: 0, out: String::new() };
    rewriter.template();
    if rewriter.copied == 0 {
        return Cow::Borrowed(source);
    }
    rewriter.out.push_str(&source[rewriter.copied..]);
    Cow::Owned(rewriter.out)
}

struct Rewriter<'a> {
    source: &'a str,
    /// The next byte to look at.
    at: usize,
    /// How much of the source is in `out`.
    copied: usize,
    out: String,
}

impl<'a> Rewriter<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn template(&mut self) {
        while let Some(next) = self.rest().find('{') {
            self.at += next;
            let rest = self.rest();
            if rest.starts_with("{#") {
                self.at += rest.find("#}").map_or(rest.len(), |end| end + 2);
            } else if rest.starts_with("{{") {
                self.at += 2;
                self.expression("}}");
            } else if rest.starts_with("{%") {
                self.at += 2;
                if is_raw(self.rest()) {
                    self.skip_raw();
                } else {
                    self.expression("%}");
                }
            } else {
                self.at += 1;
            }
        }
    }

    fn skip_raw(&mut self) {
        while let Some(next) = self.rest().find("{%") {
            self.at += next + 2;
            if self.rest().trim_start_matches(['-', '+', ' ', '\t', '\n', '\r']).starts_with("endraw") {
                return;
            }
        }
        self.at = self.source.len();
    }

    /// Goes behind `end`, which does not count within brackets or texts.
    fn expression(&mut self, end: &str) {
        // What closes each open bracket.
        let mut open: Vec<&'static str> = Vec::new();
        let mut is_value_before = false;
        while let Some(c) = self.rest().chars().next() {
            if open.is_empty() && self.rest().starts_with(end) {
                self.at += end.len();
                return;
            }
            match c {
                '"' | '\'' => {
                    self.text(c);
                    is_value_before = true;
                }
                '[' if !is_value_before => {
                    self.wrap(LIST);
                    open.push("])");
                }
                '{' => {
                    self.wrap(DICT);
                    open.push("})");
                    is_value_before = false;
                }
                '[' | '(' => {
                    self.at += 1;
                    open.push(if c == '[' { "]" } else { ")" });
                    is_value_before = false;
                }
                ']' | '}' | ')' => {
                    self.at += 1;
                    if let Some(closing) = open.pop()
                        && closing.len() > 1
                    {
                        self.copy();
                        self.out.push(')');
                    }
                    is_value_before = true;
                }
                c if c.is_alphanumeric() || c == '_' => {
                    let rest = self.rest();
                    let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                    is_value_before = !OPERATORS.contains(&&rest[..len]);
                    self.at += len;
                }
                c => {
                    self.at += c.len_utf8();
                    if !c.is_whitespace() {
                        is_value_before = false;
                    }
                }
            }
        }
    }

    /// Goes behind a text in quotes.
    fn text(&mut self, quote: char) {
        self.at += 1;
        let mut escaped = false;
        for (at, c) in self.rest().char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == quote => {
                    self.at += at + 1;
                    return;
                }
                _ => {}
            }
        }
        self.at = self.source.len();
    }

    /// Puts the call before the bracket that opens a literal, and goes behind it.
    fn wrap(&mut self, function: &str) {
        self.copy();
        self.out.push_str(function);
        self.out.push('(');
        self.at += 1;
    }

    fn copy(&mut self) {
        self.out.push_str(&self.source[self.copied..self.at]);
        self.copied = self.at;
    }
}

fn is_raw(block: &str) -> bool {
    let name = block.trim_start_matches(['-', '+', ' ', '\t', '\n', '\r']);
    name.strip_prefix("raw").is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literals_are_wrapped_and_subscripts_are_not() {
        for (source, expected) in [
            ("plain [text] {here}", "plain [text] {here}"),
            ("{{ a[0] }}", "{{ a[0] }}"),
            ("{{ [1, 2][0] }}", "{{ LIST([1, 2])[0] }}"),
            ("{% set x = [] %}[{{ x }}]", "{% set x = LIST([]) %}[{{ x }}]"),
            ("{{ f(x)[1:][0] }}", "{{ f(x)[1:][0] }}"),
            ("{{ 'a[b' in [']', \"}}\"] }}", "{{ 'a[b' in LIST([']', \"}}\"]) }}"),
            ("{{ {'a': {'b': [c[0]]}} }}", "{{ DICT({'a': DICT({'b': LIST([c[0]])})}) }}"),
            ("{{ {\"No\": 0}[answer] }}", "{{ DICT({\"No\": 0})[answer] }}"),
            ("{%- for a in [b] if [c] -%}", "{%- for a in LIST([b]) if LIST([c]) -%}"),
            (
                "{# [no] #}{% raw %}{{ [no] }}{% endraw %}{{[1]}}",
                "{# [no] #}{% raw %}{{ [no] }}{% endraw %}{{LIST([1])}}",
            ),
            ("{{ [a", "{{ LIST([a"),
            ("{{ [é, 'ü\\'[', x[é]] }}", "{{ LIST([é, 'ü\\'[', x[é]]) }}"),
        ] {
            let expected = expected.replace("LIST", LIST).replace("DICT", DICT);
            assert_eq!(with_live_literals(source), expected, "{source}");
        }
    }

    proptest! {
        #[test]
        fn any_source_survives(source in r#"([{}%#\[\]()'"\\a-c é]|\{\{|\}\}|\{%|%\}|raw|endraw){0,60}"#) {
            let wrapped = with_live_literals(&source);
            let unwrapped = wrapped.replace(&format!("{LIST}("), "").replace(&format!("{DICT}("), "");
            let brackets = |text: &str| text.replace(')', "");
            prop_assert_eq!(brackets(&unwrapped), brackets(&source));
        }
    }
}
