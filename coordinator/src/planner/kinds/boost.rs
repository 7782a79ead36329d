//! `boost`: the best candidate of every row, which the rows bring or a generator makes.
//!
//! ```text
//! resolve -> [generate] -> score -> choose
//! ```

use cappy_proto::v1;

use super::{JobKind, decoding_names, input};
use crate::{
    local::{LocalTask, choose::Choose as ChooseTask},
    planner::{
        check::Check,
        graph::{Graph, Node, OpenError, Opening, Outputs, Publish, Registry, Rows, StageId, Work},
        stages::{Generate, Score, Wanted, local, local_fingerprint, max_tokens, refs, resolve},
    },
};

impl JobKind for v1::BoostSpec {
    fn word(&self) -> &'static str {
        "boost"
    }

    fn check(&self, check: &mut Check) {
        check.scorer(&self.scorer);
        check.dtype(&self.dtype);
        check.rows("input", self.input.as_ref());
        check.optional_generator(&self.model, self.endpoint.as_ref(), self.generation.as_ref());
    }

    fn inputs(&self) -> Vec<(String, &v1::Artifact)> {
        input("input", self.input.as_ref()).into_iter().collect()
    }

    fn title(&self) -> String {
        let by = if self.model.is_empty() { "given candidates" } else { &self.model };
        format!("{} over {by} on {}", self.scorer, self.input.as_ref().map_or("", |input| &input.name))
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
        let mut wanted = vec![Wanted::Scorer(&self.scorer)];
        if !self.model.is_empty() {
            wanted.push(Wanted::Generator(&self.model, self.endpoint.as_ref()));
        }
        let mut models = resolve(&mut graph, &run, registry, &wanted).into_iter();
        let scorer = models.next().expect("the scorer was asked for");
        let given = Rows::of_file(&input);
        let (rows, decodings) = match models.next() {
            None => (given, Vec::new()),
            Some(model) => {
                let work = Generate {
                    run: run.clone(),
                    model,
                    input: given,
                    settings: self.generation.clone().unwrap_or_default(),
                    log_likelihood: false,
                    // As the online service answers them.
                    row_namespace: String::new(),
                    model_shards: 0,
                };
                let stage = graph.add(Node::new("generate", input.rows, work).spares_rows());
                (Rows::Made { stage, rows: input.rows }, decoding_names(self.generation.as_ref()))
            }
        };
        let score = Score {
            run,
            scorer,
            input: rows,
            decodings: decodings.clone(),
            max_tokens: max_tokens(self.max_tokens),
            carry_rows: true,
        };
        let score = graph.add(Node::new("score", input.rows, score).spares_rows());
        let choose =
            Choose { name: input.name, rows: Rows::Made { stage: score, rows: input.rows }, decodings };
        let choose = Node::new("choose", input.rows, choose).publish(Publish::Named(String::new()));
        graph.add(choose.delivers());
        graph
    }
}

struct Choose {
    name: String,
    /// With their scores.
    rows: Rows,
    decodings: Vec<String>,
}

impl Work for Choose {
    fn kind(&self) -> &'static str {
        "choose"
    }

    fn needs(&self) -> Vec<StageId> {
        self.rows.need().into_iter().collect()
    }

    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError> {
        let task = LocalTask::Choose(ChooseTask {
            name: self.name.clone(),
            rows: refs(&self.rows.artifacts(outputs)?),
            decodings: self.decodings.clone(),
        });
        let units = self.rows.count(outputs);
        Ok(Opening {
            fingerprint: Some(local_fingerprint(&task)),
            shards: vec![local(&task, units)],
            ..Default::default()
        })
    }
}
