//! What happens to a job next, given its stages.

use cappy_proto::v1;

use super::{
    bigbench::{StageKind, StagePlan},
    tasks::Inputs,
};
use crate::store::{JobState, StageOutputs, StageRow, StageState, Step};

/// The steps that the stages' states call for; empty when there is nothing to do but wait.
///
/// A stage opens when all that it needs has outputs, and is skipped when something that it needs has not and never
/// will. The report is made of whatever subsets have a result. The job ends when every stage has: `succeeded` when all
/// have outputs, `partial` when at least one subset has a result, else `failed`.
pub(crate) fn next_steps(spec: &v1::BigbenchSpec, stages: &[StageRow]) -> Vec<Step> {
    let plans: Vec<StagePlan> = match stages.iter().map(|stage| serde_json::from_str(&stage.plan)).collect() {
        Ok(plans) => plans,
        Err(_) => {
            let message = "the plan was written by another version of the coordinator".into();
            return vec![Step::Finish { state: JobState::Failed, message }];
        }
    };
    let mut states: Vec<StageState> = stages.iter().map(|stage| stage.state).collect();
    let mut steps = Vec::new();
    // Needs stand before users, so one pass follows a failure to the end.
    for (index, (stage, plan)) in stages.iter().zip(&plans).enumerate() {
        if states[index] != StageState::Waiting {
            continue;
        }
        let missing = plan.needs.iter().map(|need| *need as usize).find(|need| {
            let state = states[*need];
            state.is_terminal() && !state.has_outputs()
        });
        let ended = plan.needs.iter().all(|need| states[*need as usize].is_terminal());
        let ready = plan.needs.iter().all(|need| states[*need as usize].has_outputs());
        let any = plan.needs.iter().any(|need| states[*need as usize].has_outputs());
        let (open, skip) = match plan.kind {
            StageKind::Report => (ended && any, ended && !any),
            _ => (ready, missing.is_some()),
        };
        if skip {
            let cause = missing.map_or("what it needs", |need| stages[need].name.as_str());
            let message = match plan.kind {
                StageKind::Report => "no subset has a result".to_owned(),
                _ => format!("`{cause}` did not succeed"),
            };
            states[index] = StageState::Skipped;
            steps.push(Step::Skip { stage: stage.index, message });
        } else if open {
            let outputs = |kind: StageKind| outputs_of(stages, &plans, kind);
            match (Inputs { spec, outputs: &outputs }).open(plan.kind) {
                Ok(opening) => steps.push(Step::Open {
                    stage: stage.index,
                    fingerprint: opening.fingerprint,
                    shards: opening.shards,
                }),
                Err(error) => {
                    states[index] = StageState::Failed;
                    steps.push(Step::Refuse { stage: stage.index, message: error.to_string() });
                }
            }
        }
    }
    if states.iter().all(|state| state.is_terminal()) {
        steps.push(finish(stages, &plans, &states));
    }
    steps
}

fn outputs_of<'a>(stages: &'a [StageRow], plans: &[StagePlan], kind: StageKind) -> Option<&'a StageOutputs> {
    let index = plans.iter().position(|plan| plan.kind == kind)?;
    stages[index].outputs.as_ref()
}

