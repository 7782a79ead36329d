//! One file a kind of job. A kind says, as pure functions of its spec, what may be wrong with it, what it reads and
//! which stages it has; everything else about a job is the same for all.

mod adapt;
mod bigbench;
mod boost;
mod generate;
#[cfg(test)]
mod layouts;
mod pretrain;
mod promptsource;
mod score;

use cappy_proto::v1::{self, job_spec::Kind};
use serde_json::{Map, Value};

use super::{
    check::Check,
    graph::{Graph, Registry},
    stages::Run,
};

/// A kind of job: its spec.
pub(crate) trait JobKind {
    /// The word for people, which is also the field of `JobSpec.kind`.
    fn word(&self) -> &'static str;
    /// Adds every mistake of the spec.
    fn check(&self, check: &mut Check);
    /// The artifacts that the spec reads, with their fields.
    fn inputs(&self) -> Vec<(String, &v1::Artifact)>;
    /// One line for lists.
    fn title(&self) -> String;
    /// Backend and dtype of what workers compute.
    fn run(&self) -> (&str, &str);
    /// The scorer that it names, which may be a registered model.
    fn scorer_mut(&mut self) -> Option<&mut String>;
    /// Its stages, result files, and what makes it a success.
    fn graph(&self, registry: Registry<'_>) -> Graph;

    /// What its tasks run on.
    fn tasks(&self) -> Run {
        let (backend, dtype) = self.run();
        Run::new(backend, dtype)
    }
}

/// The kind of a spec. None: a kind that this coordinator does not know.
pub(crate) fn kind_of(spec: &v1::JobSpec) -> Option<&dyn JobKind> {
    Some(match spec.kind.as_ref()? {
        Kind::Bigbench(spec) => spec,
        Kind::Generate(spec) => spec,
        Kind::Score(spec) => spec,
        Kind::Boost(spec) => spec,
        Kind::Promptsource(spec) => spec,
        Kind::Adapt(spec) => spec,
        Kind::Pretrain(spec) => spec,
    })
}

/// As [`kind_of`], to change.
pub(crate) fn kind_of_mut(spec: &mut v1::JobSpec) -> Option<&mut dyn JobKind> {
    Some(match spec.kind.as_mut()? {
        Kind::Bigbench(spec) => spec,
        Kind::Generate(spec) => spec,
        Kind::Score(spec) => spec,
        Kind::Boost(spec) => spec,
        Kind::Promptsource(spec) => spec,
        Kind::Adapt(spec) => spec,
        Kind::Pretrain(spec) => spec,
    })
}

/// The results folder of a generator: the last component of its name. None when it has none.
pub(super) fn model_folder(model: &str) -> Option<&str> {
    let name = model.strip_prefix("openai:").unwrap_or(model);
    let last = name.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next()?;
    let usable = !last.is_empty() && last != "." && last != ".." && !last.chars().any(char::is_control);
    usable.then_some(last)
}

/// The artifact of a file of rows, with its field.
fn input<'a>(field: &str, file: Option<&'a v1::RowFile>) -> Option<(String, &'a v1::Artifact)> {
    Some((format!("{field}.artifact"), file?.artifact.as_ref()?))
}

/// Names of the decodings, in order.
fn decoding_names(settings: Option<&v1::GenerationSettings>) -> Vec<String> {
    settings.iter().flat_map(|g| &g.decodings).map(|d| d.name.clone()).collect()
}

/// Outputs a row, over all decodings.
fn candidates(settings: Option<&v1::GenerationSettings>) -> u64 {
    settings.iter().flat_map(|g| &g.decodings).map(|d| u64::from(d.num_samples)).sum()
}

/// How a fine-tuning was done, for the reader of a result.
fn fine_tuning_settings(tuning: &v1::FineTuning) -> Map<String, Value> {
    let schedule = match tuning.schedule() {
        v1::Schedule::Corrected => "corrected",
        v1::Schedule::Upstream | v1::Schedule::Unspecified => "upstream",
    };
    let mut settings = Map::new();
    let mut put = |name: &str, value: Value| settings.insert(name.to_owned(), value);
    put("schedule", schedule.into());
    put("train_size", tuning.train_size.into());
    put("learning_rate", tuning.learning_rate.into());
    put("batch_size", tuning.batch_size.into());
    put("accumulate", tuning.accumulate.into());
    put("warmup", tuning.warmup.into());
    put("dropout", tuning.dropout.into());
    put("seed", tuning.seed.into());
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_folder_is_the_last_component_of_the_models_name() {
        for (model, folder) in [
            ("google/flan-t5-xxl", Some("flan-t5-xxl")),
            ("demo", Some("demo")),
            ("models/mine/", Some("mine")),
            ("C:\\models\\mine", Some("mine")),
            ("openai:org/tiny", Some("tiny")),
            ("..", None),
            ("a/..", None),
            ("/", None),
        ] {
            assert_eq!(model_folder(model), folder, "{model}");
        }
    }
}
