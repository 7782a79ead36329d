//! `pretrain`: the scorer is trained on a mixture: labelled examples, and answers of generators labelled by ROUGE-L.
//!
//! ```text
//! resolve -> generate/M -> label/train -----+
//!                          label/validation +-> train -> register
//! ```
//! for every generator M.

use std::collections::HashSet;

use cappy_proto::v1;

use super::{
    JobKind, adapt::Examples, candidates, decoding_names, fine_tuning_settings, input, model_folder,
};
use crate::{
    local::{LocalTask, examples::Form, mix::Mix as MixTask},
    planner::{
        check::{Check, shown},
        graph::{Graph, Node, OpenError, Opening, Outputs, Publish, Registry, Rows, StageId, Work},
        stages::{Generate, Register, Train, Wanted, local, local_fingerprint, refs, resolve, updates},
    },
};

/// Generators of one job.
const MAX_MODELS: usize = 16;

impl JobKind for v1::PretrainSpec {
    fn word(&self) -> &'static str {
        "pretrain"
    }

    fn check(&self, check: &mut Check) {
        check.scorer(&self.scorer);
        check.dtype(&self.dtype);
        check.data_parallel(self.data_parallel, &self.backend, self.fine_tuning.as_ref());
        check.rows("examples", self.examples.as_ref());
        if let Some(validation) = &self.validation {
            check.rows("validation", Some(validation));
        }
        if let Some(prompts) = &self.prompts {
            check.rows("prompts", Some(prompts));
            check.that(!self.models.is_empty(), "models", "name the generators that answer the prompts");
            check.generation(self.generation.as_ref());
        } else {
            check.that(self.models.is_empty(), "prompts", "give the rows that the generators answer");
        }
        check.that(self.models.len() <= MAX_MODELS, "models", "at most 16 generators");
        let mut folders = HashSet::new();
        for (index, model) in self.models.iter().enumerate() {
            let field = format!("models[{index}]");
            check.generator(&field, model, None);
            let twice = format!("another generator is called `{}` too", shown(model));
            check.that(folders.insert(model_folder(model)), &field, &twice);
        }
        check.fine_tuning(self.fine_tuning.as_ref());
    }

    fn inputs(&self) -> Vec<(String, &v1::Artifact)> {
        let files = [
            ("examples", self.examples.as_ref()),
            ("prompts", self.prompts.as_ref()),
            ("validation", self.validation.as_ref()),
        ];
        files.into_iter().filter_map(|(field, file)| input(field, file)).collect()
    }

    fn title(&self) -> String {
        format!("{} pretrained on {}", self.scorer, self.examples.as_ref().map_or("", |file| &file.name))
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
        wanted.extend(self.models.iter().map(|model| Wanted::Generator(model, None)));
        let mut models = resolve(&mut graph, &run, registry, &wanted).into_iter();
        let scorer = models.next().expect("the scorer was asked for");

        let prompts = self.prompts.clone().unwrap_or_default();
        let mut answered = Vec::new();
        for (name, model) in self.models.iter().zip(models) {
            let work = Generate {
                run: run.clone(),
                model,
                input: Rows::of_file(&prompts),
                settings: self.generation.clone().unwrap_or_default(),
                log_likelihood: false,
                row_namespace: prompts.name.clone(),
                model_shards: 0,
            };
            let folder = model_folder(name).unwrap_or("model");
            // A mixture is as good without a row that no model can answer.
            let node = Node::new(format!("generate/{folder}"), prompts.rows, work).spares_rows();
            answered.push(Rows::Made { stage: graph.add(node), rows: prompts.rows });
        }
        let examples = self.examples.clone().unwrap_or_default();
        let pairs =
            examples.rows + prompts.rows * answered.len() as u64 * candidates(self.generation.as_ref());
        let mix = Mix {
            name: examples.name.clone(),
            examples: Rows::of_file(&examples),
            prompts: prompts.name.clone(),
            answered,
            decodings: decoding_names(self.generation.as_ref()),
            seed: tuning.seed,
            pairs,
        };
        let mut labels = vec![("train", graph.add(Node::new("label/train", pairs, mix)))];
        if let Some(file) = &self.validation {
            let work = Examples {
                name: file.name.clone(),
                form: Form::Labelled,
                rows: Rows::of_file(file),
                decodings: Vec::new(),
                seed: tuning.seed,
            };
            labels.push(("validation", graph.add(Node::new("label/validation", file.rows, work))));
        }
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
        settings.insert("models".into(), self.models.clone().into());
        settings.extend(fine_tuning_settings(&tuning));
        let register = Register { title: self.title(), scorer, train, labels, settings };
        graph.add(Node::new("register", 1, register).publish(Publish::Named(String::new())).delivers());
        graph
    }
}

/// The mixture: examples and labelled answers, each pair once, shuffled.
struct Mix {
    name: String,
    examples: Rows,
    prompts: String,
    answered: Vec<Rows>,
    decodings: Vec<String>,
    seed: u64,
    /// Expected.
    pairs: u64,
}

impl Work for Mix {
    fn kind(&self) -> &'static str {
        "label"
    }

    fn needs(&self) -> Vec<StageId> {
        self.answered.iter().filter_map(Rows::need).collect()
    }

    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError> {
        let mut answered = Vec::new();
        for rows in &self.answered {
            answered.extend(refs(&rows.artifacts(outputs)?));
        }
        let task = LocalTask::Mix(MixTask {
            name: self.name.clone(),
            examples: refs(&self.examples.artifacts(outputs)?),
            prompts: self.prompts.clone(),
            answered,
            decodings: self.decodings.clone(),
            seed: self.seed,
        });
        Ok(Opening {
            fingerprint: Some(local_fingerprint(&task)),
            shards: vec![local(&task, self.pairs)],
            ..Default::default()
        })
    }
}
