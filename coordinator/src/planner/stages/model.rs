//! Which model a task runs, from wherever it comes.

use cappy_proto::v1::{self, model_ref::Source};

use super::{register::TRAINING_RECORD, shards::ids};
use crate::{
    planner::{
        fingerprint::Fingerprint,
        graph::{OpenError, Outputs, StageId, artifact},
    },
    store::{NamedOutput, Requirements, ResolvedModel},
};

/// A model of a job.
#[derive(Clone, Debug)]
pub(in crate::planner) enum Model {
    /// The one that the resolve stage found at `place` of its list.
    Resolved { stage: StageId, place: usize, name: String },
    /// Behind an endpoint, which the resolve stage asked at `place` of its list.
    Endpoint { stage: StageId, place: usize, endpoint: v1::Endpoint },
    /// Made by an earlier job.
    Registered { files: Vec<NamedOutput>, fingerprint: String },
    /// Made by a stage of this job.
    Trained(StageId),
}

impl Model {
    pub(super) fn need(&self) -> Option<StageId> {
        match self {
            Self::Resolved { stage, .. } | Self::Endpoint { stage, .. } | Self::Trained(stage) => {
                Some(*stage)
            }
            Self::Registered { .. } => None,
        }
    }

    /// What the worker that found it says about it; nothing where it was not looked for by name.
    pub(super) fn found<'a>(&self, outputs: &Outputs<'a>) -> Option<(&str, &'a ResolvedModel)> {
        let Self::Resolved { stage, place, name } = self else { return None };
        let mut models = outputs.try_of(*stage)?.iter().flat_map(|shard| &shard.resolved);
        Some((name, models.nth(*place)?))
    }

    pub(super) const fn is_endpoint(&self) -> bool {
        matches!(self, Self::Endpoint { .. })
    }

    /// As a task names it.
    pub(super) fn reference(&self, outputs: &Outputs<'_>) -> Result<v1::ModelRef, OpenError> {
        match self {
            Self::Resolved { stage, place, name } => Ok(v1::ModelRef {
                source: Some(Source::Name(name.clone())),
                fingerprint: resolved(outputs, *stage, *place, name)?,
            }),
            Self::Endpoint { stage, place, endpoint } => Ok(v1::ModelRef {
                source: Some(Source::Endpoint(endpoint.clone())),
                fingerprint: resolved(outputs, *stage, *place, &endpoint.model)?,
            }),
            Self::Registered { files, fingerprint } => Ok(of_files(files, fingerprint.clone())),
            Self::Trained(stage) => {
                let files: Vec<NamedOutput> = trained_files(outputs, *stage)?;
                Ok(of_files(&files, String::new()))
            }
        }
    }

    /// The content, if it is known yet.
    pub(in crate::planner) fn fingerprint(&self, outputs: &Outputs<'_>) -> Option<String> {
        Some(self.reference(outputs).ok()?.fingerprint).filter(|fingerprint| !fingerprint.is_empty())
    }
}

/// The files of a model that a stage of this job trained.
pub(super) fn trained_files(outputs: &Outputs<'_>, stage: StageId) -> Result<Vec<NamedOutput>, OpenError> {
    let files: Vec<NamedOutput> = outputs
        .of(stage)?
        .iter()
        .flat_map(|shard| &shard.artifacts)
        .filter(|output| output.name != TRAINING_RECORD)
        .cloned()
        .collect();
    if files.is_empty() { Err(OpenError("the fine-tuning left no model files".into())) } else { Ok(files) }
}

fn of_files(files: &[NamedOutput], fingerprint: String) -> v1::ModelRef {
    let files = files
        .iter()
        .map(|file| v1::NamedArtifact { name: file.name.clone(), artifact: Some(artifact(file)) })
        .collect();
    v1::ModelRef { source: Some(Source::Files(v1::ModelFiles { files })), fingerprint }
}

fn resolved(outputs: &Outputs<'_>, stage: StageId, place: usize, name: &str) -> Result<String, OpenError> {
    let models: Vec<&ResolvedModel> = outputs.of(stage)?.iter().flat_map(|shard| &shard.resolved).collect();
    let found = models.get(place).filter(|model| !model.fingerprint.is_empty());
    let found = found.ok_or_else(|| OpenError(format!("the worker did not say what model `{name}` is")))?;
    Ok(found.fingerprint.clone())
}

