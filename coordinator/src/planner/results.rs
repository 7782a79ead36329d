//! Which files a job has produced so far, and where they belong below the results folder.

use cappy_proto::v1;

use super::graph::{Graph, Publish, artifact};
use crate::store::StageRow;

/// A file of the results.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResultPath {
    /// `flan-t5-xxl/word_sorting.json`
    pub(crate) path: String,
    /// Concatenated in order, they are the file.
    pub(crate) parts: Vec<v1::Artifact>,
}

/// Generations, results and report of a job, as far as they are there, in the order of its stages.
pub(crate) fn result_files(graph: &Graph, stages: &[StageRow]) -> Vec<ResultPath> {
    let mut files = graph.given.clone();
    for (node, stage) in graph.nodes.iter().zip(stages) {
        let Some(outputs) = &stage.outputs else { continue };
        let mut outputs = outputs.iter().flat_map(|shard| &shard.artifacts);
        match &node.publish {
            Publish::Nothing => {}
            Publish::Rows(path) => {
                files.push(ResultPath { path: path.clone(), parts: outputs.map(artifact).collect() });
            }
            Publish::Named(folder) => files.extend(outputs.map(|output| {
                let path = match folder.as_str() {
                    "" => output.name.clone(),
                    folder => format!("{folder}/{}", output.name),
                };
                ResultPath { path, parts: vec![artifact(output)] }
            })),
            Publish::Only { output, path } => {
                let found = outputs.find(|found| found.name == *output);
                files.extend(
                    found.map(|found| ResultPath { path: path.clone(), parts: vec![artifact(found)] }),
                );
            }
        }
    }
    files
}
