//! What a foreign `tokenizer.json` may contain: patterns of bounded length without nested repetition, so that no
//! input can make the regex engine backtrack exponentially, and sound tables of character replacements. Nesting of
//! the JSON is bounded by its parser.

use serde_json::Value;

use super::charsmap;

/// The longest pattern of known tokenizers has about 400 bytes.
const MAX_PATTERN_BYTES: usize = 2048;

/// Normalizers and pre-tokenizers of known tokenizers hold a handful.
const MAX_PATTERNS: usize = 64;

/// Refuses patterns that may run away, and tables that lead outside.
pub(super) fn check(tokenizer: &Value) -> Result<(), String> {
    let (mut patterns, mut tables) = (Vec::new(), Vec::new());
    for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        if let Some(value) = tokenizer.get(part) {
            collect(value, "Regex", &mut patterns);
            collect(value, "precompiled_charsmap", &mut tables);
        }
    }
    for table in tables.into_iter().filter(|table| !table.is_empty()) {
        let table =
            charsmap::from_base64(table).ok_or("its table of character replacements is not base64")?;
        charsmap::check(&table)?;
    }
    if patterns.len() > MAX_PATTERNS {
        return Err(format!(
            "it has {} patterns, more than the {MAX_PATTERNS} that are allowed",
            patterns.len()
        ));
    }
    for pattern in patterns {
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(format!(
                "it has a pattern of {} bytes, more than {MAX_PATTERN_BYTES}",
                pattern.len()
            ));
        }
        if repeats_a_repetition(pattern) {
            return Err(format!("its pattern `{pattern}` repeats a repetition, which may never end"));
        }
    }
    Ok(())
}

/// All texts under a key. Recursion is as deep as the JSON parser allowed.
fn collect<'a>(value: &'a Value, wanted: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                match field {
                    Value::String(text) if key == wanted => found.push(text),
                    other => collect(other, wanted, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, wanted, found)),
        _ => {}
    }
}

/// Whether a group that holds an unbounded repetition is itself repeated without bound: `(a+)*`, `((x|y*)z?){2,}`.
fn repeats_a_repetition(pattern: &str) -> bool {
    let bytes = pattern.as_bytes();
    // For each open group: whether it holds an unbounded repetition so far.
    let mut open: Vec<bool> = vec![false];
    let mut class_depth = 0;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        at += 1;
        match byte {
            b'\\' => at += 1,
            b'[' => class_depth += 1,
            b']' if class_depth > 0 => class_depth -= 1,
            _ if class_depth > 0 => {}
            b'(' => {
                open.push(false);
                // Group options: `?` here is no quantifier.
                if bytes.get(at) == Some(&b'?') {
                    at += 1;
                }
            }
            b')' if open.len() > 1 => {
                let holds = open.pop().expect("the outermost level stays");
                if holds && is_unbounded(&bytes[at..]) {
                    return true;
                }
                *open.last_mut().expect("the outermost level stays") |= holds;
            }
            b'*' | b'+' => *open.last_mut().expect("the outermost level stays") = true,
            b'{' if is_unbounded(&bytes[at - 1..]) => {
                *open.last_mut().expect("the outermost level stays") = true
            }
            _ => {}
        }
    }
    false
}

/// Whether the text starts with `*`, `+` or `{n,}` (a possessive or lazy mark may follow), or with a bounded
/// repetition large enough to matter.
fn is_unbounded(rest: &[u8]) -> bool {
    match rest.first() {
        Some(b'*' | b'+') => true,
        Some(b'{') => {
            let body: Vec<u8> = rest[1..].iter().copied().take_while(|b| *b != b'}').collect();
            let upper = body.rsplit(|b| *b == b',').next().unwrap_or(&[]);
            let upper = std::str::from_utf8(upper).unwrap_or("");
            body.iter().all(|b| b.is_ascii_digit() || *b == b',')
                && !body.is_empty()
                && upper.parse::<u32>().map_or(true, |n| n > 8)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_patterns_pass_and_runaway_ones_do_not() {
        let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        let cl100k = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        for fine in [gpt2, cl100k, " {2,}", r"(ab)+", r"\(a+\)+", r"[(a+)]+", r"(a+){2}", "a{", ")"] {
            assert!(!repeats_a_repetition(fine), "{fine}");
        }
        for bad in ["(a+)+$", "(a*)*", "((a|b+)c)+", r"(?:x{2,})*", "(a+){1,}", "(.*a){20}", "(a|(b+))+"] {
            assert!(repeats_a_repetition(bad), "{bad}");
        }
        let nested = serde_json::json!({"pre_tokenizer": {"list": [{"pattern": {"Regex": "(a+)+$"}}]}});
        assert!(check(&nested).unwrap_err().contains("(a+)+$"));
        let damaged = serde_json::json!({"normalizer": {"precompiled_charsmap": "AAAA"}});
        assert!(check(&damaged).unwrap_err().contains("damaged"));
        let long = serde_json::json!({"normalizer": {"pattern": {"Regex": "a".repeat(5000)}}});
        assert!(check(&long).unwrap_err().contains("5000 bytes"));
        // A token may be called anything.
        assert!(check(&serde_json::json!({"model": {"vocab": {"Regex": "(a+)+"}}})).is_ok());
    }
}
