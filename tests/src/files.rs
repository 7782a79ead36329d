//! Files that tests compare.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

/// Every file below a folder, by its path relative to it with `/` between parts.
///
/// # Panics
/// When one cannot be read.
pub fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    collect(folder, "", &mut files);
    files
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("a readable entry").path();
        let name = format!("{prefix}{}", path.file_name().expect("an entry has a name").to_string_lossy());
        if path.is_dir() {
            collect(&path, &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read(&path).expect("a readable file"));
        }
    }
}

/// The rows of a JSON Lines file.
///
/// # Panics
/// When a line is no JSON.
#[track_caller]
pub fn json_lines(content: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(content).expect("JSON is UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}
