//! `register`: a trained scorer becomes a model that other jobs and online calls name by its id, and the training is
//! reported. Runs on the coordinator.

use serde_json::{Map, Value};

use super::{
    model::{Model, trained_files},
    shards::{local, local_fingerprint, refs},
};
use crate::{
    local::{ArtifactRef, LocalTask, register::Register as RegisterTask},
    planner::graph::{OpenError, Opening, Outputs, StageId, Work},
};

/// Name under which a worker stores the training record beside the model's files.
pub(in crate::planner) const TRAINING_RECORD: &str = "training.json";
/// Name of a label stage's counts.
const COUNTS: &str = "counts.json";

pub(in crate::planner) struct Register {
    /// `demo adapted on train`
    pub(in crate::planner) title: String,
    /// What was trained.
    pub(in crate::planner) scorer: Model,
    pub(in crate::planner) train: StageId,
    /// Label stages by split.
    pub(in crate::planner) labels: Vec<(&'static str, StageId)>,
    /// How the model came about, for the reader of the report.
    pub(in crate::planner) settings: Map<String, Value>,
}

impl Work for Register {
    fn kind(&self) -> &'static str {
        "register"
    }

    fn needs(&self) -> Vec<StageId> {
        let labels = self.labels.iter().map(|(_, stage)| *stage);
        labels.chain([self.train]).collect()
    }

    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError> {
        let mut settings = self.settings.clone();
        if let Some(fingerprint) = self.scorer.fingerprint(outputs) {
            settings.insert("scorer_fingerprint".into(), fingerprint.into());
        }
        let mut counts = Vec::new();
        for (split, stage) in &self.labels {
            let found = outputs.named(*stage, COUNTS)?;
            counts.extend(found.first().map(|found| ((*split).to_owned(), ArtifactRef::from(found))));
        }
        let task = LocalTask::Register(RegisterTask {
            title: self.title.clone(),
            files: trained_files(outputs, self.train)?,
            training: refs(&outputs.named(self.train, TRAINING_RECORD)?).remove(0),
            counts,
            settings,
        });
        let fingerprint = local_fingerprint(&task);
        Ok(Opening { fingerprint: Some(fingerprint), shards: vec![local(&task, 1)], ..Default::default() })
    }
}
