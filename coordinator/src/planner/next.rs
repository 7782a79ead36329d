//! What happens to a job next, given its stages.

use super::graph::{DeviceMemory, Graph, Outputs};
use crate::store::{JobRecord, JobState, StageRow, StageState, Step};

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
        steps.push(finish(graph, record, &states));
    }
    steps
}

fn finish(graph: &Graph, record: &JobRecord, states: &[StageState]) -> Step {
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
    use cappy_proto::{JobId, ModelId, ShardId, v1};

    use super::*;
    use crate::{
        planner::{Registry, kind_of},
        store::{JobRow, ModelRecord, NamedOutput, NewShard, ResolvedModel, RowRange, SetAside, ShardOutput},
    };

    /// On workers that say nothing of their memory.
    fn next_steps(graph: &Graph, record: &JobRecord) -> Vec<Step> {
        super::next_steps(graph, record, DeviceMemory::default())
    }

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

    fn graph(spec: &v1::BigbenchSpec) -> Graph {
        graph_of(&v1::job_spec::Kind::Bigbench(spec.clone()), &[])
    }

    fn graph_of(kind: &v1::job_spec::Kind, models: &[ModelRecord]) -> Graph {
        let spec = v1::JobSpec { kind: Some(kind.clone()), priority: 0 };
        kind_of(&spec).unwrap().graph(Registry(models))
    }

    fn record(stages: &[StageRow]) -> JobRecord {
        JobRecord {
            row: JobRow {
                id: JobId::generate(),
                kind: String::new(),
                title: String::new(),
                state: JobState::Running,
                message: String::new(),
                created: 0,
                updated: 0,
                ended: None,
                model: None,
            },
            spec: Vec::new(),
            stages: stages.to_vec(),
            failures: Vec::new(),
            models: Vec::new(),
            pending_gang: None,
        }
    }

    fn rows(spec: &v1::BigbenchSpec) -> Vec<StageRow> {
        rows_of(&graph(spec))
    }

    fn rows_of(graph: &Graph) -> Vec<StageRow> {
        graph
            .stages()
            .into_iter()
            .enumerate()
            .map(|(index, stage)| StageRow {
                index: index as u32,
                name: stage.name,
                kind: stage.kind,
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
            ..Default::default()
        });
        let names: &[&str] = match stage.kind.as_str() {
            "train" => &["model.safetensors", "training.json"],
            "label" => &["examples.jsonl", "counts.json"],
            _ => &["rows.jsonl"],
        };
        let artifacts = names.iter().map(|output| NamedOutput {
            name: (*output).into(),
            id: format!("{name}#{output}"),
            size_bytes: 1,
        });
        stage.outputs = state.has_outputs().then(|| {
            vec![ShardOutput {
                artifacts: artifacts.collect(),
                resolved: resolved.to_vec(),
                ..Default::default()
            }]
        });
    }

    /// `open name xN` / `skip name` / `finish state`, a line a step.
    fn shown(spec: &v1::BigbenchSpec, stages: &[StageRow]) -> Vec<String> {
        shown_of(&graph(spec), &record(stages))
    }

    fn shown_of(graph: &Graph, record: &JobRecord) -> Vec<String> {
        let stages = &record.stages;
        next_steps(graph, record)
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
        for step in next_steps(&graph(spec), &record(stages)) {
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
            next_steps(&graph(spec), &record(&stages))
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

    fn file(name: &str, rows: u64) -> Option<v1::RowFile> {
        Some(v1::RowFile { name: name.into(), artifact: artifact(name), rows })
    }

    fn decodings() -> Option<v1::GenerationSettings> {
        let decoding = v1::Decoding { name: "beam4".into(), num_samples: 2, ..Default::default() };
        Some(v1::GenerationSettings { decodings: vec![decoding], ..Default::default() })
    }

    fn tuning() -> Option<v1::FineTuning> {
        Some(v1::FineTuning { batch_size: 8, accumulate: 16, ..Default::default() })
    }

    /// `name <- needs (units)`, a line a stage.
    fn layout(graph: &Graph) -> Vec<String> {
        let name = |index: usize| graph.nodes[index].name.as_str();
        graph
            .nodes
            .iter()
            .map(|node| {
                let needs: Vec<&str> = node.work.needs().into_iter().map(|need| name(need.index())).collect();
                format!("{} <- {} ({})", node.name, needs.join(" "), node.units)
            })
            .collect()
    }

    fn generated() -> v1::AdaptSpec {
        v1::AdaptSpec {
            scorer: "cappy".into(),
            train: file("mine", 100),
            validation: file("held", 10),
            form: v1::ExampleForm::References.into(),
            model: "google/gen".into(),
            generation: decodings(),
            fine_tuning: tuning(),
            ..Default::default()
        }
    }

    #[test]
    fn every_kind_lays_out_its_stages() {
        use v1::job_spec::Kind;
        let bigbench = v1::BigbenchSpec {
            subsets: vec![
                v1::BigbenchSubset {
                    name: "a".into(),
                    train_rows: 10,
                    validation_rows: 5,
                    ..Default::default()
                },
                v1::BigbenchSubset {
                    name: "b".into(),
                    train_rows: 10,
                    validation_rows: 5,
                    generated: true,
                    ..Default::default()
                },
            ],
            fine_tuning: Some(v1::FineTuning { train_size: 1000, ..tuning().unwrap() }),
            ..Default::default()
        };
        let generate = v1::GenerateSpec {
            model: "m".into(),
            files: ["x", "y"]
                .map(|name| v1::GenerateFile { rows: file(name, 40), log_likelihood: true })
                .to_vec(),
            ..Default::default()
        };
        let boost = v1::BoostSpec { scorer: "s".into(), input: file("in", 40), ..Default::default() };
        let made = v1::BoostSpec { model: "m".into(), generation: decodings(), ..boost.clone() };
        let adapt = v1::AdaptSpec {
            scorer: "s".into(),
            train: file("mine", 1000),
            form: v1::ExampleForm::Labelled.into(),
            fine_tuning: tuning(),
            ..Default::default()
        };
        let pretrain = v1::PretrainSpec {
            scorer: "s".into(),
            examples: file("mix", 1000),
            prompts: file("asked", 100),
            models: vec!["bart0".into(), "t0".into()],
            generation: decodings(),
            validation: file("held", 10),
            fine_tuning: tuning(),
            ..Default::default()
        };
        for (kind, expected) in [
            (
                Kind::Bigbench(bigbench),
                &[
                    "resolve <-  (1)",
                    "generate/a/train <- resolve (10)",
                    "generate/a/validation <- resolve (5)",
                    "label/a <- generate/a/train (10)",
                    "train/a <- resolve label/a (8)",
                    "score/a <- generate/a/validation train/a (5)",
                    "select/a <- generate/a/validation score/a (5)",
                    "label/b <-  (10)",
                    "train/b <- resolve label/b (8)",
                    "score/b <- train/b (5)",
                    "select/b <- score/b (5)",
                    "report <- select/a select/b (2)",
                ][..],
            ),
            (
                Kind::Generate(generate),
                &["resolve <-  (1)", "generate/x <- resolve (40)", "generate/y <- resolve (40)"],
            ),
            (
                Kind::Score(v1::ScoreSpec {
                    scorer: "s".into(),
                    input: file("in", 40),
                    ..Default::default()
                }),
                &["resolve <-  (1)", "score <- resolve (40)"],
            ),
            (Kind::Boost(boost), &["resolve <-  (1)", "score <- resolve (40)", "choose <- score (40)"]),
            (
                Kind::Boost(made),
                &[
                    "resolve <-  (1)",
                    "generate <- resolve (40)",
                    "score <- generate resolve (40)",
                    "choose <- score (40)",
                ],
            ),
            (
                Kind::Promptsource(v1::PromptsourceSpec {
                    scorer: "s".into(),
                    input: file("in", 40),
                    ..Default::default()
                }),
                &["resolve <-  (1)", "score <- resolve (40)", "accuracy <- score (40)"],
            ),
            (
                Kind::Adapt(adapt),
                &[
                    "resolve <-  (1)",
                    "label/train <-  (1000)",
                    "train <- resolve label/train (8)",
                    "register <- label/train train (1)",
                ],
            ),
            (
                Kind::Adapt(generated()),
                &[
                    "resolve <-  (1)",
                    "generate/train <- resolve (100)",
                    "generate/validation <- resolve (10)",
                    "label/train <- generate/train (100)",
                    "label/validation <- generate/validation (10)",
                    "train <- resolve label/train label/validation (4)",
                    "register <- label/train label/validation train (1)",
                ],
            ),
            (
                Kind::Pretrain(pretrain),
                &[
                    "resolve <-  (1)",
                    "generate/bart0 <- resolve (100)",
                    "generate/t0 <- resolve (100)",
                    "label/train <- generate/bart0 generate/t0 (1400)",
                    "label/validation <-  (10)",
                    "train <- resolve label/train label/validation (11)",
                    "register <- label/train label/validation train (1)",
                ],
            ),
        ] {
            assert_eq!(layout(&graph_of(&kind, &[])), expected);
        }
    }

    fn first_task(steps: &[Step]) -> (v1::ShardTask, NewShard) {
        let Some(Step::Open { shards, .. }) = steps.first() else { panic!("{steps:?}") };
        (prost::Message::decode(shards[0].task.as_slice()).unwrap(), shards[0].clone())
    }

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
            shown_of(&graph, &record),
            ["finish partial 2 rows have no result; first: row 7 of `generate`: too hard"]
        );
        record.failures.clear();
        let choose = record.stages[3].outputs.as_mut().unwrap();
        choose[0].failed_rows = 1;
        choose[0].named_failures = vec![(4, "no candidate".into())];
        assert_eq!(
            shown_of(&graph, &record),
            ["finish partial 1 row has no result; first: row 4 of `choose`: no candidate"]
        );
    }
}
