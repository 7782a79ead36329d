use serde_json::{Map, Value as Json, json};

use super::super::{CompiledTemplate, DrawKey, Template, Variant};

fn render(jinja: &str, example: &Json) -> Result<String, String> {
    let template = Template { name: "t".into(), jinja: jinja.into(), ..Template::default() };
    let compiled = CompiledTemplate::new(template, Variant::Full).map_err(|error| error.to_string())?;
    let example: &Map<String, Json> = example.as_object().expect("examples are objects");
    let rendered = compiled
        .apply(example, DrawKey { seed: 1, dataset: "d", example_idx: 0 })
        .map_err(|error| error.to_string())?;
    Ok(rendered.parts.join("|||"))
}

/// Expected texts are those of Jinja2 3.1 on CPython 3.11.
#[test]
fn values_print_as_in_python() {
    let example = json!({
        "list": ["a", "it's", "\"q\" 's'", "é\u{301}\n\u{7f}\u{200b}\u{1f600}\u{a0}", 1, 2.0, 1e16, 1e-5, true, null],
        "dict": {"k": [1], "é": {"x": "y"}},
        "n": null, "t": true, "f": 0.1, "big": 12345678901234567890_u64,
    });
    for (jinja, expected) in [
        (
            "{{ list }}",
            r#"['a', "it's", '"q" \'s\'', 'é́\n\x7f\u200b😀\xa0', 1, 2.0, 1e+16, 1e-05, True, None]"#,
        ),
        ("{{ dict }}", "{'k': [1], 'é': {'x': 'y'}}"),
        ("{{ n }} {{ t }} {{ f }} {{ big }} [{{ missing }}]", "None True 0.1 12345678901234567890 []"),
        ("{{ [1] + [2] }} {{ (1,) }} {{ (1, 'a') }} {{ [] }}", "[1, 2] (1,) (1, 'a') []"),
        ("{{ list[:2] | join(', ') }} {{ dict | string }}", "a, it's {'k': [1], 'é': {'x': 'y'}}"),
        ("{{ 7 / 2 }} {{ 7 // 2 }} {{ -7 % 3 }} {{ 4 / 2 }}", "3.5 3 2 2.0"),
    ] {
        assert_eq!(render(jinja, &example).as_deref(), Ok(expected), "{jinja}");
    }
}

#[test]
fn lists_and_dicts_change_in_place() {
    for (jinja, expected) in [
        ("{% set x = [] %}{% for i in range(3) %}{{ x.append(i) or '' }}{% endfor %}{{ x }}", "[0, 1, 2]"),
        ("{% for i in range(2) %}{% set x = [] %}{% set _ = x.append(i) %}{{ x }}{% endfor %}", "[0][1]"),
        ("{% set x = [3, 1] %}{% set y = x %}{{ y.pop() }}{{ x.pop(0) }}{{ x }}", "13[]"),
        (
            "{% set x = a.split(' ') %}{% set _ = x.insert(1, 'z') %}{{ x }}{{ x.index('c') }}",
            "['b', 'z', 'c']2",
        ),
        (
            "{% set d = {'l': []} %}{% set _ = d.update({'k': 1}) %}{{ d.l.append(2) }}{{ d }}",
            "None{'l': [2], 'k': 1}",
        ),
        (
            "{% set d = {'a': 1, 'b': 2} %}{{ d.pop('a') }}{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}",
            "1b2",
        ),
        (
            "{% set ns = namespace(v=[]) %}{% for i in l %}{% set _ = ns.v.append(i) %}{% endfor %}{{ ns.v[-1] }}",
            "2",
        ),
        ("{% set x = [] %}{% set _ = x.append(x) %}{{ x | length }}", "1"),
        (
            "{% set x = [] %}{% for i in [1, 2, 1] if i not in x %}{{ x.append(i) or '' }}{% endfor %}{{ x }}",
            "[1, 2]",
        ),
        ("{% for a, b in zip(l, 'xyz') %}{{ a }}{{ b }}{% endfor %}", "1x2y"),
        ("{{ ['b', 'a', 'b', 'a', 'c'] | most_frequent }}", "['b', 'a']"),
    ] {
        assert_eq!(render(jinja, &json!({"a": "b c", "l": [1, 2]})).as_deref(), Ok(expected), "{jinja}");
    }
}

