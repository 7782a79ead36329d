//! Checkpoints of training runs on this worker's disk.
//!
//! A run is named by everything that decides its numbers. Each checkpoint is a directory that appears by one rename,
//! so a crash or a full disk leaves the one before it intact.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use cappy_plugin_abi::Failure;
use sha2::{Digest as _, Sha256};

/// Checkpoints that nobody came back to.
const ABANDONED_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Name of a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Run(String);

impl Run {
    /// From all parts that decide its numbers.
    pub fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hex::encode(hash.finalize()))
    }
}

/// Where a run stands; what the backend's own checkpoint does not hold.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RunState {
    /// Updates done.
    pub updates: u64,
    /// Mean loss of each.
    pub losses: Vec<f64>,
    /// Rate of each.
    pub learning_rates: Vec<f64>,
    /// Tokens read.
    pub tokens: u64,
    /// Examples that were cut.
    pub truncated_rows: u64,
}

/// All checkpoints of a worker.
pub struct CheckpointStore {
    dir: PathBuf,
    interval: Duration,
    active: Mutex<HashSet<Run>>,
}

impl CheckpointStore {
    /// Below `dir`, at most one every `interval` for each run. Abandoned ones are removed.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(dir: PathBuf, interval: Duration) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)?.flatten() {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age = modified.map(|time| SystemTime::now().duration_since(time).unwrap_or_default());
            if age.is_ok_and(|age| age > ABANDONED_AFTER) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(Self { dir, interval, active: Mutex::default() })
    }

    /// The checkpoints of one run. A second attempt of a run that is still going on here gets none, so that the two
    /// do not write over each other.
    pub fn run(&self, run: &Run) -> Checkpoints<'_> {
        let owned = self.active.lock().unwrap_or_else(PoisonError::into_inner).insert(run.clone());
        Checkpoints {
            store: self,
            run: run.clone(),
            dir: owned.then(|| self.dir.join(&run.0)),
            last: Mutex::new(Instant::now()),
        }
    }
}

/// The checkpoints of one run, while it goes on.
pub struct Checkpoints<'a> {
    store: &'a CheckpointStore,
    run: Run,
    dir: Option<PathBuf>,
    last: Mutex<Instant>,
}

impl Checkpoints<'_> {
    /// The newest checkpoint that `load` accepts the backend's part of.
    pub fn load(&self, load: &mut dyn FnMut(&str) -> Result<(), Failure>) -> Option<RunState> {
        for (_, dir) in self.list().into_iter().rev() {
            let state = fs::read(dir.join("state.json"))
                .ok()
                .and_then(|bytes| serde_json::from_slice::<RunState>(&bytes).ok());
            let Some(state) = state else { continue };
            match load(&dir.join("backend").to_string_lossy()) {
                Ok(()) => return Some(state),
                Err(failure) => tracing::warn!(%failure, "a checkpoint cannot be used"),
            }
        }
        None
    }

    /// Saves, if the last one is long enough ago. A failure is logged: training goes on, the last checkpoint stays.
    pub fn save_if_due(&self, state: &RunState, save: &mut dyn FnMut(&str) -> Result<(), Failure>) {
        let Some(dir) = &self.dir else { return };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() < self.store.interval {
            return;
        }
        if let Err(error) = write(dir, state, save) {
            tracing::warn!(%error, "cannot write a checkpoint");
        } else {
            for (updates, old) in self.list() {
                if updates < state.updates {
                    let _ = fs::remove_dir_all(old);
                }
            }
        }
        *last = Instant::now();
    }

    /// The run is complete: its checkpoints are not needed any more.
    pub fn finish(&self) {
        if let Some(dir) = &self.dir {
            let _ = fs::remove_dir_all(dir);
        }
    }

    fn list(&self) -> Vec<(u64, PathBuf)> {
        let entries = self.dir.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        let mut all: Vec<(u64, PathBuf)> = entries
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .collect();
        all.sort();
        all
    }
}

impl Drop for Checkpoints<'_> {
    fn drop(&mut self) {
        if self.dir.is_some() {
            self.store.active.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.run);
        }
    }
}

fn write(dir: &Path, state: &RunState, save: &mut dyn FnMut(&str) -> Result<(), Failure>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let unfinished = tempfile::Builder::new().prefix("unfinished-").tempdir_in(dir)?;
    let backend = unfinished.path().join("backend");
    fs::create_dir(&backend)?;
    save(&backend.to_string_lossy()).map_err(io::Error::other)?;
    fs::write(unfinished.path().join("state.json"), serde_json::to_vec(state)?)?;
    // Content before name: after a power cut a checkpoint is whole or absent.
    for entry in fs::read_dir(&backend)? {
        fs::File::open(entry?.path())?.sync_all()?;
    }
    fs::File::open(unfinished.path().join("state.json"))?.sync_all()?;
    fs::rename(unfinished.keep(), dir.join(state.updates.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_usable_checkpoint_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path().to_owned(), Duration::ZERO).unwrap();
        let run = Run::of(&["a", "b"]);
        assert_ne!(run, Run::of(&["ab", ""]));
        let state =
            |updates| RunState { updates, losses: vec![0.1 + 0.2; updates as usize], ..RunState::default() };
        let save = |dir: &str, weights: &str| {
            fs::write(Path::new(dir).join("w"), weights).unwrap();
            Ok(())
        };
        {
            let mine = store.run(&run);
            assert!(store.run(&run).dir.is_none(), "a second attempt has none");
            mine.save_if_due(&state(1), &mut |dir| save(dir, "1"));
            mine.save_if_due(&state(2), &mut |dir| save(dir, "2"));
            mine.save_if_due(&state(3), &mut |_| Err(Failure::internal("disk full")));
        }
        let again = store.run(&run);
        let mut weights = String::new();
        let loaded = again.load(&mut |dir| {
            weights = fs::read_to_string(Path::new(dir).join("w")).unwrap();
            Ok(())
        });
        assert_eq!((loaded, weights.as_str()), (Some(state(2)), "2"));
        assert_eq!(again.load(&mut |_| Err(Failure::bad_model("damaged"))), None);
        again.finish();
        assert_eq!(again.load(&mut |_| Ok(())), None);
    }
}
