//! Cuts an opening stage into shards and fingerprints it.

use cappy_proto::v1::{self, shard_task::Task};
use prost::Message as _;
use serde_json::{Map, Value};

use super::{
    bigbench::{StageKind, model_folder, updates},
    fingerprint::Fingerprint,
};
use crate::{
    local::{ArtifactRef, LocalTask},
    store::{NamedOutput, NewShard, Requirements, ResolvedModel, StageOutputs},
};

/// A stage is cut into about this many shards, within the limits below: enough for a cluster to share and for little
/// to be lost with a worker, few enough that batches stay full.
const SHARDS_AIMED: u64 = 8;
/// Rows of a generation shard, least and most.
const GENERATE_ROWS: (u64, u64) = (32, 128);
/// Rows of a scoring shard, least and most.
const SCORE_ROWS: (u64, u64) = (64, 512);
/// A stage never has more shards than this, however large the rows' number.
const MAX_SHARDS: u64 = 4096;

/// Name under which a worker stores the training record beside the model's files.
const TRAINING_RECORD: &str = "training.json";

/// An opening stage: its shards, and its fingerprint unless it must always run.
pub(super) struct Opening {
    pub(super) fingerprint: Option<String>,
    pub(super) shards: Vec<NewShard>,
}

/// What the stages before have produced.
pub(super) struct Inputs<'a> {
    pub(super) spec: &'a v1::BigbenchSpec,
    /// Outputs of a stage that has succeeded.
    pub(super) outputs: &'a dyn Fn(StageKind) -> Option<&'a StageOutputs>,
}

/// The stage cannot be opened, although all that it needs is complete.
#[derive(Debug, thiserror::Error)]
#[error("stage cannot start: {0}")]
pub(super) struct OpenError(String);

