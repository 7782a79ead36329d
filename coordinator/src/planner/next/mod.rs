//! What happens to a job next, given its stages.

mod finish;

use super::graph::{DeviceMemory, Graph, Outputs};
use crate::store::{JobRecord, StageState, Step};

/// The steps that the stages' states call for; empty when there is nothing to do but wait.
///
/// A stage opens when all that it needs has outputs, and is skipped when something that it needs has not and never
/// will; one that is made of whatever there is (the report) waits until everything has ended. The job ends when every
/// stage has: `succeeded` when all have outputs and no row was set aside, `partial` when at least one delivers, else
/// `failed`.
///
/// `memory`, what the connected workers have room for, decides over how many of them a model is split; once a stage is
/// open its shards say so.
pub(crate) fn next_steps(graph: &Graph, record: &JobRecord, memory: DeviceMemory) -> Vec<Step> {
    let stages = &record.stages;
    let mut states: Vec<StageState> = stages.iter().map(|stage| stage.state).collect();
    let mut steps = Vec::new();
    // Needs stand before users, so one pass follows a failure to the end.
    for (index, (stage, node)) in stages.iter().zip(&graph.nodes).enumerate() {
        if states[index] != StageState::Waiting {
            continue;
        }
        let needs: Vec<usize> = node.work.needs().into_iter().map(|need| need.index()).collect();
        let missing = needs.iter().find(|need| {
            let state = states[**need];
            state.is_terminal() && !state.has_outputs()
        });
        let ended = needs.iter().all(|need| states[*need].is_terminal());
        let ready = needs.iter().all(|need| states[*need].has_outputs());
        let any = needs.iter().any(|need| states[*need].has_outputs());
        let on_any = node.work.opens_on_any();
        let (open, skip) = if on_any { (ended && any, ended && !any) } else { (ready, missing.is_some()) };
        if skip {
            let cause = missing.map_or("what it needs", |need| stages[*need].name.as_str());
            let message = if on_any {
                format!("no {} has a result", graph.part)
            } else {
                format!("`{cause}` did not succeed")
            };
            states[index] = StageState::Skipped;
            steps.push(Step::Skip { stage: stage.index, message });
        } else if open {
            match node.work.open(&Outputs { stages, memory }) {
                Ok(opening) => steps.push(Step::Open {
                    stage: stage.index,
                    fingerprint: opening.fingerprint,
                    shards: opening.shards,
                    message: opening.message,
                }),
                Err(error) => {
                    states[index] = StageState::Failed;
                    steps.push(Step::Refuse { stage: stage.index, message: error.to_string() });
                }
            }
        }
    }
    // What was refused is written down first, so that the end of the job can say why.
    let refused = steps.iter().any(|step| matches!(step, Step::Refuse { .. }));
    if !refused && states.iter().all(|state| state.is_terminal()) {
        steps.push(finish::finish(graph, record, &states));
    }
    steps
}

#[cfg(test)]
mod tests {
    use cappy_proto::v1;

    use crate::{
        planner::{
            Graph,
            testing::{bigbench, graph_of, next_steps, record, rows_of, set, shown},
        },
        store::{
            StageRow,
            StageState::{self, Failed, Reused, Succeeded},
            Step,
        },
    };

    fn graph(generated: bool) -> Graph {
        graph_of(&v1::job_spec::Kind::Bigbench(bigbench(generated)), &[])
    }

    /// Skips what is to be skipped.
    fn follow(stages: &mut [StageRow], graph: &Graph) {
        for step in next_steps(graph, &record(stages)) {
            if let Step::Skip { stage, .. } = step {
                stages[stage as usize].state = StageState::Skipped;
            }
        }
    }

    #[test]
    fn stages_open_as_their_inputs_complete() {
        let graph = graph(false);
        let mut stages = rows_of(&graph);
        assert_eq!(shown(&graph, &record(&stages)), ["open resolve x1"]);
        set(&mut stages, "resolve", Succeeded);
        assert_eq!(
            shown(&graph, &record(&stages)),
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
        assert_eq!(shown(&graph, &record(&stages)), ["open label/a x1"]);
        set(&mut stages, "label/a", Succeeded);
        assert_eq!(shown(&graph, &record(&stages)), ["open train/a x1"]);
        set(&mut stages, "train/a", Succeeded);
        assert_eq!(shown(&graph, &record(&stages)), ["open score/a x1"]);
        set(&mut stages, "score/a", Succeeded);
        assert_eq!(shown(&graph, &record(&stages)), ["open select/a x1"]);
        set(&mut stages, "select/a", Succeeded);
        assert_eq!(shown(&graph, &record(&stages)), [""; 0], "the report waits for the other subset");
        for name in ["generate/b/train", "generate/b/validation", "label/b", "train/b", "score/b", "select/b"]
        {
            set(&mut stages, name, Succeeded);
        }
        assert_eq!(shown(&graph, &record(&stages)), ["open report x1"]);
        set(&mut stages, "report", Succeeded);
        assert_eq!(shown(&graph, &record(&stages)), ["finish succeeded "]);
    }

    #[test]
    fn a_failed_subset_skips_its_own_stages_and_the_job_ends_partial() {
        let graph = graph(true);
        let mut stages = rows_of(&graph);
        assert_eq!(
            shown(&graph, &record(&stages)),
            ["open resolve x1", "open label/a x1", "open label/b x1"]
        );
        for name in ["resolve", "label/a", "train/a", "score/a", "select/a"] {
            set(&mut stages, name, Succeeded);
        }
        set(&mut stages, "label/b", Failed);
        assert_eq!(
            shown(&graph, &record(&stages)),
            ["skip train/b", "skip score/b", "skip select/b", "open report x1"]
        );
        follow(&mut stages, &graph);
        set(&mut stages, "report", Succeeded);
        assert_eq!(
            shown(&graph, &record(&stages)),
            ["finish partial 1 of 2 subsets have no result; first: `label/b`: broke"]
        );
    }

    #[test]
    fn without_models_everything_is_skipped_and_the_job_fails() {
        let graph = graph(false);
        let mut stages = rows_of(&graph);
        set(&mut stages, "resolve", Failed);
        let steps = shown(&graph, &record(&stages));
        assert_eq!(steps.len(), stages.len());
        assert!(steps[..steps.len() - 1].iter().all(|step| step.starts_with("skip ")), "{steps:?}");
        assert_eq!(steps.last().unwrap(), "finish failed no subset has a result; first: `resolve`: broke");
    }
}
