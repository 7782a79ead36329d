//! `bigbench`: the whole pipeline for one generator.
//!
//! ```text
//! resolve -> generate/S/train      -> label/S -> train/S -+
//!         -> generate/S/validation ----------------------+-> score/S -> select/S -> report
//! ```
//! for every subset S; a subset that brings its generations has no generate stages. Stages of one subset stand
//! together, so that first results come early.

use std::collections::HashSet;

use cappy_proto::v1;
use serde_json::{Map, Value};

use super::{JobKind, candidates, decoding_names, fine_tuning_settings, model_folder};
use crate::{
    local::{
        ArtifactRef, LocalTask, label::Label as LabelTask, report::Report as ReportTask,
        select::Select as SelectTask,
    },
    planner::{
        check::{Check, is_plain_name, shown},
        graph::{Graph, Node, OpenError, Opening, Outputs, Publish, Registry, Rows, StageId, Work, artifact},
        results::ResultPath,
        stages::{
            Generate, Model, Score, TRAINING_RECORD, Train, Wanted, local, local_fingerprint, refs, resolve,
            updates,
        },
    },
};

/// Subsets of one job.
const MAX_SUBSETS: usize = 1000;

impl JobKind for v1::BigbenchSpec {
    fn word(&self) -> &'static str {
        "bigbench"
    }

    fn check(&self, check: &mut Check) {
        check.generator("model", &self.model, self.endpoint.as_ref());
        check.scorer(&self.scorer);
        check.dtype(&self.dtype);
        check.model_shards(self.model_shards, &self.backend, self.endpoint.as_ref());
        check.data_parallel(self.data_parallel, &self.backend, self.fine_tuning.as_ref());
        check.that(!self.subsets.is_empty(), "subsets", "name at least one subset");
        check.that(self.subsets.len() <= MAX_SUBSETS, "subsets", "at most 1000 subsets a job");
        let mut names = HashSet::new();
        for (index, subset) in self.subsets.iter().enumerate() {
            let at = |field: &str| format!("subsets[{index}].{field}");
            check.that(
                is_plain_name(&subset.name),
                &at("name"),
                &format!("`{}` must be letters, digits, `_`, `-` and `.`", shown(&subset.name)),
            );
            let twice = format!("`{}` is there twice", shown(&subset.name));
            check.that(names.insert(&subset.name), &at("name"), &twice);
            check.that(subset.train.is_some(), &at("train"), "upload the train rows and name their artifact");
            check.that(
                subset.validation.is_some(),
                &at("validation"),
                "upload the validation rows and name their artifact",
            );
            let no_train = "a subset without train rows cannot be trained on";
            check.that(subset.train_rows > 0, &at("train_rows"), no_train);
            let no_validation = "a subset without validation rows has no result";
            check.that(subset.validation_rows > 0, &at("validation_rows"), no_validation);
        }
        check.generation(self.generation.as_ref());
        check.fine_tuning(self.fine_tuning.as_ref());
    }

    fn inputs(&self) -> Vec<(String, &v1::Artifact)> {
        let of_subset = |(index, subset)| {
            let subset: &v1::BigbenchSubset = subset;
            [("train", &subset.train), ("validation", &subset.validation)].into_iter().filter_map(
                move |(field, artifact)| Some((format!("subsets[{index}].{field}"), artifact.as_ref()?)),
            )
        };
        self.subsets.iter().enumerate().flat_map(of_subset).collect()
    }

    fn title(&self) -> String {
        let subsets = self.subsets.len();
        let plural = if subsets == 1 { "" } else { "s" };
        format!("{} with {} on {subsets} subset{plural}", self.model, self.scorer)
    }

    fn run(&self) -> (&str, &str) {
        (&self.backend, &self.dtype)
    }

    fn scorer_mut(&mut self) -> Option<&mut String> {
        Some(&mut self.scorer)
    }

    fn graph(&self, registry: Registry<'_>) -> Graph {
        let mut graph = Graph::of_parts("subset");
        let run = self.tasks();
        let folder = model_folder(&self.model).unwrap_or("model");
        let tuning = self.fine_tuning.unwrap_or_default();
        let decodings = decoding_names(self.generation.as_ref());
        let mut wanted = vec![Wanted::Scorer(&self.scorer)];
        if self.subsets.iter().any(|subset| !subset.generated) {
            wanted.push(Wanted::Generator(&self.model, self.endpoint.as_ref()));
        }
        let mut models = resolve(&mut graph, &run, registry, &wanted).into_iter();
        let scorer = models.next().expect("the scorer was asked for");
        let generator = models.next();

        let mut selected = Vec::new();
        for subset in &self.subsets {
            let name = &subset.name;
            let mut rows = |split: &str, artifact: &Option<v1::Artifact>, rows: u64| {
                let given = Rows::Given { artifact: artifact.clone().unwrap_or_default(), rows };
                let path = format!("{folder}/{name}_{split}.jsonl");
                if subset.generated {
                    let parts = artifact.iter().cloned().collect();
                    graph.given.push(ResultPath { path, parts });
                    return given;
                }
                let work = Generate {
                    run: run.clone(),
                    model: generator.clone().expect("the generator was asked for"),
                    input: given,
                    settings: self.generation.clone().unwrap_or_default(),
                    log_likelihood: split == "validation",
                    row_namespace: format!("{name}/{split}"),
                    model_shards: self.model_shards,
                };
                let node = Node::new(format!("generate/{name}/{split}"), rows, work);
                Rows::Made { stage: graph.add(node.publish(Publish::Rows(path))), rows }
            };
            let train_rows = rows("train", &subset.train, subset.train_rows);
            let validation_rows = rows("validation", &subset.validation, subset.validation_rows);
            let label = Label {
                subset: name.clone(),
                rows: train_rows,
                decodings: decodings.clone(),
                seed: tuning.seed,
            };
            let label = graph.add(Node::new(format!("label/{name}"), subset.train_rows, label));
            // A train row gives about two pairs of its reference and one a candidate.
            let examples = subset.train_rows * (2 + candidates(self.generation.as_ref()));
            let updates = updates(&tuning, examples);
            let train = Train {
                run: run.clone(),
                scorer: scorer.clone(),
                examples: label,
                validation: None,
                settings: tuning,
                updates,
                data_parallel: self.data_parallel,
            };
            // The model's files stay in the store; how it was trained is for people.
            let record =
                Publish::Only { output: TRAINING_RECORD, path: format!("{folder}/training/{name}.json") };
            let train = graph.add(Node::new(format!("train/{name}"), updates, train).publish(record));
            let score = Score {
                run: run.clone(),
                scorer: Model::Trained(train),
                input: validation_rows.clone(),
                decodings: decodings.clone(),
                max_tokens: tuning.max_tokens,
                carry_rows: false,
            };
            let score = graph.add(Node::new(format!("score/{name}"), subset.validation_rows, score));
            let select = Select {
                subset: name.clone(),
                rows: validation_rows,
                scores: score,
                decodings: decodings.clone(),
                seed: tuning.seed,
                settings: self.settings(),
                scorer: scorer.clone(),
                generator: generator.clone(),
            };
            let select = Node::new(format!("select/{name}"), subset.validation_rows, select)
                .publish(Publish::Named(folder.to_owned()));
            selected.push((name.clone(), graph.add(select.delivers())));
        }
        let report = Report { model: folder.to_owned(), selected, seed: tuning.seed };
        let report = Node::new("report", self.subsets.len() as u64, report);
        graph.add(report.publish(Publish::Named(folder.to_owned())));
        graph
    }
}

