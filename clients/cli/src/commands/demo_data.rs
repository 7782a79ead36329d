//! The demo benchmark as a data folder: its `task.json` files go through the same import as BIG-bench's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cappy_eval::bigbench::{self, ImportOptions};

use crate::{
    failure::{Context as _, Failure, Outcome},
    line_input::explain,
};

/// Writes the tasks' sources and the data folder below `directory`; returns the data folder.
pub fn write(directory: &Path) -> Outcome<PathBuf> {
    let sources = directory.join("demo_benchmark");
    for (path, content) in cappy_demo::BENCHMARK_FILES {
        let path = sources.join(path);
        let parent = path.parent().expect("a benchmark file lies in its task's folder");
        fs::create_dir_all(parent).context(format!("cannot create `{}`", parent.display()))?;
        fs::write(&path, content).context(format!("cannot write `{}`", path.display()))?;
    }
    let data = directory.join("demo_data");
    import(&sources, &data)?;
    Ok(data)
}

fn import(sources: &Path, data: &Path) -> Outcome<()> {
    bigbench::import(sources, data, &ImportOptions::default(), &mut |_| {})
        .map(drop)
        .map_err(|error| Failure::failed(explain(&error)))
}

/// Only the data folder, at `output`.
pub fn write_data(output: &Path) -> Outcome<()> {
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let made = write(scratch.path())?;
    fs::create_dir_all(output).context(format!("cannot create `{}`", output.display()))?;
    for entry in fs::read_dir(&made)? {
        let entry = entry?;
        fs::copy(entry.path(), output.join(entry.file_name()))
            .context(format!("cannot write into `{}`", output.display()))?;
    }
    Ok(())
}
