//! The stages that the coordinator runs itself: they touch no model. Each is a pure computation of `cappy-eval` between
//! reading artifacts and writing them, on a thread of its own, leased and committed like any other shard.

pub(crate) mod accuracy;
pub(crate) mod choose;
pub(crate) mod examples;
pub(crate) mod label;
pub(crate) mod mix;
pub(crate) mod register;
pub(crate) mod report;
mod rows;
pub(crate) mod select;
#[cfg(test)]
mod testing;

use std::io::{self, Write as _};

use cappy_proto::v1;
use serde::{Deserialize, Serialize};

use crate::{
    artifacts::{ArtifactError, ArtifactStore, ArtifactWriter},
    store::{AttemptFailure, FailureClass, NamedOutput, ShardOutput},
};

/// What a local shard computes. Names everything that decides its outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub(crate) enum LocalTask {
    /// Training set of a benchmark's subset from generated train rows.
    Label(label::Label),
    /// Best candidates and figures from generated validation rows and their scores.
    Select(select::Select),
    /// Tables over the subsets.
    Report(report::Report),
    /// Best candidates of scored rows.
    Choose(choose::Choose),
    /// Zero-shot accuracy from scored rows.
    Accuracy(accuracy::Accuracy),
    /// Labelled pairs from own rows.
    Examples(examples::Examples),
    /// Labelled pairs from several sources, each once, shuffled.
    Mix(mix::Mix),
    /// A trained model gets an id, its training a report.
    Register(register::Register),
}

/// An artifact as a local task names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ArtifactRef {
    pub(crate) id: String,
    pub(crate) size_bytes: u64,
}

impl From<&v1::Artifact> for ArtifactRef {
    fn from(artifact: &v1::Artifact) -> Self {
        Self { id: artifact.id.clone(), size_bytes: artifact.size_bytes }
    }
}

impl LocalTask {
    /// As the store keeps it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a task is plain data")
    }

    /// From the store.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, LocalError> {
        serde_json::from_slice(bytes)
            .map_err(|_| LocalError::Bad("the task was written by another version of the coordinator".into()))
    }

    /// Computes the outputs. Blocks; for threads of `spawn_blocking`.
    pub(crate) fn run(&self, artifacts: &ArtifactStore) -> Result<ShardOutput, LocalError> {
        let outputs = match self {
            Self::Label(task) => task.run(artifacts)?,
            Self::Select(task) => task.run(artifacts)?,
            Self::Report(task) => task.run(artifacts)?,
            Self::Accuracy(task) => task.run(artifacts)?,
            Self::Examples(task) => task.run(artifacts)?,
            Self::Mix(task) => task.run(artifacts)?,
            Self::Choose(task) => return task.run(artifacts),
            Self::Register(task) => return task.run(artifacts),
        };
        Ok(ShardOutput { artifacts: outputs, ..Default::default() })
    }

    /// For the progress line.
    pub(crate) fn activity(&self) -> String {
        match self {
            Self::Label(_) | Self::Examples(_) => "measuring candidates",
            Self::Select(_) | Self::Choose(_) => "choosing the best candidates",
            Self::Report(_) => "making the tables",
            Self::Accuracy(_) => "counting right choices",
            Self::Mix(_) => "mixing and shuffling",
            Self::Register(_) => "writing the report",
        }
        .to_owned()
    }
}

/// Why a local stage failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalError {
    /// The data is at fault: it would fail again.
    #[error("{0}")]
    Bad(String),
    #[error("an artifact could not be read or written")]
    Io(#[from] io::Error),
    #[error("an artifact could not be stored")]
    Artifact(#[from] ArtifactError),
}

impl From<LocalError> for AttemptFailure {
    fn from(error: LocalError) -> Self {
        let (class, code) = match error {
            LocalError::Bad(_) => (FailureClass::Permanent, "invalid_argument"),
            // The job goes on when there is room again.
            LocalError::Io(ref error) if is_full(error) => (FailureClass::Infrastructure, "disk"),
            LocalError::Artifact(ArtifactError::Full(_)) => (FailureClass::Infrastructure, "disk"),
            LocalError::Io(_) | LocalError::Artifact(_) => (FailureClass::Attempt, "unavailable"),
        };
        Self { class, code: code.into(), message: error.to_string() }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn output(writer: ArtifactWriter, name: &str) -> Result<NamedOutput, LocalError> {
    let (id, size_bytes) = writer.finish()?;
    Ok(NamedOutput { name: name.to_owned(), id, size_bytes })
}

fn text_output(artifacts: &ArtifactStore, name: &str, text: &str) -> Result<NamedOutput, LocalError> {
    let mut writer = artifacts.writer()?;
    writer.write_all(text.as_bytes())?;
    output(writer, name)
}