impl Inputs<'_> {
    pub(super) fn open(&self, kind: StageKind) -> Result<Opening, OpenError> {
        match kind {
            StageKind::Resolve => Ok(self.resolve()),
            StageKind::GenerateTrain(subset) => self.generate(subset, false),
            StageKind::GenerateValidation(subset) => self.generate(subset, true),
            StageKind::Label(subset) => self.label(subset),
            StageKind::Train(subset) => self.train(subset),
            StageKind::Score(subset) => self.score(subset),
            StageKind::Select(subset) => self.select(subset),
            StageKind::Report => self.report(),
        }
    }

    /// Always runs: what a name means may have changed since the last job.
    fn resolve(&self) -> Opening {
        let mut models = vec![v1::ResolveModel {
            name: self.spec.scorer.clone(),
            role: v1::ModelRole::Scorer.into(),
            endpoint: None,
        }];
        if self.spec.subsets.iter().any(|subset| !subset.generated) {
            models.push(v1::ResolveModel {
                name: self.spec.model.clone(),
                role: v1::ModelRole::Generator.into(),
                endpoint: None,
            });
        }
        let task = Task::ResolveModels(v1::ResolveModelsTask { models });
        Opening { fingerprint: None, shards: vec![self.remote(task, 1, vec![], vec![])] }
    }

    fn generate(&self, subset: usize, validation: bool) -> Result<Opening, OpenError> {
        let model = self.model(1, &self.spec.model)?;
        let row = &self.spec.subsets[subset];
        let (input, rows, split) = if validation {
            (&row.validation, row.validation_rows, "validation")
        } else {
            (&row.train, row.train_rows, "train")
        };
        let input: Vec<v1::Artifact> = input.iter().cloned().collect();
        let settings = self.spec.generation.clone().unwrap_or_default();
        let row_namespace = format!("{}/{split}", row.name);
        let fingerprint = self
            .fingerprint("generate")
            .text("model", &model.fingerprint)
            .message("settings", &settings)
            .text("row_namespace", &row_namespace)
            .field("log_likelihood", &[u8::from(validation)])
            .artifacts("input", &input)
            .finish();
        let shards = ranges(rows, GENERATE_ROWS)
            .map(|(row_start, row_end)| {
                let task = Task::Generate(v1::GenerateTask {
                    model: Some(model.clone()),
                    input: input.clone(),
                    row_start,
                    row_end,
                    settings: Some(settings.clone()),
                    log_likelihood: validation,
                    row_namespace: row_namespace.clone(),
                });
                self.remote(task, row_end - row_start, vec![model.fingerprint.clone()], ids(&input))
            })
            .collect();
        Ok(Opening { fingerprint: Some(fingerprint), shards })
    }

    fn label(&self, subset: usize) -> Result<Opening, OpenError> {
        let row = &self.spec.subsets[subset];
        let input = self.rows(subset, false)?;
        let task = LocalTask::Label {
            subset: row.name.clone(),
            rows: refs(&input),
            decodings: self.decodings(),
            seed: self.spec.fine_tuning.unwrap_or_default().seed,
        };
        let fingerprint = local_fingerprint(&task);
        Ok(Opening { fingerprint: Some(fingerprint), shards: vec![local(&task, row.train_rows)] })
    }

    fn train(&self, subset: usize) -> Result<Opening, OpenError> {
        let scorer = self.model(0, &self.spec.scorer)?;
        let examples = self.artifacts(StageKind::Label(subset))?;
        let settings = self.spec.fine_tuning.unwrap_or_default();
        let fingerprint = self
            .fingerprint("train")
            .text("scorer", &scorer.fingerprint)
            .message("settings", &settings)
            .artifacts("examples", &examples)
            .finish();
        let models = vec![scorer.fingerprint.clone()];
        let inputs = ids(&examples);
        let task = Task::Train(v1::TrainTask {
            scorer: Some(scorer),
            examples,
            settings: Some(settings),
            validation: Vec::new(),
        });
        let units = updates(self.spec, &self.spec.subsets[subset]);
        Ok(Opening { fingerprint: Some(fingerprint), shards: vec![self.remote(task, units, models, inputs)] })
    }

    fn score(&self, subset: usize) -> Result<Opening, OpenError> {
        let files: Vec<v1::NamedArtifact> = self
            .stage(StageKind::Train(subset))?
            .iter()
            .flat_map(|shard| &shard.artifacts)
            .filter(|output| output.name != TRAINING_RECORD)
            .map(|output| v1::NamedArtifact { name: output.name.clone(), artifact: Some(artifact(output)) })
            .collect();
        if files.is_empty() {
            return Err(OpenError("the fine-tuning left no model files".into()));
        }
        let input = self.rows(subset, true)?;
        let decodings = self.decodings();
        let max_tokens = self.spec.fine_tuning.unwrap_or_default().max_tokens;
        let mut hash = self.fingerprint("score").artifacts("input", &input);
        for file in &files {
            hash = hash.message("file", file);
        }
        for decoding in &decodings {
            hash = hash.text("decoding", decoding);
        }
        let fingerprint = hash.field("max_tokens", &max_tokens.to_be_bytes()).finish();
        let mut inputs = ids(&input);
        inputs.extend(files.iter().filter_map(|file| Some(file.artifact.as_ref()?.id.clone())));
        let scorer = v1::ModelRef {
            source: Some(v1::model_ref::Source::Files(v1::ModelFiles { files })),
            fingerprint: String::new(),
        };
        let shards = ranges(self.spec.subsets[subset].validation_rows, SCORE_ROWS)
            .map(|(row_start, row_end)| {
                let task = Task::Score(v1::ScoreTask {
                    scorer: Some(scorer.clone()),
                    input: input.clone(),
                    row_start,
                    row_end,
                    decodings: decodings.clone(),
                    max_tokens,
                    carry_rows: false,
                });
                self.remote(task, row_end - row_start, vec![], inputs.clone())
            })
            .collect();
        Ok(Opening { fingerprint: Some(fingerprint), shards })
    }

    fn select(&self, subset: usize) -> Result<Opening, OpenError> {
        let row = &self.spec.subsets[subset];
        let task = LocalTask::Select {
            subset: row.name.clone(),
            rows: refs(&self.rows(subset, true)?),
            scores: refs(&self.artifacts(StageKind::Score(subset))?),
            decodings: self.decodings(),
            seed: self.spec.fine_tuning.unwrap_or_default().seed,
            truncated_rows: self.truncated_rows(subset),
            settings: self.settings(),
        };
        let fingerprint = local_fingerprint(&task);
        Ok(Opening { fingerprint: Some(fingerprint), shards: vec![local(&task, row.validation_rows)] })
    }

    fn report(&self) -> Result<Opening, OpenError> {
        let mut results = Vec::new();
        for (index, subset) in self.spec.subsets.iter().enumerate() {
            if let Some(outputs) = (self.outputs)(StageKind::Select(index)) {
                let result = outputs.iter().flat_map(|shard| &shard.artifacts).next();
                let result = result.ok_or_else(|| OpenError(format!("`{}` has no result", subset.name)))?;
                results.push((subset.name.clone(), ArtifactRef::from(&artifact(result))));
            }
        }
        let model = model_folder(&self.spec.model).unwrap_or("model").to_owned();
        let units = results.len() as u64;
        let task = LocalTask::Report { model, results, seed: self.spec.fine_tuning.unwrap_or_default().seed };
        Ok(Opening { fingerprint: Some(local_fingerprint(&task)), shards: vec![local(&task, units)] })
    }

    fn stage(&self, kind: StageKind) -> Result<&StageOutputs, OpenError> {
        (self.outputs)(kind).ok_or_else(|| OpenError(format!("a {} stage has no outputs", kind.word())))
    }

    fn artifacts(&self, kind: StageKind) -> Result<Vec<v1::Artifact>, OpenError> {
        Ok(self.stage(kind)?.iter().flat_map(|shard| &shard.artifacts).map(artifact).collect())
    }

    /// The rows of a split with their candidates: made by this job, or brought along.
    fn rows(&self, subset: usize, validation: bool) -> Result<Vec<v1::Artifact>, OpenError> {
        let row = &self.spec.subsets[subset];
        match (row.generated, validation) {
            (true, true) => Ok(row.validation.iter().cloned().collect()),
            (true, false) => Ok(row.train.iter().cloned().collect()),
            (false, true) => self.artifacts(StageKind::GenerateValidation(subset)),
            (false, false) => self.artifacts(StageKind::GenerateTrain(subset)),
        }
    }

    /// Validation rows that the generator cut; unknown where the generations were brought along.
    fn truncated_rows(&self, subset: usize) -> Option<u64> {
        let shards = (self.outputs)(StageKind::GenerateValidation(subset))?;
        let counts: Option<Vec<u64>> = shards.iter().map(|shard| shard.truncated_rows).collect();
        Some(counts?.iter().sum())
    }

    /// How a result came about, for the reader of its file.
    fn settings(&self) -> Map<String, Value> {
        let tuning = self.spec.fine_tuning.unwrap_or_default();
        let schedule = match tuning.schedule() {
            v1::Schedule::Corrected => "corrected",
            v1::Schedule::Upstream | v1::Schedule::Unspecified => "upstream",
        };
        let mut settings = Map::new();
        let mut put = |name: &str, value: Value| settings.insert(name.to_owned(), value);
        put("model", self.spec.model.as_str().into());
        put("scorer", self.spec.scorer.as_str().into());
        let resolved = (self.outputs)(StageKind::Resolve);
        let fingerprints: Vec<&str> = resolved
            .iter()
            .flat_map(|shards| shards.iter())
            .flat_map(|shard| &shard.resolved)
            .map(|model| model.fingerprint.as_str())
            .collect();
        if let Some(fingerprint) = fingerprints.first() {
            put("scorer_fingerprint", (*fingerprint).into());
        }
        if let Some(fingerprint) = fingerprints.get(1) {
            put("model_fingerprint", (*fingerprint).into());
        }
        put("decodings", self.decodings().into());
        put("schedule", schedule.into());
        put("train_size", tuning.train_size.into());
        put("learning_rate", tuning.learning_rate.into());
        put("batch_size", tuning.batch_size.into());
        put("accumulate", tuning.accumulate.into());
        put("warmup", tuning.warmup.into());
        put("dropout", tuning.dropout.into());
        put("seed", tuning.seed.into());
        if let Some(generation) = &self.spec.generation {
            put("generation_seed", generation.seed.into());
        }
        put("dtype", if self.spec.dtype.is_empty() { "auto" } else { &self.spec.dtype }.into());
        settings
    }

    fn decodings(&self) -> Vec<String> {
        self.spec.generation.iter().flat_map(|g| &g.decodings).map(|d| d.name.clone()).collect()
    }

    /// The model that the resolve stage found at `place` of its list.
    fn model(&self, place: usize, name: &str) -> Result<v1::ModelRef, OpenError> {
        let resolved: Vec<&ResolvedModel> =
            self.stage(StageKind::Resolve)?.iter().flat_map(|shard| &shard.resolved).collect();
        let found = resolved.get(place).filter(|model| !model.fingerprint.is_empty());
        let found =
            found.ok_or_else(|| OpenError(format!("the worker did not say what model `{name}` is")))?;
        Ok(v1::ModelRef {
            source: Some(v1::model_ref::Source::Name(name.to_owned())),
            fingerprint: found.fingerprint.clone(),
        })
    }

    fn fingerprint(&self, kind: &str) -> Fingerprint {
        Fingerprint::of(kind).text("backend", &self.spec.backend).text("dtype", &self.spec.dtype)
    }

    fn remote(&self, task: Task, units: u64, models: Vec<String>, inputs: Vec<String>) -> NewShard {
        let task = v1::ShardTask {
            task: Some(task),
            backend: self.spec.backend.clone(),
            dtype: self.spec.dtype.clone(),
        };
        NewShard {
            task: task.encode_to_vec(),
            units,
            requirements: Requirements { local: false, backend: self.spec.backend.clone(), models, inputs },
        }
    }
}

