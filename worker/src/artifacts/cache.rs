//! Files by the hash of their content, within a limit: the one used longest ago and not in use leaves first.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

/// An artifact on local disk; it stays there while this lives.
#[derive(Clone, Debug)]
pub struct CachedFile {
    path: PathBuf,
    _pin: Arc<()>,
}

impl CachedFile {
    /// Where it is. Read only.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Artifacts on local disk.
#[derive(Debug)]
pub struct ArtifactCache {
    dir: PathBuf,
    limit_bytes: u64,
    index: Mutex<Index>,
    downloads: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Debug, Default)]
struct Index {
    entries: HashMap<String, Entry>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    size: u64,
    used: u64,
    pin: Arc<()>,
}

impl ArtifactCache {
    /// What is in `dir` from before stays usable.
    ///
    /// # Errors
    /// When the directory cannot be made or listed.
    pub fn open(dir: PathBuf, limit_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(dir.join("partial"))?;
        let mut found: Vec<(SystemTime, String, u64)> = Vec::new();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if metadata.is_file() && is_id(&name) {
                let time = metadata.accessed().or_else(|_| metadata.modified());
                found.push((time.unwrap_or(SystemTime::UNIX_EPOCH), name, metadata.len()));
            }
        }
        found.sort();
        let mut index = Index::default();
        for (_, id, size) in found {
            index.clock += 1;
            index.entries.insert(id, Entry { size, used: index.clock, pin: Arc::default() });
        }
        Ok(Self { dir, limit_bytes, index: Mutex::new(index), downloads: Mutex::default() })
    }

    /// The artifact, if it is here.
    pub fn get(&self, id: &str) -> Option<CachedFile> {
        let mut index = self.index();
        index.clock += 1;
        let used = index.clock;
        let entry = index.entries.get_mut(id)?;
        entry.used = used;
        let file = CachedFile { path: self.dir.join(id), _pin: Arc::clone(&entry.pin) };
        // Somebody may have cleaned up by hand.
        if !file.path.exists() {
            index.entries.remove(id);
            return None;
        }
        Some(file)
    }

    /// Takes a file with this content in, by renaming it.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn adopt(&self, id: &str, file: &Path) -> io::Result<CachedFile> {
        let size = fs::metadata(file)?.len();
        let path = self.dir.join(id);
        if fs::rename(file, &path).is_err() {
            // Another file system: copied under a temporary name first, so that no reader sees half of it.
            let copy = tempfile::NamedTempFile::new_in(&self.dir)?;
            fs::copy(file, copy.path())?;
            copy.persist(&path)?;
            fs::remove_file(file)?;
        }
        let mut index = self.index();
        index.clock += 1;
        let used = index.clock;
        let entry =
            index.entries.entry(id.to_owned()).or_insert_with(|| Entry { size, used, pin: Arc::default() });
        entry.used = used;
        let cached = CachedFile { path, _pin: Arc::clone(&entry.pin) };
        for evicted in index.evict(self.limit_bytes) {
            let _ = fs::remove_file(self.dir.join(evicted));
        }
        Ok(cached)
    }

    /// Where a download that breaks off leaves what it has.
    pub(super) fn partial(&self, id: &str) -> PathBuf {
        self.dir.join("partial").join(id)
    }

    /// One download at a time for each artifact.
    pub(super) fn download_lock(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(id.to_owned()).or_default())
    }

    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    /// Drops entries until the rest fits or is in use; returns their ids.
    fn evict(&mut self, limit: u64) -> Vec<String> {
        let mut evicted = Vec::new();
        let mut total: u64 = self.entries.values().map(|entry| entry.size).sum();
        while total > limit {
            let oldest = self
                .entries
                .iter()
                .filter(|(_, entry)| Arc::strong_count(&entry.pin) == 1)
                .min_by_key(|(_, entry)| entry.used)
                .map(|(id, _)| id.clone());
            let Some(id) = oldest else { break };
            total -= self.entries.remove(&id).map_or(0, |entry| entry.size);
            evicted.push(id);
        }
        evicted
    }
}

/// A lower-case hexadecimal SHA-256; anything else must not become a path.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_used_longest_ago_leaves_unless_it_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ArtifactCache::open(dir.path().join("cache"), 25).unwrap();
        let id = |n: u8| format!("{n:064x}");
        let put = |n: u8| {
            let file = dir.path().join("new");
            fs::write(&file, [n; 10]).unwrap();
            cache.adopt(&id(n), &file).unwrap()
        };
        let held = put(1);
        drop(put(2));
        drop(put(3));
        assert!(cache.get(&id(2)).is_none() && cache.get(&id(3)).is_some(), "1 is in use");
        drop(held);
        drop(cache.get(&id(1)));
        drop(put(4));
        assert!(cache.get(&id(3)).is_none() && cache.get(&id(1)).is_some());

        let again = ArtifactCache::open(dir.path().join("cache"), 25).unwrap();
        assert_eq!(fs::read(again.get(&id(4)).unwrap().path()).unwrap(), [4; 10]);
        fs::remove_file(dir.path().join("cache").join(id(4))).unwrap();
        assert!(again.get(&id(4)).is_none());
    }
}
