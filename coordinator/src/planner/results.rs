//! Which files a job has produced so far, and where they belong below the results folder.

use cappy_proto::v1;

use super::bigbench::{StageKind, StagePlan, model_folder};
use crate::store::{NamedOutput, StageRow};

/// A file of the results.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResultPath {
    /// `flan-t5-xxl/word_sorting.json`
    pub(crate) path: String,
    /// Concatenated in order, they are the file.
    pub(crate) parts: Vec<v1::Artifact>,
}

/// Generations, results and report of a job, as far as they are there, in the order of its stages.
pub(crate) fn result_files(spec: &v1::BigbenchSpec, stages: &[StageRow]) -> Vec<ResultPath> {
    let folder = model_folder(&spec.model).unwrap_or("model");
    let mut files = Vec::new();
    for subset in spec.subsets.iter().filter(|subset| subset.generated) {
        for (split, artifact) in [("train", &subset.train), ("validation", &subset.validation)] {
            files.push(ResultPath {
                path: format!("{folder}/{}_{split}.jsonl", subset.name),
                parts: artifact.iter().cloned().collect(),
            });
        }
    }
    for stage in stages {
        let Some(outputs) = &stage.outputs else { continue };
        let Ok(plan) = serde_json::from_str::<StagePlan>(&stage.plan) else { continue };
        let mut artifacts = outputs.iter().flat_map(|shard| &shard.artifacts);
        let split =
            |index: usize, split: &str| format!("{folder}/{}_{split}.jsonl", spec.subsets[index].name);
        match plan.kind {
            StageKind::GenerateTrain(index) => {
                files.push(ResultPath {
                    path: split(index, "train"),
                    parts: artifacts.map(artifact).collect(),
                });
            }
            StageKind::GenerateValidation(index) => {
                files.push(ResultPath {
                    path: split(index, "validation"),
                    parts: artifacts.map(artifact).collect(),
                });
            }
            StageKind::Select(_) | StageKind::Report => {
                files.extend(artifacts.map(|output| ResultPath {
                    path: format!("{folder}/{}", output.name),
                    parts: vec![artifact(output)],
                }));
            }
            StageKind::Train(index) => {
                // The model's files stay in the store; how it was trained is for people.
                files.extend(artifacts.find(|output| output.name == "training.json").map(|output| {
                    ResultPath {
                        path: format!("{folder}/training/{}.json", spec.subsets[index].name),
                        parts: vec![artifact(output)],
                    }
                }));
            }
            StageKind::Resolve | StageKind::Label(_) | StageKind::Score(_) => {}
        }
    }
    files
}

fn artifact(output: &NamedOutput) -> v1::Artifact {
    v1::Artifact { id: output.id.clone(), size_bytes: output.size_bytes }
}
