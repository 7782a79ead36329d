//! `select`: the best candidate of every validation row of one subset, measured.

use cappy_eval::selection::{self, SelectionOptions};

use super::{LocalError, LocalTask, rows, text_output};
use crate::{artifacts::ArtifactStore, store::NamedOutput};

pub(super) fn run(artifacts: &ArtifactStore, task: &LocalTask) -> Result<Vec<NamedOutput>, LocalError> {
    let LocalTask::Select { subset, rows: parts, scores, decodings, seed, truncated_rows, settings } = task
    else {
        return Err(LocalError::Bad("not a select task".into()));
    };
    let rows = rows::generated(artifacts, &format!("{subset}_validation.jsonl"), parts, decodings)?;
    let scores = rows::scores(artifacts, &format!("{subset}_scores.jsonl"), scores)?;
    let options =
        SelectionOptions { seed: *seed, truncated_rows: *truncated_rows, settings: settings.clone() };
    let result = selection::select(&rows, &scores, options)
        .map_err(|error| LocalError::Bad(format!("{subset}: {error}")))?;
    let text = result.to_json().map_err(|error| LocalError::Bad(error.to_string()))?;
    Ok(vec![text_output(artifacts, &format!("{subset}.json"), &text)?])
}
