//! `label`: the scorer's training set of one subset of a benchmark.

use cappy_eval::{
    rows::{JsonStyle, write_json_line},
    training_set,
};
use serde::{Deserialize, Serialize};

use super::{ArtifactRef, LocalError, output, rows};
use crate::{artifacts::ArtifactStore, store::NamedOutput};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) subset: String,
    pub(crate) rows: Vec<ArtifactRef>,
    pub(crate) decodings: Vec<String>,
    pub(crate) seed: u64,
}

impl Label {
    pub(super) fn run(&self, artifacts: &ArtifactStore) -> Result<Vec<NamedOutput>, LocalError> {
        let name = format!("{}_train.jsonl", self.subset);
        let rows = rows::generated(artifacts, &name, &self.rows, &self.decodings)?;
        let set =
            training_set::build(&rows, self.seed).map_err(|error| LocalError::Bad(error.to_string()))?;
        drop(rows);
        let mut writer = artifacts.writer()?;
        for example in &set.examples {
            write_json_line(&mut writer, example, JsonStyle::Compact).map_err(std::io::Error::from)?;
        }
        Ok(vec![output(writer, "examples.jsonl")?])
    }
}
