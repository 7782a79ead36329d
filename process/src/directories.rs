//! Where a user's state lives when nothing else is said.

use std::{env, path::PathBuf};

/// The data directory: `CAPPY_DATA_DIR`, else `$XDG_DATA_HOME/cappy`, else `~/.local/share/cappy`.
///
/// `None` when there is no home either; the caller asks for `--data-dir`.
pub fn default_data_dir() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CAPPY_DATA_DIR")
        .or_else(|| set("XDG_DATA_HOME").map(|dir| dir.join("cappy")))
        .or_else(|| set("HOME").map(|home| home.join(".local/share/cappy")))
}
