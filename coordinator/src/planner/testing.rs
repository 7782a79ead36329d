//! Specs, graphs and stages of a test.

use cappy_proto::{JobId, v1};

use super::{DeviceMemory, Graph, Registry, kind_of};
use crate::store::{
    JobRecord, JobRow, JobState, ModelRecord, NamedOutput, NewShard, ResolvedModel, ShardOutput, StageRow,
    StageState, Step,
};

/// An artifact by this id.
pub(super) fn artifact(id: &str) -> Option<v1::Artifact> {
    Some(v1::Artifact { id: id.into(), size_bytes: 1 })
}

/// An input file of that many rows.
pub(super) fn file(name: &str, rows: u64) -> Option<v1::RowFile> {
    Some(v1::RowFile { name: name.into(), artifact: artifact(name), rows })
}

/// Two samples of one decoding.
pub(super) fn decodings() -> Option<v1::GenerationSettings> {
    let decoding = v1::Decoding { name: "beam4".into(), num_samples: 2, ..Default::default() };
    Some(v1::GenerationSettings { decodings: vec![decoding], ..Default::default() })
}

/// 128 examples an update.
pub(super) fn tuning() -> Option<v1::FineTuning> {
    Some(v1::FineTuning { batch_size: 8, accumulate: 16, ..Default::default() })
}

/// A job of two subsets, whose rows are `generated` already or are still to be.
pub(super) fn bigbench(generated: bool) -> v1::BigbenchSpec {
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

/// The graph of a job of this kind, which may name registered models.
pub(super) fn graph_of(kind: &v1::job_spec::Kind, models: &[ModelRecord]) -> Graph {
    let spec = v1::JobSpec { kind: Some(kind.clone()), priority: 0 };
    kind_of(&spec).unwrap().graph(Registry(models))
}

/// `name <- needs (units)`, a line a stage.
pub(super) fn layout(graph: &Graph) -> Vec<String> {
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

/// Its stages before anything has happened.
pub(super) fn rows_of(graph: &Graph) -> Vec<StageRow> {
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

/// A running job of these stages.
pub(super) fn record(stages: &[StageRow]) -> JobRecord {
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

/// Puts the stage of that name into a state, with outputs where the state has them.
pub(super) fn set(stages: &mut [StageRow], name: &str, state: StageState) {
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

/// What happens next, on workers that say nothing of their memory.
pub(super) fn next_steps(graph: &Graph, record: &JobRecord) -> Vec<Step> {
    super::next_steps(graph, record, DeviceMemory::default())
}

/// `open name xN`, `skip name`, `refuse name why`, `finish state why`: a line a step.
pub(super) fn shown(graph: &Graph, record: &JobRecord) -> Vec<String> {
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

/// The first shard that the steps open, and its task.
pub(super) fn first_task(steps: &[Step]) -> (v1::ShardTask, NewShard) {
    let Some(Step::Open { shards, .. }) = steps.first() else { panic!("{steps:?}") };
    (prost::Message::decode(shards[0].task.as_slice()).unwrap(), shards[0].clone())
}