trait Settings {
    fn settings(&self) -> Map<String, Value>;
}

impl Settings for v1::BigbenchSpec {
    /// How a result came about, for the reader of its file; what the models are is added when it is known.
    fn settings(&self) -> Map<String, Value> {
        let mut settings = Map::new();
        settings.insert("model".into(), self.model.as_str().into());
        settings.insert("scorer".into(), self.scorer.as_str().into());
        settings.insert("decodings".into(), decoding_names(self.generation.as_ref()).into());
        settings.extend(fine_tuning_settings(&self.fine_tuning.unwrap_or_default()));
        if let Some(generation) = &self.generation {
            settings.insert("generation_seed".into(), generation.seed.into());
        }
        let dtype = if self.dtype.is_empty() { "auto" } else { &self.dtype };
        settings.insert("dtype".into(), dtype.into());
        settings
    }
}

struct Label {
    subset: String,
    rows: Rows,
    decodings: Vec<String>,
    seed: u64,
}

impl Work for Label {
    fn kind(&self) -> &'static str {
        "label"
    }

    fn needs(&self) -> Vec<StageId> {
        self.rows.need().into_iter().collect()
    }

    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError> {
        let task = LocalTask::Label(LabelTask {
            subset: self.subset.clone(),
            rows: refs(&self.rows.artifacts(outputs)?),
            decodings: self.decodings.clone(),
            seed: self.seed,
        });
        let fingerprint = local_fingerprint(&task);
        Ok(Opening {
            fingerprint: Some(fingerprint),
            shards: vec![local(&task, self.rows.expected())],
            ..Default::default()
        })
    }
}

