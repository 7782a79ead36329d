//! `register`: a trained model with its content fingerprint, for the store to give it an id, and the training's report.

use std::io::Read as _;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{ArtifactRef, LocalError, text_output};
use crate::{
    artifacts::ArtifactStore,
    store::{NamedOutput, NewModel, ShardOutput},
};

/// Largest record that is read: losses of millions of updates are below it.
const MAX_RECORD_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Register {
    pub(crate) title: String,
    pub(crate) files: Vec<NamedOutput>,
    /// `training.json` as the worker wrote it.
    pub(crate) training: ArtifactRef,
    /// Counts of labelled pairs by split.
    pub(crate) counts: Vec<(String, ArtifactRef)>,
    pub(crate) settings: Map<String, Value>,
}

impl Register {
    pub(super) fn run(&self, artifacts: &ArtifactStore) -> Result<ShardOutput, LocalError> {
        let fingerprint = content_fingerprint(&self.files);
        let training = read(artifacts, "training.json", &self.training)?;
        let mut report = Map::new();
        report.insert("title".into(), self.title.as_str().into());
        report.insert("fingerprint".into(), fingerprint.as_str().into());
        report.insert("settings".into(), self.settings.clone().into());
        for (split, counts) in &self.counts {
            report.insert(split.clone(), read(artifacts, "counts.json", counts)?);
        }
        // The whole history is in training.json; what it came to, here.
        let last = |list: &str| training.get(list)?.as_array()?.last().cloned();
        let figures = [
            ("updates", training.get("updates").cloned()),
            ("last_loss", last("losses")),
            ("best_update", training.get("best_update").cloned()),
            ("stopped_early", training.get("stopped_early").cloned()),
            ("evaluations", training.get("evaluations").cloned()),
        ];
        report.extend(figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        let report = format!("{:#}\n", Value::Object(report));
        let report = text_output(artifacts, "report.json", &report)?;
        let training = NamedOutput {
            name: "training.json".into(),
            id: self.training.id.clone(),
            size_bytes: self.training.size_bytes,
        };
        let model = NewModel { title: self.title.clone(), fingerprint, files: self.files.clone() };
        Ok(ShardOutput { artifacts: vec![training, report], model: Some(model), ..Default::default() })
    }
}

/// What the files are, as workers name a model that they put together from artifacts: the hash of its files' hashes
/// and names.
fn content_fingerprint(files: &[NamedOutput]) -> String {
    let mut lines: Vec<String> = files.iter().map(|file| format!("{} {}\n", file.id, file.name)).collect();
    lines.sort();
    hex::encode(Sha256::digest(lines.concat()))
}

fn read(artifacts: &ArtifactStore, name: &str, artifact: &ArtifactRef) -> Result<Value, LocalError> {
    let mut text = Vec::new();
    let reader = artifacts.reader([(artifact.id.clone(), artifact.size_bytes)]);
    reader.take(MAX_RECORD_BYTES).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(|error| LocalError::Bad(format!("{name} is not JSON: {error}")))
}
