//! `label`: the scorer's training set of one subset.

use cappy_eval::{
    rows::{JsonStyle, write_json_line},
    training_set,
};

use super::{ArtifactRef, LocalError, output, rows};
use crate::{artifacts::ArtifactStore, store::NamedOutput};

pub(super) fn run(
    artifacts: &ArtifactStore,
    subset: &str,
    parts: &[ArtifactRef],
    decodings: &[String],
    seed: u64,
) -> Result<Vec<NamedOutput>, LocalError> {
    let rows = rows::generated(artifacts, &format!("{subset}_train.jsonl"), parts, decodings)?;
    let set = training_set::build(&rows, seed).map_err(|error| LocalError::Bad(error.to_string()))?;
    drop(rows);
    let mut writer = artifacts.writer()?;
    for example in &set.examples {
        write_json_line(&mut writer, example, JsonStyle::Compact).map_err(std::io::Error::from)?;
    }
    Ok(vec![output(writer, "examples.jsonl")?])
}
