//! Output compared with committed files.

use std::{env, fs, path::Path};

/// Set to rewrite the files instead.
const UPDATE: &str = "CAPPY_UPDATE_GOLDENS";

/// Compares `actual` with `tests/fixtures/goldens/<name>`.
///
/// # Panics
/// When they differ; both are shown from the first line that does.
#[track_caller]
pub fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/goldens").join(name);
    if env::var_os(UPDATE).is_some() {
        fs::create_dir_all(path.parent().expect("a golden lies in a folder"))
            .expect("the checkout is writable");
        fs::write(&path, actual).expect("the checkout is writable");
        return;
    }
    let expected = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; {UPDATE}=1 writes it", path.display()));
    if expected != actual {
        let line = expected.lines().zip(actual.lines()).take_while(|(a, b)| a == b).count();
        let rest = |text: &str| {
            text.lines().skip(line).take(12).map(|line| format!("  {line}\n")).collect::<String>()
        };
        panic!(
            "{name} differs from line {}; if that is meant, run the test with {UPDATE}=1 and commit\nexpected:\n{}\
             actual:\n{}",
            line + 1,
            rest(&expected),
            rest(actual)
        );
    }
}
