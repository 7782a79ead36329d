//! `score`: a scorer scores the candidates of rows.

use cappy_proto::v1::{self, shard_task::Task};

use super::{
    model::{Model, hash_model, requirements},
    shards::Run,
};
use crate::planner::graph::{OpenError, Opening, Outputs, Rows, StageId, Work};

/// Rows of a shard, least and most.
const ROWS: (u64, u64) = (64, 512);
/// Tokens kept of a pair unless the spec says otherwise: the scorer's own limit, as in the reference implementation.
const MAX_TOKENS: u32 = 512;

pub(in crate::planner) struct Score {
    pub(in crate::planner) run: Run,
    pub(in crate::planner) scorer: Model,
    pub(in crate::planner) input: Rows,
    /// Order of the candidates in `flan_samples`; none: as in the row.
    pub(in crate::planner) decodings: Vec<String>,
    pub(in crate::planner) max_tokens: u32,
    /// Whole rows with their scores instead of scores alone.
    pub(in crate::planner) carry_rows: bool,
}

/// Tokens kept of a pair, 0 being the default.
pub(in crate::planner) const fn max_tokens(asked: u32) -> u32 {
    if asked == 0 { MAX_TOKENS } else { asked }
}

impl Work for Score {
    fn kind(&self) -> &'static str {
        "score"
    }

    fn needs(&self) -> Vec<StageId> {
        self.input.need().into_iter().chain(self.scorer.need()).collect()
    }

    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError> {
        let scorer = self.scorer.reference(outputs)?;
        let input = self.input.artifacts(outputs)?;
        let mut hash = hash_model(self.run.fingerprint("score"), &scorer).artifacts("input", &input);
        for decoding in &self.decodings {
            hash = hash.text("decoding", decoding);
        }
        let fingerprint = hash
            .field("max_tokens", &self.max_tokens.to_be_bytes())
            .field("carry_rows", &[u8::from(self.carry_rows)])
            .finish();
        let requirements = requirements(&scorer, &input);
        let task = Task::Score(v1::ScoreTask {
            scorer: Some(scorer),
            input,
            decodings: self.decodings.clone(),
            max_tokens: self.max_tokens,
            carry_rows: self.carry_rows,
            ..Default::default()
        });
        let shards = self.run.over_rows(task, self.input.count(outputs), ROWS, requirements);
        Ok(Opening { fingerprint: Some(fingerprint), shards, ..Default::default() })
    }
}