fn finish(stages: &[StageRow], plans: &[StagePlan], states: &[StageState]) -> Step {
    if states.iter().all(|state| state.has_outputs()) {
        return Step::Finish { state: JobState::Succeeded, message: String::new() };
    }
    let selects = || plans.iter().zip(states).filter(|(plan, _)| matches!(plan.kind, StageKind::Select(_)));
    let total = selects().count();
    let good = selects().filter(|(_, state)| state.has_outputs()).count();
    let first = states.iter().position(|state| *state == StageState::Failed);
    let cause = first.map(|index| {
        let message = &stages[index].message;
        let message = if message.is_empty() { "failed" } else { message };
        format!("`{}`: {message}", stages[index].name)
    });
    let cause = cause.map(|cause| format!("; first: {cause}")).unwrap_or_default();
    if good == 0 {
        return Step::Finish { state: JobState::Failed, message: format!("no subset has a result{cause}") };
    }
    Step::Finish {
        state: JobState::Partial,
        message: format!("{} of {total} subsets have no result{cause}", total - good),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        planner::plan,
        store::{NamedOutput, ResolvedModel, ShardOutput},
    };

    fn artifact(id: &str) -> Option<v1::Artifact> {
        Some(v1::Artifact { id: id.into(), size_bytes: 1 })
    }

    fn spec(generated: bool) -> v1::BigbenchSpec {
        let subset = |name: &str| v1::BigbenchSubset {
            name: name.into(),
            train: artifact("t"),
            validation: artifact("v"),
            train_rows: 100,
            validation_rows: 40,
            generated,
        };
        v1::BigbenchSpec {
            model: "google/gen".into(),
            scorer: "cappy".into(),
            subsets: vec![subset("a"), subset("b")],
            ..Default::default()
        }
    }

    fn rows(spec: &v1::BigbenchSpec) -> Vec<StageRow> {
        plan(spec)
            .into_iter()
            .enumerate()
            .map(|(index, stage)| StageRow {
                index: index as u32,
                name: stage.name,
                kind: stage.kind,
                plan: stage.plan,
                state: StageState::Waiting,
                message: String::new(),
                outputs: None,
                shards_done: 0,
                shards_total: 0,
                units_done: 0,
                units_total: stage.units_total,
                seconds: 0.0,
            })
            .collect()
    }

    fn set(stages: &mut [StageRow], name: &str, state: StageState) {
        let stage = stages.iter_mut().find(|stage| stage.name == name).unwrap();
        stage.state = state;
        stage.message = "broke".into();
        let resolved = ["cappy", "gen"].map(|name| ResolvedModel {
            name: name.into(),
            fingerprint: format!("fp-{name}"),
            architecture: String::new(),
        });
        let output = NamedOutput { name: "model.safetensors".into(), id: format!("{name}#"), size_bytes: 1 };
        stage.outputs = state.has_outputs().then(|| {
            vec![ShardOutput { artifacts: vec![output], resolved: resolved.to_vec(), truncated_rows: None }]
        });
    }

    /// `open name xN` / `skip name` / `finish state`, a line a step.
    fn shown(spec: &v1::BigbenchSpec, stages: &[StageRow]) -> Vec<String> {
        next_steps(spec, stages)
            .iter()
            .map(|step| match step {
                Step::Open { stage, shards, .. } => {
                    format!("open {} x{}", stages[*stage as usize].name, shards.len())
                }
                Step::Skip { stage, .. } => format!("skip {}", stages[*stage as usize].name),
                Step::Refuse { stage, message } => {
                    format!("refuse {} {message}", stages[*stage as usize].name)
                }
                Step::Finish { state, message } => format!("finish {} {message}", state.word()),
                Step::Reuse { .. } => "reuse".into(),
            })
            .collect()
    }

    fn follow(stages: &mut [StageRow], spec: &v1::BigbenchSpec) {
        for step in next_steps(spec, stages) {
            if let Step::Skip { stage, .. } = step {
                stages[stage as usize].state = StageState::Skipped;
            }
        }
    }

    use StageState::{Failed, Reused, Succeeded};

    #[test]
    fn stages_open_as_their_inputs_complete() {
        let spec = spec(false);
        let mut stages = rows(&spec);
        assert_eq!(shown(&spec, &stages), ["open resolve x1"]);
        set(&mut stages, "resolve", Succeeded);
        assert_eq!(
            shown(&spec, &stages),
            [
                "open generate/a/train x4",
                "open generate/a/validation x2",
                "open generate/b/train x4",
                "open generate/b/validation x2"
            ]
        );
        for name in ["generate/a/train", "generate/a/validation"] {
            set(&mut stages, name, Reused);
        }
        for name in ["generate/b/train", "generate/b/validation"] {
            set(&mut stages, name, StageState::Running);
        }
        assert_eq!(shown(&spec, &stages), ["open label/a x1"]);
        set(&mut stages, "label/a", Succeeded);
        assert_eq!(shown(&spec, &stages), ["open train/a x1"]);
        set(&mut stages, "train/a", Succeeded);
        assert_eq!(shown(&spec, &stages), ["open score/a x1"]);
        set(&mut stages, "score/a", Succeeded);
        assert_eq!(shown(&spec, &stages), ["open select/a x1"]);
        set(&mut stages, "select/a", Succeeded);
        assert_eq!(shown(&spec, &stages), [""; 0], "the report waits for the other subset");
        for name in ["generate/b/train", "generate/b/validation", "label/b", "train/b", "score/b", "select/b"]
        {
            set(&mut stages, name, Succeeded);
        }
        assert_eq!(shown(&spec, &stages), ["open report x1"]);
        set(&mut stages, "report", Succeeded);
        assert_eq!(shown(&spec, &stages), ["finish succeeded "]);
    }

    #[test]
    fn a_failed_subset_skips_its_own_stages_and_the_job_ends_partial() {
        let spec = spec(true);
        let mut stages = rows(&spec);
        assert_eq!(shown(&spec, &stages), ["open resolve x1", "open label/a x1", "open label/b x1"]);
        for name in ["resolve", "label/a", "train/a", "score/a", "select/a"] {
            set(&mut stages, name, Succeeded);
        }
        set(&mut stages, "label/b", Failed);
        assert_eq!(
            shown(&spec, &stages),
            ["skip train/b", "skip score/b", "skip select/b", "open report x1"]
        );
        follow(&mut stages, &spec);
        set(&mut stages, "report", Succeeded);
        assert_eq!(
            shown(&spec, &stages),
            ["finish partial 1 of 2 subsets have no result; first: `label/b`: broke"]
        );
    }

    #[test]
    fn without_models_everything_is_skipped_and_the_job_fails() {
        let spec = spec(false);
        let mut stages = rows(&spec);
        set(&mut stages, "resolve", Failed);
        let steps = shown(&spec, &stages);
        assert_eq!(steps.len(), stages.len());
        assert!(steps[..steps.len() - 1].iter().all(|step| step.starts_with("skip ")), "{steps:?}");
        assert_eq!(steps.last().unwrap(), "finish failed no subset has a result; first: `resolve`: broke");
    }

    #[test]
    fn fingerprints_change_with_what_decides_the_output_and_only_with_that() {
        let fingerprints = |spec: &v1::BigbenchSpec| -> Vec<Option<String>> {
            let mut stages = rows(spec);
            set(&mut stages, "resolve", Succeeded);
            next_steps(spec, &stages)
                .into_iter()
                .map(|step| match step {
                    Step::Open { fingerprint, .. } => fingerprint,
                    other => panic!("{other:?}"),
                })
                .collect()
        };
        let base = fingerprints(&spec(false));
        assert_eq!(base.len(), 4);
        assert!(base.iter().all(Option::is_some));
        assert_eq!(base.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        let mut other = spec(false);
        other.subsets[0].train = artifact("t2");
        other.fine_tuning = Some(v1::FineTuning { learning_rate: 1.0, ..Default::default() });
        let changed = fingerprints(&other);
        assert_ne!(changed[0], base[0]);
        assert_eq!(changed[1..], base[1..], "fine-tuning does not decide generations");
        other.dtype = "bf16".into();
        assert!(fingerprints(&other).iter().all(|fingerprint| !base.contains(fingerprint)));
    }
}