struct Select {
    subset: String,
    rows: Rows,
    scores: StageId,
    decodings: Vec<String>,
    seed: u64,
    settings: Map<String, Value>,
    scorer: Model,
    generator: Option<Model>,
}

impl Select {
    /// Validation rows that the generator cut; unknown where the generations were brought along.
    fn truncated_rows(&self, outputs: &Outputs<'_>) -> Option<u64> {
        outputs.try_of(self.rows.need()?)?.iter().map(|shard| shard.truncated_rows).sum()
    }
}

impl Work for Select {
    fn kind(&self) -> &'static str {
        "select"
    }

    fn needs(&self) -> Vec<StageId> {
        self.rows.need().into_iter().chain([self.scores]).collect()
    }

    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError> {
        let mut settings = self.settings.clone();
        let models =
            [("scorer_fingerprint", Some(&self.scorer)), ("model_fingerprint", self.generator.as_ref())];
        for (name, model) in models {
            if let Some(fingerprint) = model.and_then(|model| model.fingerprint(outputs)) {
                settings.insert(name.into(), fingerprint.into());
            }
        }
        let task = LocalTask::Select(SelectTask {
            subset: self.subset.clone(),
            rows: refs(&self.rows.artifacts(outputs)?),
            scores: refs(&outputs.artifacts(self.scores)?),
            decodings: self.decodings.clone(),
            seed: self.seed,
            truncated_rows: self.truncated_rows(outputs),
            settings,
        });
        let fingerprint = local_fingerprint(&task);
        Ok(Opening {
            fingerprint: Some(fingerprint),
            shards: vec![local(&task, self.rows.expected())],
            ..Default::default()
        })
    }
}

/// Made of whatever subsets have a result.
struct Report {
    model: String,
    selected: Vec<(String, StageId)>,
    seed: u64,
}

impl Work for Report {
    fn kind(&self) -> &'static str {
        "report"
    }

    fn needs(&self) -> Vec<StageId> {
        self.selected.iter().map(|(_, stage)| *stage).collect()
    }

    fn opens_on_any(&self) -> bool {
        true
    }

    fn open(&self, outputs: &Outputs<'_>) -> Result<Opening, OpenError> {
        let mut results = Vec::new();
        for (subset, stage) in &self.selected {
            if let Some(shards) = outputs.try_of(*stage) {
                let result = shards.iter().flat_map(|shard| &shard.artifacts).next();
                let result = result.ok_or_else(|| OpenError(format!("`{subset}` has no result")))?;
                results.push((subset.clone(), ArtifactRef::from(&artifact(result))));
            }
        }
        let units = results.len() as u64;
        let task = LocalTask::Report(ReportTask { model: self.model.clone(), results, seed: self.seed });
        Ok(Opening {
            fingerprint: Some(local_fingerprint(&task)),
            shards: vec![local(&task, units)],
            ..Default::default()
        })
    }
}