fn local(task: &LocalTask, units: u64) -> NewShard {
    NewShard { task: task.encode(), units, requirements: Requirements { local: true, ..Default::default() } }
}

/// A local task names everything that decides its outputs.
fn local_fingerprint(task: &LocalTask) -> String {
    Fingerprint::of("local").field("task", &task.encode()).finish()
}

fn artifact(output: &NamedOutput) -> v1::Artifact {
    v1::Artifact { id: output.id.clone(), size_bytes: output.size_bytes }
}

fn ids(artifacts: &[v1::Artifact]) -> Vec<String> {
    artifacts.iter().map(|artifact| artifact.id.clone()).collect()
}

fn refs(artifacts: &[v1::Artifact]) -> Vec<ArtifactRef> {
    artifacts.iter().map(ArtifactRef::from).collect()
}

/// `[start, end)` ranges that cover `rows`, of near equal size.
fn ranges(rows: u64, (least, most): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let size = rows.div_ceil(SHARDS_AIMED).clamp(least, most).max(rows.div_ceil(MAX_SHARDS)).max(1);
    let shards = rows.div_ceil(size);
    (0..shards).map(move |shard| (shard * rows / shards, (shard + 1) * rows / shards))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_every_row_once() {
        for rows in [0, 1, 31, 33, 100, 1000, 58_736, 10_000_000] {
            let mut next = 0;
            let mut count = 0;
            for (start, end) in ranges(rows, GENERATE_ROWS) {
                assert_eq!(start, next);
                assert!(end > start, "{rows}");
                next = end;
                count += 1;
            }
            assert_eq!(next, rows);
            assert!(count <= MAX_SHARDS, "{rows} rows: {count} shards");
        }
        assert_eq!(ranges(100, GENERATE_ROWS).count(), 4);
        assert_eq!(ranges(1000, GENERATE_ROWS).count(), 8);
    }
}
