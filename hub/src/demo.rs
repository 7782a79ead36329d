//! The demo models, which travel inside the program, as a directory on disk.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cache::lock_file;
use crate::name::Role;

/// Writes the demo model of a role below `models_dir`, once for each content; its directory.
pub(crate) fn materialise(models_dir: &Path, role: Role) -> io::Result<PathBuf> {
    let files = match role {
        Role::Generator => cappy_demo::GENERATOR_FILES,
        Role::Scorer => cappy_demo::SCORER_FILES,
    };
    write_once(&models_dir.join("demo"), &role.to_string(), files)
}

fn write_once(parent: &Path, name: &str, files: &[(&str, &[u8])]) -> io::Result<PathBuf> {
    let mut hash = Sha256::new();
    for (file, content) in files {
        hash.update(format!("{file}\n{}\n", content.len()));
        hash.update(content);
    }
    let key = format!("{name}-{}", &hex::encode(hash.finalize())[..16]);
    let dir = parent.join(&key);
    let whole = || {
        files.iter().all(|(file, content)| {
            std::fs::metadata(dir.join(file)).is_ok_and(|found| found.len() == content.len() as u64)
        })
    };
    if whole() {
        return Ok(dir);
    }
    std::fs::create_dir_all(parent)?;
    let _lock = lock_file(&parent.join(format!("{key}.lock")))?;
    if whole() {
        return Ok(dir);
    }
    let making = parent.join(format!(".{key}"));
    for stale in [&making, &dir] {
        if stale.exists() {
            std::fs::remove_dir_all(stale)?;
        }
    }
    std::fs::create_dir(&making)?;
    for (file, content) in files {
        std::fs::write(making.join(file), content)?;
    }
    std::fs::rename(&making, &dir)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_copy_is_written_again() {
        let parent = tempfile::tempdir().unwrap();
        let files: &[(&str, &[u8])] = &[("config.json", b"{}"), ("model.safetensors", b"weights")];
        let dir = write_once(parent.path(), "scorer", files).unwrap();
        std::fs::write(dir.join("model.safetensors"), "wei").unwrap();
        assert_eq!(write_once(parent.path(), "scorer", files).unwrap(), dir);
        assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), b"weights");
        assert_ne!(write_once(parent.path(), "scorer", &files[..1]).unwrap(), dir);
    }
}
