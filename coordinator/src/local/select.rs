//! `select`: the best candidate of every validation row of one subset, measured.

use cappy_eval::selection::{self, SelectionOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ArtifactRef, LocalError, rows, text_output};
use crate::{artifacts::ArtifactStore, store::NamedOutput};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Select {
    pub(crate) subset: String,
    pub(crate) rows: Vec<ArtifactRef>,
    pub(crate) scores: Vec<ArtifactRef>,
    pub(crate) decodings: Vec<String>,
    pub(crate) seed: u64,
    pub(crate) truncated_rows: Option<u64>,
    /// How the result came about, for the reader of the file.
    pub(crate) settings: Map<String, Value>,
}

impl Select {
    pub(super) fn run(&self, artifacts: &ArtifactStore) -> Result<Vec<NamedOutput>, LocalError> {
        let subset = &self.subset;
        let name = format!("{subset}_validation.jsonl");
        let rows = rows::generated(artifacts, &name, &self.rows, &self.decodings)?;
        let scores = rows::scores(artifacts, &format!("{subset}_scores.jsonl"), &self.scores)?;
        let options = SelectionOptions {
            seed: self.seed,
            truncated_rows: self.truncated_rows,
            settings: self.settings.clone(),
        };
        let result = selection::select(&rows, &scores, options)
            .map_err(|error| LocalError::Bad(format!("{subset}: {error}")))?;
        let text = result.to_json().map_err(|error| LocalError::Bad(error.to_string()))?;
        Ok(vec![text_output(artifacts, &format!("{subset}.json"), &text)?])
    }
}
