//! `train`: a scorer is fine-tuned on labelled pairs.

use cappy_proto::v1::{self, shard_task::Task};

use super::{
    model::{Model, hash_model, requirements},
    shards::Run,
};
use crate::{
    planner::graph::{OpenError, Opening, Outputs, StageId, Work},
    store::{Gang, GangKind, Requirements},
};

/// Name of a label stage's labelled pairs.
const EXAMPLES: &str = "examples.jsonl";

pub(in crate::planner) struct Train {
    pub(in crate::planner) run: Run,
    pub(in crate::planner) scorer: Model,
    pub(in crate::planner) examples: StageId,
    pub(in crate::planner) validation: Option<StageId>,
    pub(in crate::planner) settings: v1::FineTuning,
    /// Updates, estimated.
    pub(in crate::planner) updates: u64,
    /// Workers that train together; 0 or 1: one.
    pub(in crate::planner) data_parallel: u32,
}

/// Optimizer updates of one fine-tuning over `examples`, which may be an estimate.
pub(in crate::planner) fn updates(settings: &v1::FineTuning, examples: u64) -> u64 {
    let rows = match settings.train_size {
        0 => examples,
        size => size,
    };
    let per_update = u64::from(settings.batch_size.max(1)) * u64::from(settings.accumulate.max(1));
    rows.div_ceil(per_update).max(1)
}

impl Work for Train {
    fn kind(&self) -> &'static str {
        "train"
    }

    fn needs(&self) -> Vec<StageId> {
        self.scorer.need().into_iter().chain([self.examples]).chain(self.validation).collect()
    }

    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError> {
        let scorer = self.scorer.reference(outputs)?;
        let examples = outputs.named(self.examples, EXAMPLES)?;
        let validation = match self.validation {
            Some(stage) => outputs.named(stage, EXAMPLES)?,
            None => Vec::new(),
        };
        let mut hash = hash_model(self.run.fingerprint("train"), &scorer)
            .message("settings", &self.settings)
            .artifacts("examples", &examples)
            .artifacts("validation", &validation);
        let gang =
            (self.data_parallel > 1).then_some(Gang { kind: GangKind::Data, ranks: self.data_parallel });
        if let Some(gang) = gang {
            // Sums over ranks round differently: the weights are as good, but not the same bytes.
            hash = hash.field("data_parallel", &gang.ranks.to_be_bytes());
        }
        let fingerprint = hash.finish();
        let inputs: Vec<v1::Artifact> = examples.iter().chain(&validation).cloned().collect();
        let requirements = Requirements { gang, ..requirements(&scorer, &inputs) };
        let task = Task::Train(v1::TrainTask {
            scorer: Some(scorer),
            examples,
            settings: Some(self.settings),
            validation,
        });
        let shard = self.run.remote(task, self.updates, requirements);
        Ok(Opening { fingerprint: Some(fingerprint), shards: vec![shard], ..Default::default() })
    }
}
