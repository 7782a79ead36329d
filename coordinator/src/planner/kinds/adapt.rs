//! `adapt`: the scorer is fine-tuned on own rows and registered.
//!
//! ```text
//! resolve -> [generate/train]      -> label/train -----+
//!         -> [generate/validation] -> label/validation +-> train -> register
//! ```

use cappy_proto::v1;

use super::{JobKind, candidates, decoding_names, fine_tuning_settings, input};
use crate::{
    local::{
        LocalTask,
        examples::{Examples as ExamplesTask, Form},
    },
    planner::{
        check::Check,
        graph::{Graph, Node, OpenError, Opening, Outputs, Publish, Registry, Rows, StageId, Work},
        stages::{Generate, Register, Train, Wanted, local, local_fingerprint, refs, resolve, updates},
    },
};

impl JobKind for v1::AdaptSpec {
    fn word(&self) -> &'static str {
        "adapt"
    }

    fn check(&self, check: &mut Check) {
        check.scorer(&self.scorer);
        check.dtype(&self.dtype);
        check.data_parallel(self.data_parallel, &self.backend, self.fine_tuning.as_ref());
        check.rows("train", self.train.as_ref());
        if let Some(validation) = &self.validation {
            check.rows("validation", Some(validation));
        }
        let form = self.form();
        check.that(
            form != v1::ExampleForm::Unspecified,
            "form",
            "say whether rows bring labels or references",
        );
        check.optional_generator(&self.model, self.endpoint.as_ref(), self.generation.as_ref());
        let labelled = form == v1::ExampleForm::Labelled && !self.model.is_empty();
        check.that(!labelled, "model", "labelled rows need no generator; leave it empty");
        check.fine_tuning(self.fine_tuning.as_ref());
    }

    fn inputs(&self) -> Vec<(String, &v1::Artifact)> {
        let files = [("train", self.train.as_ref()), ("validation", self.validation.as_ref())];
        files.into_iter().filter_map(|(field, file)| input(field, file)).collect()
    }

    fn title(&self) -> String {
        format!("{} adapted on {}", self.scorer, self.train.as_ref().map_or("", |train| &train.name))
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
        let tuning = self.fine_tuning.unwrap_or_default();
        let mut wanted = vec![Wanted::Scorer(&self.scorer)];
        if !self.model.is_empty() {
            wanted.push(Wanted::Generator(&self.model, self.endpoint.as_ref()));
        }
        let mut models = resolve(&mut graph, &run, registry, &wanted).into_iter();
        let scorer = models.next().expect("the scorer was asked for");
        let generator = models.next();
        let form = match self.form() {
            v1::ExampleForm::References => Form::References,
            v1::ExampleForm::Labelled | v1::ExampleForm::Unspecified => Form::Labelled,
        };

        let splits = [("train", self.train.as_ref()), ("validation", self.validation.as_ref())];
        let splits = splits.map(|(split, file)| {
            let file = file?;
            let mut rows = Rows::of_file(file);
            if let Some(model) = &generator {
                let work = Generate {
                    run: run.clone(),
                    model: model.clone(),
                    input: rows,
                    settings: self.generation.clone().unwrap_or_default(),
                    log_likelihood: false,
                    row_namespace: format!("{}/{split}", file.name),
                    model_shards: 0,
                };
                // A training set is as good without a row that no model can answer.
                let node = Node::new(format!("generate/{split}"), file.rows, work).spares_rows();
                rows = Rows::Made { stage: graph.add(node), rows: file.rows };
            }
            Some((split, file, rows))
        });
        let labels: Vec<(&'static str, StageId)> = splits
            .into_iter()
            .flatten()
            .map(|(split, file, rows)| {
                let decodings = decoding_names(generator.as_ref().and(self.generation.as_ref()));
                let work = Examples { name: file.name.clone(), form, rows, decodings, seed: tuning.seed };
                (split, graph.add(Node::new(format!("label/{split}"), file.rows, work)))
            })
            .collect();

        let rows = self.train.as_ref().map_or(0, |train| train.rows);
        let pairs = match form {
            Form::Labelled => rows,
            Form::References => rows * (2 + candidates(self.generation.as_ref())),
        };
        let updates = updates(&tuning, pairs);
        let train = Train {
            run,
            scorer: scorer.clone(),
            examples: labels[0].1,
            validation: labels.get(1).map(|(_, stage)| *stage),
            settings: tuning,
            updates,
            data_parallel: self.data_parallel,
        };
        let train = graph.add(Node::new("train", updates, train));
        let mut settings = serde_json::Map::new();
        settings.insert("scorer".into(), self.scorer.as_str().into());
        if !self.model.is_empty() {
            settings.insert("model".into(), self.model.as_str().into());
        }
        settings.extend(fine_tuning_settings(&tuning));
        let register = Register { title: self.title(), scorer, train, labels, settings };
        graph.add(Node::new("register", 1, register).publish(Publish::Named(String::new())).delivers());
        graph
    }
}

/// Labelled pairs from the rows of one split.
pub(super) struct Examples {
    /// What the rows are called where one is bad.
    pub(super) name: String,
    pub(super) form: Form,
    pub(super) rows: Rows,
    pub(super) decodings: Vec<String>,
    pub(super) seed: u64,
}

impl Work for Examples {
    fn kind(&self) -> &'static str {
        "label"
    }

    fn needs(&self) -> Vec<StageId> {
        self.rows.need().into_iter().collect()
    }

    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError> {
        let task = LocalTask::Examples(ExamplesTask {
            name: self.name.clone(),
            form: self.form,
            rows: refs(&self.rows.artifacts(outputs)?),
            decodings: self.decodings.clone(),
            seed: self.seed,
        });
        let units = self.rows.count(outputs);
        Ok(Opening {
            fingerprint: Some(local_fingerprint(&task)),
            shards: vec![local(&task, units)],
            ..Default::default()
        })
    }
}
