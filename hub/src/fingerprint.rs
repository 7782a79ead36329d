//! SHA-256 of files and of models, remembered by what the file system says about a file, so that gigabytes are
//! hashed once and not at every start.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Changes when the way a model's fingerprint is made does.
const FINGERPRINT_VERSION: &str = "cappy-model-1";

const READ_BYTES: usize = 1 << 20;

/// Hashes files and remembers the hashes in a directory.
#[derive(Clone, Debug)]
pub struct Fingerprints {
    remembered: PathBuf,
}

impl Fingerprints {
    /// Remembers in `dir`, which is made when needed. A directory that cannot be written costs time, not correctness.
    pub fn new(dir: PathBuf) -> Self {
        Self { remembered: dir }
    }

    /// Fingerprint of a model: lower-case hexadecimal SHA-256 over the names and contents of the given files, in the
    /// order of their names. The same content has the same fingerprint wherever it lies.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of_model<'a>(&self, dir: &Path, files: impl IntoIterator<Item = &'a str>) -> io::Result<String> {
        let mut files: Vec<&str> = files.into_iter().collect();
        files.sort_unstable();
        let mut hash = Sha256::new();
        hash.update(FINGERPRINT_VERSION);
        for file in files {
            hash.update(format!("\n{} {file}", self.of_file(&dir.join(file))?));
        }
        Ok(hex::encode(hash.finalize()))
    }

    /// Lower-case hexadecimal SHA-256 of a file's content; links are followed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_file(&self, path: &Path) -> io::Result<String> {
        let path = path.canonicalize()?;
        let mut file = File::open(&path)?;
        let memory = self.remembered.join(identity(&path, &file.metadata()?));
        if let Ok(known) = std::fs::read_to_string(&memory)
            && known.len() == 64
            && known.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return Ok(known);
        }
        let before = identity(&path, &file.metadata()?);
        let hash = sha256(&mut file)?;
        // A file that changed meanwhile must not be remembered under its old identity.
        if identity(&path, &file.metadata()?) == before
            && let Err(error) = self.remember(&memory, &hash)
        {
            tracing::debug!(%error, "fingerprint is not remembered");
        }
        Ok(hash)
    }

    /// Like [`Fingerprints::of_file`], but reads the file even if its hash is remembered.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn of_file_anew(path: &Path) -> io::Result<String> {
        sha256(&mut File::open(path)?)
    }

    fn remember(&self, memory: &Path, hash: &str) -> io::Result<()> {
        std::fs::create_dir_all(&self.remembered)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.remembered)?;
        file.write_all(hash.as_bytes())?;
        file.persist(memory)?;
        Ok(())
    }
}

/// A name for this state of this file: change time and inode see edits that keep size and modification time.
fn identity(path: &Path, metadata: &std::fs::Metadata) -> String {
    let mut hash = Sha256::new();
    hash.update(path.as_os_str().as_encoded_bytes());
    for number in [metadata.size(), metadata.dev(), metadata.ino()] {
        hash.update(number.to_le_bytes());
    }
    for number in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
        hash.update(number.to_le_bytes());
    }
    hex::encode(hash.finalize())
}

/// Lower-case hexadecimal SHA-256 of everything that `reader` yields.
pub(crate) fn sha256(reader: &mut impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hash.finalize())),
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_decides_and_edits_are_seen() {
        let [here, there, memory] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let prints = Fingerprints::new(memory.path().join("hashes"));
        for dir in [&here, &there] {
            std::fs::write(dir.path().join("a"), "one").unwrap();
            std::fs::write(dir.path().join("b"), "two").unwrap();
        }
        let first = prints.of_model(here.path(), ["a", "b"]).unwrap();
        assert_eq!(first, prints.of_model(there.path(), ["b", "a"]).unwrap());
        assert_eq!(first, prints.of_model(here.path(), ["a", "b"]).unwrap(), "remembered");
        assert_eq!(std::fs::read_dir(memory.path().join("hashes")).unwrap().count(), 4);

        // Same size, same modification time.
        let path = here.path().join("a");
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::fs::write(&path, "eno").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert_ne!(first, prints.of_model(here.path(), ["a", "b"]).unwrap());
        assert_eq!(
            prints.of_file(&there.path().join("b")).unwrap(),
            "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
        );
    }
}
