//! How a job ends: which state, and what is said of what it lacks.

use crate::{
    planner::graph::Graph,
    store::{JobRecord, JobState, StageRow, StageState, Step},
};

/// The end of a job all of whose stages have ended.
pub(super) fn finish(graph: &Graph, record: &JobRecord, states: &[StageState]) -> Step {
    let whole = states.iter().all(|state| state.has_outputs());
    let set_aside: u64 = record.failures.iter().filter_map(|failure| Some(failure.rows?.len())).sum();
    let outputs = || record.stages.iter().filter_map(|stage| Some((stage, stage.outputs.as_ref()?)));
    let without_result = outputs().flat_map(|(_, shards)| shards.iter()).map(|shard| shard.failed_rows);
    let lost = set_aside + without_result.sum::<u64>();
    if whole && lost == 0 {
        return Step::Finish { state: JobState::Succeeded, message: String::new() };
    }
    let first = states.iter().position(|state| *state == StageState::Failed);
    let cause = first.map(|index| cause(&record.stages[index])).or_else(|| {
        let row = |row: u64, stage: &str, message: &str| format!("row {row} of `{stage}`: {message}");
        let set_aside = record
            .failures
            .iter()
            .find_map(|failure| Some(row(failure.rows?.start, &failure.stage, &failure.message)));
        set_aside.or_else(|| {
            outputs().find_map(|(stage, shards)| {
                let (at, message) = shards.iter().find_map(|shard| shard.named_failures.first())?;
                Some(row(*at, &stage.name, message))
            })
        })
    });
    let delivering = || graph.nodes.iter().zip(states).filter(|(node, _)| node.delivers);
    let total = delivering().count();
    let good = delivering().filter(|(_, state)| state.has_outputs()).count();
    if good == 0 {
        let message = match (graph.part, cause) {
            ("", cause) => cause.unwrap_or_else(|| "there is no result".into()),
            (part, None) => format!("no {part} has a result"),
            (part, Some(cause)) => format!("no {part} has a result; first: {cause}"),
        };
        return Step::Finish { state: JobState::Failed, message };
    }
    let mut lacks = Vec::new();
    if good < total {
        lacks.push(format!("{} of {total} {}s have no result", total - good, graph.part));
    }
    match lost {
        0 => {}
        1 => lacks.push("1 row has no result".to_owned()),
        rows => lacks.push(format!("{rows} rows have no result")),
    }
    let lacks = lacks.join(", ");
    let message = cause.map_or_else(|| lacks.clone(), |cause| format!("{lacks}; first: {cause}"));
    Step::Finish { state: JobState::Partial, message }
}

fn cause(stage: &StageRow) -> String {
    let message = if stage.message.is_empty() { "failed" } else { &stage.message };
    format!("`{}`: {message}", stage.name)
}

#[cfg(test)]
mod tests {
    use cappy_proto::{ShardId, v1};

    use crate::{
        planner::testing::{decodings, file, first_task, graph_of, next_steps, record, rows_of, set, shown},
        store::{RowRange, SetAside, StageState::Succeeded},
    };

    #[test]
    fn rows_that_were_set_aside_are_told_and_do_not_come_back() {
        let spec = v1::BoostSpec {
            scorer: "s".into(),
            model: "m".into(),
            input: file("in", 100),
            generation: decodings(),
            ..Default::default()
        };
        let graph = graph_of(&v1::job_spec::Kind::Boost(spec), &[]);
        let mut stages = rows_of(&graph);
        for name in ["resolve", "generate"] {
            set(&mut stages, name, Succeeded);
        }
        stages[1].outputs.as_mut().unwrap()[0].units = Some(98);
        let (_, shard) = first_task(&next_steps(&graph, &record(&stages)));
        assert_eq!(shard.rows, Some(RowRange { start: 0, end: 49 }), "98 rows are left to score");
        for name in ["score", "choose"] {
            set(&mut stages, name, Succeeded);
        }
        let mut record = record(&stages);
        record.failures = [7, 50]
            .map(|row| SetAside {
                shard: ShardId::generate(),
                stage: "generate".into(),
                code: "internal".into(),
                message: "too hard".into(),
                attempts: 3,
                rows: Some(RowRange { start: row, end: row + 1 }),
            })
            .to_vec();
        assert_eq!(
            shown(&graph, &record),
            ["finish partial 2 rows have no result; first: row 7 of `generate`: too hard"]
        );
        record.failures.clear();
        let choose = record.stages[3].outputs.as_mut().unwrap();
        choose[0].failed_rows = 1;
        choose[0].named_failures = vec![(4, "no candidate".into())];
        assert_eq!(
            shown(&graph, &record),
            ["finish partial 1 row has no result; first: row 4 of `choose`: no candidate"]
        );
    }
}
