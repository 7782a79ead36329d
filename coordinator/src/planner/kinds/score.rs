//! `score`: a scorer scores every row of a file.
//!
//! ```text
//! resolve -> score
//! ```

use cappy_proto::v1;

use super::{JobKind, input};
use crate::planner::{
    check::Check,
    graph::{Graph, Node, Publish, Registry, Rows},
    stages::{Score, Wanted, max_tokens, resolve},
};

impl JobKind for v1::ScoreSpec {
    fn word(&self) -> &'static str {
        "score"
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
        let scorer = resolve(&mut graph, &run, registry, &[Wanted::Scorer(&self.scorer)]).remove(0);
        let input = self.input.clone().unwrap_or_default();
        let work = Score {
            run,
            scorer,
            input: Rows::of_file(&input),
            decodings: Vec::new(),
            max_tokens: max_tokens(self.max_tokens),
            carry_rows: true,
        };
        let node = Node::new("score", input.rows, work);
        graph.add(node.publish(Publish::Rows(format!("{}.jsonl", input.name))).delivers().spares_rows());
        graph
    }
}
