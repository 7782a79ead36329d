//! Checkpoints of training runs on this worker's disk.
//!
//! A run is named by everything that decides its numbers. Each checkpoint is a directory that appears by one rename,
//! so a crash or a full disk leaves the one before it intact. Beside them lie the weights of the best evaluated state:
//! that of now, and that of the newest checkpoint, to which a crash goes back.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use cappy_plugin_abi::Failure;
use sha2::{Digest as _, Sha256};

use crate::execution::{self, Evaluation};

/// What directories are called while they are written.
const UNFINISHED: &str = "unfinished-";
/// What the weights of a best state are called: this, and the number of its updates.
const BEST: &str = "best-";

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
    /// On the validation rows, oldest first.
    #[serde(default)]
    pub evaluations: Vec<Evaluation>,
}

impl RunState {
    /// Updates of the best evaluated state.
    pub fn best_update(&self) -> Option<u64> {
        execution::best(&self.evaluations).map(|best| best.update)
    }
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
    /// do not write over each other; its best state lies in `scratch`.
    pub fn run(&self, run: &Run, scratch: &Path) -> Checkpoints<'_> {
        let owned = self.active.lock().unwrap_or_else(PoisonError::into_inner).insert(run.clone());
        let dir = owned.then(|| self.dir.join(&run.0));
        let unfinished = dir.iter().flat_map(|dir| entries(dir, UNFINISHED));
        unfinished.for_each(|(_, left)| drop(fs::remove_dir_all(left)));
        Checkpoints {
            store: self,
            run: run.clone(),
            best_dir: dir.clone().unwrap_or_else(|| scratch.join("best")),
            dir,
            saved: Mutex::new(Saved { time: Instant::now(), best: None }),
        }
    }
}

/// The checkpoints of one run, while it goes on.
pub struct Checkpoints<'a> {
    store: &'a CheckpointStore,
    run: Run,
    dir: Option<PathBuf>,
    best_dir: PathBuf,
    saved: Mutex<Saved>,
}

/// About the newest checkpoint.
struct Saved {
    time: Instant,
    /// Updates of the best state that it knows.
    best: Option<u64>,
}

impl Checkpoints<'_> {
    /// Checkpoints whose best state is there, newest first.
    fn usable(&self) -> impl Iterator<Item = (RunState, PathBuf)> {
        self.list().into_iter().rev().filter_map(|(_, dir)| {
            let bytes = fs::read(dir.join("state.json")).ok()?;
            let state: RunState = serde_json::from_slice(&bytes).ok()?;
            state.best_update().is_none_or(|best| self.best(best).is_dir()).then_some((state, dir))
        })
    }

    /// The host's part of the newest checkpoint, for the other ranks of a group.
    pub fn newest(&self) -> Option<RunState> {
        self.usable().next().map(|(state, _)| state)
    }

    /// Loads the checkpoint after `updates` updates, on which the ranks of a group have agreed. One that is damaged is
    /// removed, so that the next attempt goes on from another.
    ///
    /// # Errors
    /// `load`'s, or that it is gone.
    pub fn load_agreed(
        &self,
        updates: u64,
        load: &mut dyn FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Some((state, dir)) = self.usable().find(|(state, _)| state.updates == updates) else {
            return Err(Failure::internal(format!("the checkpoint of update {updates} is gone")));
        };
        load(&dir.join("backend").to_string_lossy())
            .inspect(|()| self.saved().best = state.best_update())
            .inspect_err(|_| drop(fs::remove_dir_all(&dir)))
    }

    /// The newest checkpoint whose best state is there and that `load` accepts the backend's part of.
    pub fn load(&self, load: &mut dyn FnMut(&str) -> Result<(), Failure>) -> Option<RunState> {
        for (state, dir) in self.usable() {
            match load(&dir.join("backend").to_string_lossy()) {
                Ok(()) => {
                    self.saved().best = state.best_update();
                    return Some(state);
                }
                Err(failure) => tracing::warn!(%failure, "a checkpoint cannot be used"),
            }
        }
        None
    }

    /// Saves, if the last one is long enough ago. A failure is logged: training goes on, the last checkpoint stays.
    pub fn save_if_due(&self, state: &RunState, save: &mut dyn FnMut(&str) -> Result<(), Failure>) {
        let Some(dir) = &self.dir else { return };
        if self.saved().time.elapsed() < self.store.interval {
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
            self.saved().best = state.best_update();
            self.forget_best_but(state.best_update());
        }
        self.saved().time = Instant::now();
    }

    /// Keeps the weights after `updates` updates, which `save` writes: no evaluated state was better. The best of
    /// before is forgotten, unless the newest checkpoint may come back to it.
    ///
    /// # Errors
    /// When they cannot be written: without them the run could not end as it should.
    pub fn keep_best(
        &self,
        updates: u64,
        save: &mut dyn FnMut(&str) -> Result<(), Failure>,
    ) -> io::Result<()> {
        fs::create_dir_all(&self.best_dir)?;
        let unfinished = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&self.best_dir)?;
        save(&unfinished.path().to_string_lossy()).map_err(io::Error::other)?;
        sync_files(unfinished.path())?;
        let place = self.best(updates);
        if place.exists() {
            // From before a crash, with the same numbers.
            fs::remove_dir_all(&place)?;
        }
        fs::rename(unfinished.keep(), place)?;
        self.forget_best_but(Some(updates));
        Ok(())
    }

    /// Where [`Checkpoints::keep_best`] puts the state after so many updates.
    pub fn best(&self, updates: u64) -> PathBuf {
        self.best_dir.join(format!("{BEST}{updates}"))
    }

    fn forget_best_but(&self, kept: Option<u64>) {
        let known = self.saved().best;
        for (name, place) in entries(&self.best_dir, BEST) {
            let updates = name.parse().ok();
            if updates.is_some() && updates != kept && updates != known {
                let _ = fs::remove_dir_all(place);
            }
        }
    }

    fn saved(&self) -> std::sync::MutexGuard<'_, Saved> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run is complete: its checkpoints are not needed any more.
    pub fn finish(&self) {
        if let Some(dir) = &self.dir {
            let _ = fs::remove_dir_all(dir);
        }
    }

    fn list(&self) -> Vec<(u64, PathBuf)> {
        let entries = self.dir.iter().flat_map(|dir| entries(dir, ""));
        let mut all: Vec<(u64, PathBuf)> =
            entries.filter_map(|(name, path)| Some((name.parse().ok()?, path))).collect();
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
    let unfinished = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(dir)?;
    let backend = unfinished.path().join("backend");
    fs::create_dir(&backend)?;
    save(&backend.to_string_lossy()).map_err(io::Error::other)?;
    fs::write(unfinished.path().join("state.json"), serde_json::to_vec(state)?)?;
    sync_files(&backend)?;
    fs::File::open(unfinished.path().join("state.json"))?.sync_all()?;
    fs::rename(unfinished.keep(), dir.join(state.updates.to_string()))
}

