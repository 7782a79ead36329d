//! The stages of a `bigbench` job.
//!
//! ```text
//! resolve -> generate/S/train      -> label/S -> train/S -+
//!         -> generate/S/validation ----------------------+-> score/S -> select/S -> report
//! ```
//! for every subset S; a subset that brings its generations has no generate stages. Stages of one subset stand
//! together, so that first results come early.

use cappy_proto::v1;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::store::{JobRecord, NewStage};

/// Kind of a stage, with what it works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StageKind {
    Resolve,
    GenerateTrain(usize),
    GenerateValidation(usize),
    Label(usize),
    Train(usize),
    Score(usize),
    Select(usize),
    Report,
}

impl StageKind {
    /// The kind's word on the wire.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::GenerateTrain(_) | Self::GenerateValidation(_) => "generate",
            Self::Label(_) => "label",
            Self::Train(_) => "train",
            Self::Score(_) => "score",
            Self::Select(_) => "select",
            Self::Report => "report",
        }
    }

    fn name(self, spec: &v1::BigbenchSpec) -> String {
        let subset = |index: usize| &spec.subsets[index].name;
        match self {
            Self::Resolve | Self::Report => self.word().to_owned(),
            Self::GenerateTrain(index) => format!("generate/{}/train", subset(index)),
            Self::GenerateValidation(index) => format!("generate/{}/validation", subset(index)),
            Self::Label(index) | Self::Train(index) | Self::Score(index) | Self::Select(index) => {
                format!("{}/{}", self.word(), subset(index))
            }
        }
    }
}

/// A stage as the planner keeps it in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StagePlan {
    pub(crate) kind: StageKind,
    /// Indices of the stages whose outputs it reads.
    pub(crate) needs: Vec<u32>,
}

/// All stages of a job, inputs before users.
pub(crate) fn plan(spec: &v1::BigbenchSpec) -> Vec<NewStage> {
    let mut stages = Stages { spec, list: Vec::new() };
    let resolve = stages.add(StageKind::Resolve, vec![], 1);
    let mut selects = Vec::new();
    for (index, subset) in spec.subsets.iter().enumerate() {
        let (mut label_needs, mut score_needs) = (vec![], vec![]);
        if !subset.generated {
            label_needs.push(stages.add(StageKind::GenerateTrain(index), vec![resolve], subset.train_rows));
            score_needs.push(stages.add(
                StageKind::GenerateValidation(index),
                vec![resolve],
                subset.validation_rows,
            ));
        }
        let select_rows = score_needs.clone();
        let label = stages.add(StageKind::Label(index), label_needs, subset.train_rows);
        let train = stages.add(StageKind::Train(index), vec![resolve, label], updates(spec, subset));
        score_needs.push(train);
        let score = stages.add(StageKind::Score(index), score_needs, subset.validation_rows);
        let select_needs = select_rows.into_iter().chain([score]).collect();
        selects.push(stages.add(StageKind::Select(index), select_needs, subset.validation_rows));
    }
    stages.add(StageKind::Report, selects, spec.subsets.len() as u64);
    stages.list
}

struct Stages<'a> {
    spec: &'a v1::BigbenchSpec,
    list: Vec<NewStage>,
}

impl Stages<'_> {
    fn add(&mut self, kind: StageKind, needs: Vec<u32>, units_total: u64) -> u32 {
        let plan = serde_json::to_string(&StagePlan { kind, needs }).expect("a plan is plain data");
        let index = u32::try_from(self.list.len()).expect("few stages");
        self.list.push(NewStage {
            name: kind.name(self.spec),
            kind: kind.word().to_owned(),
            plan,
            units_total: units_total.max(1),
        });
        index
    }
}

/// Optimizer updates of one fine-tuning, estimated where the training set is not known yet: a train row gives about
/// two pairs of its reference and one a candidate.
pub(super) fn updates(spec: &v1::BigbenchSpec, subset: &v1::BigbenchSubset) -> u64 {
    let settings = spec.fine_tuning.unwrap_or_default();
    let candidates: u64 =
        spec.generation.iter().flat_map(|g| &g.decodings).map(|d| u64::from(d.num_samples)).sum();
    let examples = match settings.train_size {
        0 => subset.train_rows * (2 + candidates),
        size => size,
    };
    let per_update = u64::from(settings.batch_size.max(1)) * u64::from(settings.accumulate.max(1));
    examples.div_ceil(per_update).max(1)
}

/// The spec of a stored `bigbench` job. None: another version wrote it.
pub(crate) fn bigbench_spec(record: &JobRecord) -> Option<v1::BigbenchSpec> {
    match v1::JobSpec::decode(record.spec.as_slice()).ok()?.kind? {
        v1::job_spec::Kind::Bigbench(spec) => Some(spec),
        _ => None,
    }
}

/// One line for lists.
pub(crate) fn title(spec: &v1::BigbenchSpec) -> String {
    let subsets = spec.subsets.len();
    let plural = if subsets == 1 { "" } else { "s" };
    format!("{} with {} on {subsets} subset{plural}", spec.model, spec.scorer)
}

/// The results folder of a generator: the last component of its name. None when it has none.
pub(crate) fn model_folder(model: &str) -> Option<&str> {
    let last = model.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next()?;
    let usable = !last.is_empty() && last != "." && last != ".." && !last.chars().any(char::is_control);
    usable.then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_stand_by_subset_and_imported_generations_skip_generation() {
        let subset = |name: &str, generated| v1::BigbenchSubset {
            name: name.into(),
            train_rows: 10,
            validation_rows: 5,
            generated,
            ..Default::default()
        };
        let spec = v1::BigbenchSpec {
            subsets: vec![subset("a", false), subset("b", true)],
            fine_tuning: Some(v1::FineTuning {
                batch_size: 8,
                accumulate: 16,
                train_size: 1000,
                ..Default::default()
            }),
            ..Default::default()
        };
        let lines: Vec<String> = plan(&spec)
            .iter()
            .map(|stage| {
                let plan: StagePlan = serde_json::from_str(&stage.plan).unwrap();
                format!("{} {:?} {}", stage.name, plan.needs, stage.units_total)
            })
            .collect();
        assert_eq!(
            lines,
            [
                "resolve [] 1",
                "generate/a/train [0] 10",
                "generate/a/validation [0] 5",
                "label/a [1] 10",
                "train/a [0, 3] 8",
                "score/a [2, 4] 5",
                "select/a [2, 5] 5",
                "label/b [] 10",
                "train/b [0, 7] 8",
                "score/b [8] 5",
                "select/b [9] 5",
                "report [6, 10] 2",
            ]
        );
    }

    #[test]
    fn the_results_folder_is_the_last_component_of_the_models_name() {
        for (model, folder) in [
            ("google/flan-t5-xxl", Some("flan-t5-xxl")),
            ("demo", Some("demo")),
            ("models/mine/", Some("mine")),
            ("C:\\models\\mine", Some("mine")),
            ("..", None),
            ("a/..", None),
            ("/", None),
        ] {
            assert_eq!(model_folder(model), folder, "{model}");
        }
    }
}
