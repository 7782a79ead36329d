//! The hub's cache on disk, in the layout that its Python library reads and writes:
//!
//! ```text
//! models--google--flan-t5-small/
//!   blobs/<etag>                      content; `<etag>.incomplete` while it is being downloaded
//!   refs/main                         the commit that the branch had
//!   snapshots/<commit>/config.json -> ../../blobs/<etag>
//! .locks/models--google--flan-t5-small/<etag>.lock
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The cache of one repository.
#[derive(Clone, Debug)]
pub struct RepoCache {
    dir: PathBuf,
    locks: PathBuf,
}

/// One commit of a repository, as far as it has been downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The commit's hash.
    pub commit: String,
    /// Where its files are.
    pub dir: PathBuf,
}

const FOLDER_PREFIX: &str = "models--";

/// The folder of a repository inside a cache.
fn folder_name(repo: &str) -> String {
    format!("{FOLDER_PREFIX}{}", repo.replace('/', "--"))
}

/// The repository of a folder inside a cache.
pub(crate) fn repo_of_folder(folder: &str) -> Option<String> {
    folder.strip_prefix(FOLDER_PREFIX).map(|name| name.replacen("--", "/", 1))
}

/// Whether a revision is a full commit hash.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

impl RepoCache {
    /// `repo` is a valid repository id.
    pub fn new(cache_dir: &Path, repo: &str) -> Self {
        let folder = folder_name(repo);
        Self { dir: cache_dir.join(&folder), locks: cache_dir.join(".locks").join(folder) }
    }

    /// The snapshot of a branch, tag or commit, if any of it was ever downloaded.
    pub fn snapshot(&self, revision: &str) -> Option<Snapshot> {
        let commit = match fs::read_to_string(self.dir.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        let dir = self.snapshot_dir(&commit);
        (is_commit(&commit) && dir.is_dir()).then_some(Snapshot { commit, dir })
    }

    /// All snapshots, with the refs that point at them.
    pub(crate) fn snapshots(&self) -> Vec<(Snapshot, Vec<String>)> {
        let mut refs = Vec::new();
        let root = self.dir.join("refs");
        collect_refs(&root, &root, &mut refs);
        let Ok(entries) = fs::read_dir(self.dir.join("snapshots")) else { return Vec::new() };
        let mut all: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                let commit = entry.file_name().into_string().ok().filter(|name| is_commit(name))?;
                let pointing = refs.iter().filter(|(_, at)| *at == commit).map(|(name, _)| name.clone());
                let pointing = pointing.collect();
                Some((Snapshot { commit, dir: entry.path() }, pointing))
            })
            .collect();
        all.sort_by(|a, b| a.0.commit.cmp(&b.0.commit));
        all
    }

    pub(crate) fn snapshot_dir(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Waits until no other process, ours or Python's, writes this blob. Released when dropped.
    pub(crate) fn lock(&self, etag: &str) -> io::Result<File> {
        fs::create_dir_all(&self.locks)?;
        fs::create_dir_all(self.dir.join("blobs"))?;
        lock_file(&self.locks.join(format!("{etag}.lock")))
    }

    /// Makes `file` of a snapshot a relative link to a blob.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> io::Result<PathBuf> {
        let pointer = self.snapshot_dir(commit).join(file);
        let parent = pointer.parent().expect("a file in a snapshot has a parent");
        fs::create_dir_all(parent)?;
        let depth = 2 + file.matches('/').count();
        let target = Path::new(&"../".repeat(depth)).join("blobs").join(etag);
        if fs::read_link(&pointer).is_ok_and(|now| now == target) {
            return Ok(pointer);
        }
        // A link cannot be replaced in place: make it beside and rename.
        let beside = parent.join(format!(".{etag}.{}", std::process::id()));
        let _ = fs::remove_file(&beside);
        std::os::unix::fs::symlink(&target, &beside)?;
        fs::rename(&beside, &pointer)?;
        Ok(pointer)
    }

    /// Remembers what a branch or tag points at.
    pub(crate) fn set_ref(&self, revision: &str, commit: &str) -> io::Result<()> {
        if revision == commit {
            return Ok(());
        }
        write_atomically(&self.dir.join("refs").join(revision), commit.as_bytes())
    }
}

fn collect_refs(root: &Path, dir: &Path, refs: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_refs(root, &path, refs);
        } else if let (Ok(commit), Ok(name)) = (fs::read_to_string(&path), path.strip_prefix(root)) {
            refs.push((name.to_string_lossy().into_owned(), commit.trim().to_owned()));
        }
    }
}

/// An exclusive lock that other processes see, and that ends with this process at the latest.
pub(crate) fn lock_file(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.lock()?;
    Ok(file)
}

/// Readers see the old content or the new, never a part.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let parent = path.parent().expect("a file has a parent");
    fs::create_dir_all(parent)?;
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn the_layout_is_the_hubs() {
        let root = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(root.path(), "google/flan-t5-small");
        assert_eq!(cache.snapshot("main"), None);
        let lock = cache.lock("abc").unwrap();
        fs::write(cache.blob("abc"), "content").unwrap();
        drop(lock);
        for _ in 0..2 {
            cache.link(COMMIT, "config.json", "abc").unwrap();
            cache.link(COMMIT, "sub/config.json", "abc").unwrap();
            cache.set_ref("main", COMMIT).unwrap();
            cache.set_ref("refs/pr/1", COMMIT).unwrap();
        }

        let repo = root.path().join("models--google--flan-t5-small");
        let snapshot = repo.join("snapshots").join(COMMIT);
        assert_eq!(fs::read_link(snapshot.join("config.json")).unwrap(), Path::new("../../blobs/abc"));
        assert_eq!(fs::read_to_string(snapshot.join("sub/config.json")).unwrap(), "content");
        assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
        assert!(root.path().join(".locks/models--google--flan-t5-small/abc.lock").exists());
        for revision in ["main", "refs/pr/1", COMMIT] {
            assert_eq!(cache.snapshot(revision).unwrap().dir, snapshot, "{revision}");
        }
        assert_eq!(cache.snapshot("v2"), None);
        let mut refs = cache.snapshots().remove(0).1;
        refs.sort();
        assert_eq!(refs, ["main", "refs/pr/1"]);
        assert_eq!(repo_of_folder("models--google--flan-t5-small").unwrap(), "google/flan-t5-small");
    }
}
