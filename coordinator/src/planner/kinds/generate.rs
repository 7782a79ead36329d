//! `generate`: a generator answers files of rows.
//!
//! ```text
//! resolve -> generate/F
//! ```
//! for every file F.

use std::collections::HashSet;

use cappy_proto::v1;

use super::{JobKind, input, model_folder};
use crate::planner::{
    check::{Check, shown},
    graph::{Graph, Node, Publish, Registry, Rows},
    stages::{Generate, Wanted, resolve},
};

/// Files of one job.
const MAX_FILES: usize = 2000;

impl JobKind for v1::GenerateSpec {
    fn word(&self) -> &'static str {
        "generate"
    }

    fn check(&self, check: &mut Check) {
        check.generator("model", &self.model, self.endpoint.as_ref());
        check.dtype(&self.dtype);
        check.model_shards(self.model_shards, &self.backend, self.endpoint.as_ref());
        check.that(!self.files.is_empty(), "files", "give at least one file of rows");
        check.that(self.files.len() <= MAX_FILES, "files", "at most 2000 files a job");
        let mut names = HashSet::new();
        for (index, file) in self.files.iter().enumerate() {
            let field = format!("files[{index}].rows");
            check.rows(&field, file.rows.as_ref());
            let name = file.rows.as_ref().map_or("", |rows| &rows.name);
            let twice = format!("`{}` is there twice", shown(name));
            check.that(names.insert(name), &format!("{field}.name"), &twice);
        }
        check.generation(self.generation.as_ref());
    }

    fn inputs(&self) -> Vec<(String, &v1::Artifact)> {
        let files = self.files.iter().enumerate();
        files.filter_map(|(index, file)| input(&format!("files[{index}].rows"), file.rows.as_ref())).collect()
    }

    fn title(&self) -> String {
        match self.files.as_slice() {
            [file] => format!("{} on {}", self.model, file.rows.as_ref().map_or("", |rows| &rows.name)),
            files => format!("{} on {} files", self.model, files.len()),
        }
    }

    fn run(&self) -> (&str, &str) {
        (&self.backend, &self.dtype)
    }

    fn scorer_mut(&mut self) -> Option<&mut String> {
        None
    }

    fn graph(&self, registry: Registry<'_>) -> Graph {
        let mut graph = Graph::of_parts("file");
        let run = self.tasks();
        let wanted = [Wanted::Generator(&self.model, self.endpoint.as_ref())];
        let model = resolve(&mut graph, &run, registry, &wanted).remove(0);
        let folder = model_folder(&self.model).unwrap_or("model");
        for file in &self.files {
            let rows = file.rows.clone().unwrap_or_default();
            let work = Generate {
                run: run.clone(),
                model: model.clone(),
                input: Rows::of_file(&rows),
                settings: self.generation.clone().unwrap_or_default(),
                log_likelihood: file.log_likelihood,
                row_namespace: row_namespace(&rows.name),
                model_shards: self.model_shards,
            };
            let node = Node::new(format!("generate/{}", rows.name), rows.rows, work);
            let path = format!("{folder}/{}.jsonl", rows.name);
            graph.add(node.publish(Publish::Rows(path)).delivers().spares_rows());
        }
        graph
    }
}

/// The benchmark's own files get the namespace that a `bigbench` job gives them: the same answers, and computed once.
/// Rows of other files have no place of their own: none, so that they get what the online service gives them.
fn row_namespace(name: &str) -> String {
    for split in ["train", "validation"] {
        if let Some(subset) = name.strip_suffix(split).and_then(|name| name.strip_suffix('_')) {
            return format!("{subset}/{split}");
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_benchmark_share_its_randomness() {
        for (name, namespace) in [
            ("tense_train", "tense/train"),
            ("a_b_validation", "a_b/validation"),
            ("train", ""),
            ("mine", ""),
        ] {
            assert_eq!(row_namespace(name), namespace);
        }
    }
}