/// Content before name: after a power cut what a directory's name promises is whole, or absent.
fn sync_files(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        fs::File::open(entry?.path())?.sync_all()?;
    }
    Ok(())
}

/// Entries whose names begin with `prefix`: the rest of the name, and where they are.
fn entries(dir: &Path, prefix: &str) -> Vec<(String, PathBuf)> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let name = entry.file_name();
        Some((name.to_str()?.strip_prefix(prefix)?.to_owned(), entry.path()))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(dir: &Path) -> String {
        fs::read_to_string(dir.join("w")).unwrap()
    }

    fn save(dir: &str, weights: &str) -> Result<(), Failure> {
        fs::write(Path::new(dir).join("w"), weights).map_err(|error| Failure::internal(error.to_string()))
    }

    #[test]
    fn the_newest_usable_checkpoint_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path().to_owned(), Duration::ZERO).unwrap();
        let run = Run::of(&["a", "b"]);
        assert_ne!(run, Run::of(&["ab", ""]));
        let state =
            |updates| RunState { updates, losses: vec![0.1 + 0.2; updates as usize], ..RunState::default() };
        {
            let mine = store.run(&run, dir.path());
            assert!(store.run(&run, dir.path()).dir.is_none(), "a second attempt has none");
            mine.save_if_due(&state(1), &mut |dir| save(dir, "1"));
            mine.save_if_due(&state(2), &mut |dir| save(dir, "2"));
            mine.save_if_due(&state(3), &mut |_| Err(Failure::internal("disk full")));
        }
        let again = store.run(&run, dir.path());
        let mut found = String::new();
        let loaded = again.load(&mut |dir| {
            found = weights(Path::new(dir));
            Ok(())
        });
        assert_eq!((loaded, found.as_str()), (Some(state(2)), "2"));
        assert_eq!(again.newest(), Some(state(2)));
        again.load_agreed(2, &mut |_| Ok(())).unwrap();
        assert!(again.load_agreed(1, &mut |_| Ok(())).unwrap_err().message.contains("update 1 is gone"));
        assert_eq!(again.load(&mut |_| Err(Failure::bad_model("damaged"))), None);
        assert!(again.load_agreed(2, &mut |_| Err(Failure::bad_model("damaged"))).is_err());
        assert_eq!(again.newest(), None, "a damaged one does not stand in the way of the next attempt");
        again.finish();
        assert_eq!(again.load(&mut |_| Ok(())), None);
    }

    #[test]
    fn the_best_state_of_the_newest_checkpoint_stays_until_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path().join("store"), Duration::ZERO).unwrap();
        let run = Run::of(&["a"]);
        let state = |losses: &[f64]| RunState {
            updates: losses.len() as u64,
            evaluations: (1..)
                .zip(losses)
                .map(|(update, &loss)| Evaluation { update, loss, spearman: None })
                .collect(),
            ..RunState::default()
        };
        let mine = store.run(&run, dir.path());
        let kept = |updates: u64| mine.best(updates).is_dir();
        mine.keep_best(1, &mut |dir| save(dir, "1")).unwrap();
        mine.save_if_due(&state(&[0.5]), &mut |dir| save(dir, "-"));
        mine.keep_best(2, &mut |dir| save(dir, "2")).unwrap();
        mine.keep_best(3, &mut |dir| save(dir, "3")).unwrap();
        assert_eq!([1, 2, 3].map(kept), [true, false, true], "a crash now goes back to update 1");
        mine.save_if_due(&state(&[0.5, 0.4, 0.3]), &mut |dir| save(dir, "-"));
        assert_eq!([1, 2, 3].map(kept), [false, false, true]);
        assert!(mine.keep_best(4, &mut |_| Err(Failure::internal("disk full"))).is_err());
        drop(mine);

        let again = store.run(&run, dir.path());
        assert_eq!(again.load(&mut |_| Ok(())).and_then(|state| state.best_update()), Some(3));
        assert_eq!(weights(&again.best(3)), "3");
        fs::remove_dir_all(again.best(3)).unwrap();
        assert_eq!(again.load(&mut |_| Ok(())), None, "without its best state a checkpoint is of no use");

        let second = store.run(&run, dir.path());
        second.keep_best(1, &mut |dir| save(dir, "own")).unwrap();
        assert_eq!((weights(&second.best(1)).as_str(), again.best(1).exists()), ("own", false));
    }
}
