//! `generate`: a generator answers rows.

use cappy_proto::v1::{self, shard_task::Task};

use super::{
    model::{Model, hash_model, requirements},
    ranks::{Split, split},
    shards::Run,
};
use crate::{
    planner::graph::{OpenError, Opening, Outputs, Rows, StageId, Work},
    store::{Gang, GangKind, Requirements},
};

/// Rows of a shard, least and most.
const ROWS: (u64, u64) = (32, 128);
/// Where every answer is paid for, little may be lost with a worker.
const ENDPOINT_ROWS: (u64, u64) = (1, 16);

pub(in crate::planner) struct Generate {
    pub(in crate::planner) run: Run,
    pub(in crate::planner) model: Model,
    pub(in crate::planner) input: Rows,
    pub(in crate::planner) settings: v1::GenerationSettings,
    pub(in crate::planner) log_likelihood: bool,
    /// With a row's index, its randomness key.
    pub(in crate::planner) row_namespace: String,
    /// Workers that hold the model together; 0: as many as its memory needs.
    pub(in crate::planner) model_shards: u32,
}

impl Work for Generate {
    fn kind(&self) -> &'static str {
        "generate"
    }

    fn needs(&self) -> Vec<StageId> {
        self.model.need().into_iter().chain(self.input.need()).collect()
    }

    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError> {
        let model = self.model.reference(outputs)?;
        let input = self.input.artifacts(outputs)?;
        let fingerprint = hash_model(self.run.fingerprint("generate"), &model)
            .message("settings", &self.settings)
            .text("row_namespace", &self.row_namespace)
            .field("log_likelihood", &[u8::from(self.log_likelihood)])
            .artifacts("input", &input)
            .finish();
        // How many workers hold the model is no part of the fingerprint: they give what one gives.
        let found = self.model.found(outputs);
        let split = match found {
            Some((name, found)) => split(name, found, self.model_shards, outputs.memory)?,
            None => Split { ranks: 1, ..Split::default() },
        };
        let gang = (split.ranks > 1).then_some(Gang { kind: GangKind::Tensor, ranks: split.ranks });
        let requirements =
            Requirements { gang, memory_bytes: split.rank_bytes, ..requirements(&model, &input) };
        let task = Task::Generate(v1::GenerateTask {
            model: Some(model),
            input,
            settings: Some(self.settings.clone()),
            log_likelihood: self.log_likelihood,
            row_namespace: self.row_namespace.clone(),
            ..Default::default()
        });
        let limits = if self.model.is_endpoint() { ENDPOINT_ROWS } else { ROWS };
        let shards = self.run.over_rows(task, self.input.count(outputs), limits, requirements);
        Ok(Opening { fingerprint: Some(fingerprint), shards, message: split.reason })
    }
}
