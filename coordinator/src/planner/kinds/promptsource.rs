//! `promptsource`: zero-shot accuracy on prompted classification tasks.
//!
//! ```text
//! resolve -> score -> accuracy
//! ```

use cappy_proto::v1;

use super::{JobKind, input};
use crate::{
    local::{LocalTask, accuracy::Accuracy as AccuracyTask},
    planner::{
        check::Check,
        graph::{Graph, Node, OpenError, Opening, Outputs, Publish, Registry, Rows, StageId, Work},
        stages::{Score, Wanted, local, local_fingerprint, max_tokens, refs, resolve},
    },
};

impl JobKind for v1::PromptsourceSpec {
    fn word(&self) -> &'static str {
        "promptsource"
    }

    fn check(&self, check: &mut Check) {
        check.scorer(&self.scorer);
        check.dtype(&self.dtype);
        check.rows("input", self.input.as_ref());
    }

    fn inputs(&self) -> Vec<(String, &v1::Artifact)> {
        input("input", self.input.as_ref()).into_iter().collect()
    }

    fn title(&self) -> String {
        format!("{} on {}", self.scorer, self.input.as_ref().map_or("", |input| &input.name))
    }

    fn run(&self) -> (&str, &str) {
        (&self.backend, &self.dtype)
    }

    fn scorer_mut(&mut self) -> Option<&mut String> {
        Some(&mut self.scorer)
    }

    fn graph(&self, registry: Registry<'_>) -> Graph {
        let mut graph = Graph::of_parts("");
        let run = self.tasks();
        let input = self.input.clone().unwrap_or_default();
        let scorer = resolve(&mut graph, &run, registry, &[Wanted::Scorer(&self.scorer)]).remove(0);
        let score = Score {
            run,
            scorer,
            input: Rows::of_file(&input),
            decodings: Vec::new(),
            max_tokens: max_tokens(self.max_tokens),
            carry_rows: true,
        };
        // An accuracy over the rows that happened to pass would be another figure: a row that fails fails the job.
        let score = graph.add(Node::new("score", input.rows, score));
        let accuracy = Accuracy { name: input.name, rows: Rows::Made { stage: score, rows: input.rows } };
        let accuracy = Node::new("accuracy", input.rows, accuracy).publish(Publish::Named(String::new()));
        graph.add(accuracy.delivers());
        graph
    }
}

struct Accuracy {
    name: String,
    /// With their scores.
    rows: Rows,
}

impl Work for Accuracy {
    fn kind(&self) -> &'static str {
        "accuracy"
    }

    fn needs(&self) -> Vec<StageId> {
        self.rows.need().into_iter().collect()
    }

    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError> {
        let rows = refs(&self.rows.artifacts(outputs)?);
        let task = LocalTask::Accuracy(AccuracyTask { name: self.name.clone(), rows });
        let units = self.rows.count(outputs);
        Ok(Opening {
            fingerprint: Some(local_fingerprint(&task)),
            shards: vec![local(&task, units)],
            ..Default::default()
        })
    }
}