/// The part of a fingerprint that says which model computes.
pub(super) fn hash_model(hash: Fingerprint, model: &v1::ModelRef) -> Fingerprint {
    match &model.source {
        Some(Source::Files(files)) if model.fingerprint.is_empty() => {
            files.files.iter().fold(hash, |hash, file| hash.message("file", file))
        }
        // What an endpoint says of itself need not tell it from another of the same model; how fast it may be asked
        // changes nothing.
        Some(Source::Endpoint(endpoint)) => hash
            .text("endpoint", &endpoint.url)
            .text("endpoint model", &endpoint.model)
            .text("model", &model.fingerprint),
        _ => hash.text("model", &model.fingerprint),
    }
}

/// What a worker had better have at hand to run `model` over `inputs`.
pub(super) fn requirements(model: &v1::ModelRef, inputs: &[v1::Artifact]) -> Requirements {
    let mut wanted = Requirements { inputs: ids(inputs), ..Default::default() };
    match &model.source {
        Some(Source::Endpoint(_)) => wanted.endpoint = true,
        Some(Source::Files(files)) => {
            wanted
                .inputs
                .extend(files.files.iter().filter_map(|file| Some(file.artifact.as_ref()?.id.clone())));
        }
        _ => {}
    }
    if !model.fingerprint.is_empty() && !wanted.endpoint {
        wanted.models.push(model.fingerprint.clone());
    }
    wanted
}

#[cfg(test)]
mod tests {
    use cappy_proto::{JobId, ModelId};

    use super::*;
    use crate::{
        planner::testing::{decodings, file, first_task, graph_of, layout, next_steps, record, rows_of, set},
        store::{ModelRecord, RowRange, StageState::Succeeded, Step},
    };

    #[test]
    fn a_registered_scorer_needs_no_search_and_comes_as_files() {
        let model = ModelRecord {
            id: ModelId::generate(),
            job: JobId::generate(),
            title: "cappy adapted on mine".into(),
            created: 0,
            fingerprint: "content".into(),
            files: vec![NamedOutput { name: "model.safetensors".into(), id: "f".into(), size_bytes: 1 }],
        };
        let kind = v1::job_spec::Kind::Score(v1::ScoreSpec {
            scorer: model.id.to_string(),
            input: file("in", 200),
            ..Default::default()
        });
        let graph = graph_of(&kind, std::slice::from_ref(&model));
        assert_eq!(layout(&graph), ["score <-  (200)"]);
        let steps = next_steps(&graph, &record(&rows_of(&graph)));
        let (task, shard) = first_task(&steps);
        assert_eq!(shard.rows, Some(RowRange { start: 0, end: 50 }));
        assert_eq!(shard.requirements.models, ["content"]);
        let Some(v1::shard_task::Task::Score(score)) = task.task else { panic!("{task:?}") };
        let scorer = score.scorer.unwrap();
        assert_eq!(scorer.fingerprint, "content");
        assert!(matches!(scorer.source, Some(v1::model_ref::Source::Files(files)) if files.files.len() == 1));
        assert!(score.carry_rows && score.max_tokens == 512);
    }

    #[test]
    fn answers_that_are_paid_for_come_in_small_shards_from_the_endpoint() {
        let endpoint =
            v1::Endpoint { url: "http://x/v1".into(), model: "tiny".into(), requests_per_minute: 9 };
        let kind = |per_minute, url: &str| {
            v1::job_spec::Kind::Generate(v1::GenerateSpec {
                model: "openai:tiny".into(),
                endpoint: Some(v1::Endpoint {
                    requests_per_minute: per_minute,
                    url: url.into(),
                    ..endpoint.clone()
                }),
                files: vec![v1::GenerateFile { rows: file("in", 100), log_likelihood: false }],
                generation: decodings(),
                ..Default::default()
            })
        };
        let open = |kind| {
            let graph = graph_of(&kind, &[]);
            let mut stages = rows_of(&graph);
            set(&mut stages, "resolve", Succeeded);
            next_steps(&graph, &record(&stages))
        };
        let steps = open(kind(9, "http://x/v1"));
        let (task, shard) = first_task(&steps);
        assert!(shard.units <= 16 && shard.requirements.endpoint && shard.requirements.models.is_empty());
        let Some(v1::shard_task::Task::Generate(task)) = task.task else { panic!("{task:?}") };
        assert_eq!(task.model.unwrap().source, Some(v1::model_ref::Source::Endpoint(endpoint.clone())));
        let fingerprint = |steps: &[Step]| match &steps[0] {
            Step::Open { fingerprint, .. } => fingerprint.clone().unwrap(),
            other => panic!("{other:?}"),
        };
        let rate = open(kind(1, "http://x/v1"));
        assert_eq!(fingerprint(&steps), fingerprint(&rate), "how fast one may ask decides nothing");
        assert_ne!(fingerprint(&steps), fingerprint(&open(kind(9, "http://y/v1"))));
    }
}