/// Expected figures are those of Jinja2 3.1 on CPython 3.11.
#[test]
fn filters_are_those_of_python() {
    for (jinja, expected) in [
        (
            "{{ 2.5 | round }} {{ 3.5 | round | int }} {{ 0.125 | round(2) }} {{ 0.375 | round(2) }}",
            "2.0 4 0.12 0.38",
        ),
        (
            "{{ 5 | round }} {{ 2.675 | round(2) }} {{ 1.1 | round(0, 'ceil') }} {{ -1.5 | round }}",
            "5 2.67 2.0 -2.0",
        ),
        (
            "{{ ' 12 ' | int }} {{ '1_000' | int }} {{ '7.9' | int }} {{ 'x' | int }} {{ 'x' | int(3) }}",
            "12 1000 7 0 3",
        ),
        ("{{ '1e3' | float }} {{ 'x' | float }} {{ true | int }} {{ '__1' | int }}", "1000.0 0.0 1 0"),
        (
            "{{ 'aéb cd' | truncate(6, false, '...', 0) }} {{ 'abcdef' | truncate(5, true, '..', 0) }}",
            "aéb cd abc..",
        ),
        ("{{ 'ab cdefghij' | truncate(6) }}/{{ 'ab cdefghijk' | truncate(6) }}", "ab cdefghij/ab..."),
        ("{{ '\\x1fa b \\x1f' | trim }}{{ ',a,' | trim(',') }} {{ ' a  b ' .split() }}", "a ba ['a', 'b']"),
        (
            "{{ 'a b  '.split(none, 1) }} {{ 'a,,b'.split(',') }} {{ 'été'.find('é') }}",
            "['a', 'b  '] ['a', '', 'b'] 0",
        ),
        ("{{ 'hELLO wORLD' | capitalize }} {{ 'a-b' | replace('-', '+') }}", "Hello world a+b"),
        ("{{ x[true] }}{{ x[-1] }}[{{ x[9] }}]", "bc[]"),
    ] {
        assert_eq!(render(jinja, &json!({"x": ["a", "b", "c"]})).as_deref(), Ok(expected), "{jinja}");
    }
}

#[test]
fn draws_depend_on_their_key_alone() {
    let template = Template {
        name: "t".into(),
        jinja: "{{ [1, 2, 3, 4, 5, 6, 7, 8] | choice }}{{ 'abcdefgh' | choice }}".into(),
        ..Template::default()
    };
    let compiled = CompiledTemplate::new(template, Variant::Full).unwrap();
    let draw = |seed, dataset, example_idx| {
        compiled.apply(&Map::new(), DrawKey { seed, dataset, example_idx }).unwrap().parts.remove(0)
    };
    assert_eq!(draw(1, "d", 0), draw(1, "d", 0));
    let others: Vec<String> = (0..20).map(|example| draw(1, "d", example)).collect();
    let different: std::collections::HashSet<_> = others.iter().collect();
    assert!(different.len() > 10, "{others:?}");
    assert_ne!((0..20).map(|e| draw(2, "d", e)).collect::<Vec<_>>(), others);
    assert_ne!((0..20).map(|e| draw(1, "e", e)).collect::<Vec<_>>(), others);
}

#[test]
fn templates_that_never_end_or_explode_are_stopped() {
    let endless = "it loops or grows without end";
    for jinja in [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set x = [1] %}{% for i in x %}{% set _ = x.extend(x) %}{% set _ = x.extend(x) %}{% endfor %}{{ x * 999999 }}",
        "{{ 'a' * 999999999 }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    ] {
        let outcome = std::thread::Builder::new()
            .stack_size(256 << 20)
            .spawn(move || render(jinja, &json!({})))
            .unwrap()
            .join()
            .unwrap();
        match outcome {
            Err(error) => assert!(error.contains(endless) || error.contains("recursion"), "{jinja}: {error}"),
            Ok(text) => assert!(text.len() < 1 << 20, "{jinja}: {} bytes", text.len()),
        }
    }
}

#[test]
fn what_cannot_be_rendered_says_why() {
    let example = json!({"a": "x", "answer_choices": 1});
    for (jinja, example, reason) in [
        ("{{ a", &json!({}), "syntax error"),
        ("{{ a.b.c }}", &json!({}), "undefined value"),
        (
            "{{ [] | choice }}",
            &json!({}),
            "invalid operation: cannot choose from an empty sequence (line 1 of its `jinja`)",
        ),
        ("{{ a | nothing }}", &json!({}), "unknown filter"),
        ("{{ a }}", &example, "the example has a column named `answer_choices`"),
    ] {
        let error = render(jinja, example).unwrap_err();
        assert!(error.starts_with(reason), "{jinja}: {error}");
    }
}
