//! JSON text exactly as Python's `json.dumps` writes it by default: ASCII only, `, ` and `: ` between items, floats as
//! `repr` prints them. The benchmark's published files are in this form, byte for byte.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// The text of `value`.
///
/// # Errors
/// If `value` does not serialise (a map with keys that are not strings, a failing `Serialize`).
pub fn to_string<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    let mut bytes = Vec::with_capacity(128);
    to_writer(&mut bytes, value)?;
    Ok(String::from_utf8(bytes).expect("the formatter writes ASCII"))
}

/// Writes the text of `value`, without a line end.
///
/// # Errors
/// If writing fails or `value` does not serialise.
pub fn to_writer<W: Write, T: Serialize + ?Sized>(writer: W, value: &T) -> serde_json::Result<()> {
    value.serialize(&mut Serializer::with_formatter(writer, PythonFormatter))
}

/// Python's `repr` of a float: the shortest digits that read back as the same number, with an exponent below 1e-4 and
/// from 1e16 on.
pub fn float_repr(x: f64) -> String {
    if x.is_finite() {
        let mut text = String::with_capacity(24);
        layout(&format!("{x:e}"), &mut text);
        text
    } else if x.is_nan() {
        "nan".into()
    } else {
        if x > 0.0 { "inf" } else { "-inf" }.into()
    }
}

/// Lays out digits given as Rust's `{:e}` prints them (`-1.25e-7`) the way Python does.
fn layout(scientific: &str, out: &mut String) {
    let (mantissa, exponent) = scientific.split_once('e').expect("`{:e}` always has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    let digits = match mantissa.strip_prefix('-') {
        Some(rest) => {
            out.push('-');
            rest
        }
        None => mantissa,
    };
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        out.push_str(digits);
        out.push('e');
        out.push(sign);
        out.push_str(&format!("{:02}", exponent.unsigned_abs()));
        return;
    }
    let digits: String = digits.chars().filter(|c| *c != '.').collect();
    if exponent < 0 {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', exponent.unsigned_abs() as usize - 1));
        out.push_str(&digits);
    } else {
        let whole = exponent as usize + 1;
        if digits.len() <= whole {
            out.push_str(&digits);
            out.extend(std::iter::repeat_n('0', whole - digits.len()));
            out.push_str(".0");
        } else {
            out.push_str(&digits[..whole]);
            out.push('.');
            out.push_str(&digits[whole..]);
        }
    }
}

struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float_repr(value).as_bytes())
    }

    fn write_f32<W: ?Sized + Write>(&mut self, writer: &mut W, value: f32) -> io::Result<()> {
        let mut text = String::with_capacity(16);
        layout(&format!("{value:e}"), &mut text);
        writer.write_all(text.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain_from = 0;
        for (at, c) in fragment.char_indices() {
            if (' '..='~').contains(&c) {
                continue;
            }
            writer.write_all(&fragment.as_bytes()[plain_from..at])?;
            plain_from = at + c.len_utf8();
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        writer.write_all(&fragment.as_bytes()[plain_from..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Expected texts are CPython 3.11's.
    #[test]
    fn text_is_what_python_writes() {
        let value = json!({"a": [1, -2.5, true, null], "é": "\"\\/\n\t\u{8}\u{c}\r\u{1}\u{7f} ü漢😀", "e": {}, "l": []});
        assert_eq!(
            to_string(&value).unwrap(),
            concat!(
                r#"{"a": [1, -2.5, true, null], "\u00e9": "\"\\/\n\t\b\f\r\u0001\u007f "#,
                r#"\u00fc\u6f22\ud83d\ude00", "e": {}, "l": []}"#
            )
        );
    }

    #[test]
    fn floats_are_what_python_repr_prints() {
        for (x, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (100.0, "100.0"),
            (0.1, "0.1"),
            (1.0 / 3.0, "0.3333333333333333"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (0.000012345, "1.2345e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (9007199254740993.0, "9007199254740992.0"),
            (5e-324, "5e-324"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float_repr(x), expected);
        }
        assert_eq!(to_string(&0.1f32).unwrap(), "0.1");
    }

    proptest! {
        #[test]
        fn floats_and_strings_read_back(x in any::<f64>().prop_filter("finite", |x| x.is_finite()), s in any::<String>()) {
            prop_assert_eq!(float_repr(x).parse::<f64>().unwrap().to_bits(), x.to_bits());
            let text = to_string(&s).unwrap();
            prop_assert!(text.is_ascii());
            prop_assert_eq!(serde_json::from_str::<String>(&text).unwrap(), s);
        }
    }
}
