//! `accuracy`: how often the scorer's favourite is the right choice. Rows stream through.

use cappy_eval::promptsource::{self, PromptRow};
use serde::{Deserialize, Serialize};

use super::{ArtifactRef, LocalError, rows, text_output};
use crate::{artifacts::ArtifactStore, store::NamedOutput};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Accuracy {
    /// What the rows are called, without `.jsonl`.
    pub(crate) name: String,
    /// Prompted rows with `score`.
    pub(crate) rows: Vec<ArtifactRef>,
}

#[derive(Deserialize)]
struct Scored {
    #[serde(flatten)]
    row: PromptRow,
    /// JSON has no NaN: a score that is not a number is null.
    score: Option<f32>,
}

impl Accuracy {
    pub(super) fn run(&self, artifacts: &ArtifactStore) -> Result<Vec<NamedOutput>, LocalError> {
        let file = format!("{}.jsonl", self.name);
        let mut accuracy = promptsource::Accuracy::new();
        for (index, line) in rows::lines::<Scored>(artifacts, &file, &self.rows).enumerate() {
            let Scored { row, score } = line?;
            accuracy
                .add(&row, score.unwrap_or(f32::NAN))
                .map_err(|error| LocalError::Bad(format!("{file}: row {index}: {error}")))?;
        }
        let report = accuracy.finish();
        let json =
            serde_json::to_string_pretty(&report).map_err(|error| LocalError::Bad(error.to_string()))?;
        Ok(vec![
            text_output(artifacts, "report.json", &format!("{json}\n"))?,
            text_output(artifacts, "report.txt", &report.to_text())?,
        ])
    }
}
