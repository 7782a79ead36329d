//! Answers that were paid for, on disk: a file a row and decoding, named by the hash of all that they depend on.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Answers that nobody asked for again for so long are removed.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// The answers of a worker. Cheap to clone.
#[derive(Clone)]
pub struct Answers {
    dir: PathBuf,
}

/// What is kept of one row and decoding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Samples in order; maybe not all that are wanted.
    pub texts: Vec<String>,
    /// Of the prompt, as the endpoint counted.
    pub input_tokens: u64,
    /// Of the samples, as the endpoint counted.
    pub output_tokens: u64,
}

/// Names what is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Of all that answers depend on, part by part.
    pub fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hex::encode(hash.finalize()))
    }
}

impl Answers {
    /// Those in a directory, which need not exist. Old ones are removed in the background.
    pub fn new(dir: PathBuf) -> Self {
        if dir.exists() {
            let dir = dir.clone();
            let _ =
                std::thread::Builder::new().name("cappy-answers".to_owned()).spawn(move || prune(&dir, KEPT));
        }
        Self { dir }
    }

    /// What is there; a damaged file is as good as none.
    pub fn read(&self, name: &Name) -> Kept {
        let path = self.path(name);
        let text = fs::read(&path).unwrap_or_default();
        let kept = serde_json::from_slice(&text).unwrap_or_default();
        if !text.is_empty() {
            // Used: it stays for another while.
            let _ = fs::File::options()
                .append(true)
                .open(&path)
                .and_then(|file| file.set_modified(SystemTime::now()));
        }
        kept
    }

    /// Keeps answers. A disk that cannot costs a repetition, not the work.
    pub fn write(&self, name: &Name, kept: &Kept) {
        let written = || -> io::Result<()> {
            let path = self.path(name);
            let dir = path.parent().expect("a file is in a directory");
            fs::create_dir_all(dir)?;
            let file = tempfile::NamedTempFile::new_in(dir)?;
            serde_json::to_writer(&file, kept)?;
            file.persist(path).map_err(|error| error.error)?;
            Ok(())
        };
        if let Err(error) = written() {
            tracing::warn!(%error, "cannot keep an endpoint's answer");
        }
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.dir.join(&name.0[..2]).join(&name.0[2..])
    }
}

fn prune(dir: &Path, kept: Duration) {
    let files = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let old = |path: &Path| {
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
        modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > kept))
    };
    for file in files(dir).flat_map(|dir| files(&dir).collect::<Vec<_>>()) {
        if old(&file) {
            // Another worker of this machine may have done it.
            let _ = fs::remove_file(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_by_all_that_they_depend_on() {
        let dir = tempfile::tempdir().unwrap();
        let answers = Answers::new(dir.path().join("answers"));
        let name = Name::of(&["url", "model", "prompt"]);
        assert_ne!(name, Name::of(&["url", "modelp", "rompt"]), "parts do not run together");
        assert_eq!(answers.read(&name), Kept::default());
        let kept = Kept { texts: vec!["a".into(), "b\n".into()], input_tokens: 3, output_tokens: 4 };
        answers.write(&name, &kept);
        assert_eq!(Answers::new(dir.path().join("answers")).read(&name), kept);
        fs::write(answers.path(&name), "{\"texts\": [\"a\"").unwrap();
        assert_eq!(answers.read(&name), Kept::default(), "cut short");
        answers.write(&name, &kept);
        prune(&answers.dir, Duration::from_secs(60));
        assert_eq!(answers.read(&name), kept);
        prune(&answers.dir, Duration::ZERO);
        assert_eq!(answers.read(&name), Kept::default());
    }
}
