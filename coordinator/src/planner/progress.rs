//! How far a job is, when it will end, and what it does now: a pure estimate over its stages and running leases.
//!
//! The cost of a stage is units x seconds a unit. Seconds a unit are measured on this job's committed shards of the
//! same kind; a kind that has none yet takes its default ratio, scaled by what was measured of the others.

use std::collections::HashMap;

use crate::store::{Gang, GangKind, JobState, StageRow, StageState};

/// Relative cost of a unit where nothing is measured yet. Ratios only: generating a row (17 candidates) is 1, an
/// update is 128 pairs forward and backward, a scored row 17 pairs forward.
fn default_cost(kind: &str) -> f64 {
    match kind {
        "resolve" => 2.0,
        "generate" => 1.0,
        "train" => 8.0,
        "score" => 0.4,
        "label" | "select" | "choose" | "accuracy" => 0.001,
        _ => 0.01,
    }
}

/// A lease as its holder last described it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunningLease {
    pub(crate) stage: u32,
    /// Units of the shard.
    pub(crate) units: u64,
    /// Done share of the shard, 0 to 1.
    pub(crate) done: f64,
    /// Seconds since it was leased.
    pub(crate) seconds: f64,
    /// `update 12 of 40, loss 0.061`
    pub(crate) activity: String,
    pub(crate) local: bool,
}

/// What the cluster looks like to a job.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClusterFacts {
    /// Workers that are connected and take leases.
    pub(crate) workers: u32,
    /// Those among them that have the backend which the job asks for.
    pub(crate) capable: u32,
    /// Slots of the capable ones.
    pub(crate) slots: u32,
    /// Those that can train with others.
    pub(crate) data_parallel: u32,
    /// Those that can hold a slice of a model.
    pub(crate) tensor_parallel: u32,
    /// What the job's next shard for several workers asks for.
    pub(crate) waits_for: Option<Gang>,
}

/// A job's progress.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Progress {
    /// Share of the estimated work that is done, 0 to 1.
    pub(crate) fraction: f64,
    /// Seconds to the end; None: unknown.
    pub(crate) eta_seconds: Option<f64>,
    pub(crate) activity: String,
}

/// Estimates a job's progress.
pub(crate) fn progress(
    state: JobState,
    stages: &[StageRow],
    running: &[RunningLease],
    backend: &str,
    cluster: ClusterFacts,
) -> Progress {
    if state.is_terminal() {
        let whole = matches!(state, JobState::Succeeded | JobState::Partial);
        let fraction = if whole { 1.0 } else { estimate(stages, running).fraction() };
        return Progress { fraction, eta_seconds: Some(0.0), activity: String::new() };
    }
    let work = estimate(stages, running);
    let streams = running.iter().filter(|lease| !lease.local).count().max(1) as f64;
    let eta_seconds = match state {
        JobState::Running if work.measured && !running.is_empty() => Some(work.left / streams),
        _ => None,
    };
    Progress {
        fraction: work.fraction(),
        eta_seconds,
        activity: activity(state, stages, running, backend, cluster),
    }
}

struct Work {
    done: f64,
    left: f64,
    measured: bool,
}

impl Work {
    fn fraction(&self) -> f64 {
        let total = self.done + self.left;
        if total > 0.0 { (self.done / total).clamp(0.0, 1.0) } else { 0.0 }
    }
}

fn estimate(stages: &[StageRow], running: &[RunningLease]) -> Work {
    // Seconds and units by kind, from committed shards and the done share of running ones.
    let mut measured: HashMap<&str, (f64, f64)> = HashMap::new();
    for stage in stages.iter().filter(|stage| stage.seconds > 0.0) {
        let entry = measured.entry(&stage.kind).or_default();
        *entry = (entry.0 + stage.seconds, entry.1 + stage.units_done as f64);
    }
    for lease in running.iter().filter(|lease| lease.done > 0.02) {
        if let Some(stage) = stages.get(lease.stage as usize) {
            let entry = measured.entry(&stage.kind).or_default();
            *entry = (entry.0 + lease.seconds, entry.1 + lease.done * lease.units as f64);
        }
    }
    let (seconds, defaults) =
        measured.iter().fold((0.0, 0.0), |(seconds, defaults), (kind, (spent, units))| {
            (seconds + spent, defaults + units * default_cost(kind))
        });
    let scale = if defaults > 0.0 { seconds / defaults } else { 1.0 };
    let cost = |kind: &str| match measured.get(kind) {
        Some((seconds, units)) if *units > 0.0 => seconds / units,
        _ => default_cost(kind) * scale,
    };
    let mut work = Work { done: 0.0, left: 0.0, measured: seconds > 0.0 };
    for stage in stages {
        let cost = cost(&stage.kind);
        let total = stage.units_total as f64 * cost;
        match stage.state {
            StageState::Succeeded | StageState::Reused => work.done += total,
            StageState::Waiting | StageState::Running => {
                let partly: f64 = running
                    .iter()
                    .filter(|lease| lease.stage == stage.index)
                    .map(|lease| lease.done * lease.units as f64)
                    .sum();
                let done = ((stage.units_done as f64 + partly) * cost).min(total);
                work.done += done;
                work.left += total - done;
            }
            // Never to be done: neither here nor there.
            StageState::Failed | StageState::Cancelled | StageState::Skipped => {}
        }
    }
    work
}

fn activity(
    state: JobState,
    stages: &[StageRow],
    running: &[RunningLease],
    backend: &str,
    cluster: ClusterFacts,
) -> String {
    if let Some(lease) = running.iter().min_by_key(|lease| (lease.local, lease.stage)) {
        let Some(stage) = stages.get(lease.stage as usize) else { return String::new() };
        let mut line = describe(stage);
        if !lease.activity.is_empty() {
            line = format!("{line}: {}", lease.activity);
        }
        if running.len() > 1 {
            line = format!("{line} (and {} more)", running.len() - 1);
        }
        return line;
    }
    let waits = stages.iter().find(|stage| stage.state == StageState::Waiting && !stage.message.is_empty());
    match state {
        JobState::Paused => "paused".into(),
        _ if waits.is_some() => waits.map(|stage| stage.message.clone()).unwrap_or_default(),
        _ if cluster.workers == 0 => format!("waiting for a worker{}", that_can(backend)),
        _ if cluster.capable == 0 => {
            format!(
                "waiting for a worker{}; none of the {} connected can",
                that_can(backend),
                cluster.workers
            )
        }
        _ => match cluster.waits_for {
            Some(gang) => waiting_for(gang, &cluster),
            None => "waiting for a free worker".into(),
        },
    }
}

/// What a shard for several workers still needs.
fn waiting_for(gang: Gang, cluster: &ClusterFacts) -> String {
    let Gang { kind, ranks } = gang;
    let here = match kind {
        GangKind::Data => cluster.data_parallel,
        GangKind::Tensor => cluster.tensor_parallel,
    };
    let feature = kind.feature();
    if here >= ranks {
        return format!("waits for {ranks} free workers with {feature}");
    }
    let (are, start) =
        (if here == 1 { "is" } else { "are" }, if ranks - here == 1 { "another" } else { "more" });
    format!(
        "waits for {ranks} workers with {feature}; {here} {are} here: start {start} with --plugin-path DIR, where \
         libcappy_plugin_libtorch is"
    )
}

fn that_can(backend: &str) -> String {
    if backend.is_empty() { String::new() } else { format!(" that can run backend {backend}") }
}

/// `training word_sorting`, from a stage's name.
fn describe(stage: &StageRow) -> String {
    let doing = match stage.kind.as_str() {
        "resolve" => return "finding the models".into(),
        "report" => return "reporting".into(),
        "register" => return "registering the model".into(),
        "generate" => "generating",
        "label" => "labelling",
        "train" => "training",
        "score" => "scoring",
        "select" => "selecting",
        "choose" => "choosing",
        "accuracy" => "measuring accuracy",
        other => other,
    };
    match stage.name.split_once('/') {
        Some((_, what)) => format!("{doing} {what}"),
        None => doing.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(index: u32, kind: &str, state: StageState, done: u64, total: u64, seconds: f64) -> StageRow {
        StageRow {
            index,
            name: format!("{kind}/word_sorting"),
            kind: kind.into(),
            state,
            message: String::new(),
            outputs: None,
            shards_done: 0,
            shards_total: 1,
            units_done: done,
            units_total: total,
            seconds,
        }
    }

    #[test]
    fn work_is_weighted_by_measured_cost_and_the_rest_scaled_from_it() {
        // Generation: 2 s a unit, twice its default; so an update costs 16 s and a scored row 0.8 s.
        let stages = [
            stage(0, "generate", StageState::Succeeded, 100, 100, 200.0),
            stage(1, "train", StageState::Running, 0, 10, 0.0),
            stage(2, "score", StageState::Waiting, 0, 50, 0.0),
        ];
        let facts = ClusterFacts { workers: 1, capable: 1, slots: 1, ..Default::default() };
        let lease = |done, seconds| RunningLease {
            stage: 1,
            units: 10,
            done,
            seconds,
            activity: "update 5 of 10, loss 0.061".into(),
            local: false,
        };
        let begun = progress(JobState::Running, &stages, &[lease(0.0, 1.0)], "", facts);
        assert_eq!(begun.eta_seconds, Some(160.0 + 40.0));
        assert_eq!(begun.fraction, 0.5);
        assert_eq!(begun.activity, "training word_sorting: update 5 of 10, loss 0.061");
        // Updates turn out to take 4 s; all measured kinds now scale the unmeasured one: 220 s for 100 + 40.
        let half = progress(JobState::Running, &stages, &[lease(0.5, 20.0)], "", facts);
        let scored = 50.0 * 0.4 * 220.0 / 140.0;
        assert!((half.eta_seconds.unwrap() - (20.0 + scored)).abs() < 1e-9, "{half:?}");
        let two = progress(JobState::Running, &stages, &[lease(0.5, 20.0), lease(0.0, 0.0)], "", facts);
        assert!((two.eta_seconds.unwrap() - half.eta_seconds.unwrap() / 2.0).abs() < 1e-9);
        assert!(two.activity.ends_with("(and 1 more)"));
    }

    #[test]
    fn a_job_that_waits_says_for_what() {
        let stages = [stage(0, "generate", StageState::Running, 0, 100, 0.0)];
        let line = |state, backend, workers, capable| {
            progress(
                state,
                &stages,
                &[],
                backend,
                ClusterFacts { workers, capable, slots: capable, ..Default::default() },
            )
            .activity
        };
        assert_eq!(line(JobState::Queued, "", 0, 0), "waiting for a worker");
        assert_eq!(
            line(JobState::Queued, "libtorch", 0, 0),
            "waiting for a worker that can run backend libtorch"
        );
        assert_eq!(
            line(JobState::Queued, "libtorch", 2, 0),
            "waiting for a worker that can run backend libtorch; none of the 2 connected can"
        );
        assert_eq!(line(JobState::Running, "", 1, 1), "waiting for a free worker");
        assert_eq!(line(JobState::Paused, "", 1, 1), "paused");
        let gang = |kind, ranks, here| {
            let waits_for = Some(Gang { kind, ranks });
            let facts = ClusterFacts {
                workers: 3,
                capable: 3,
                tensor_parallel: here,
                waits_for,
                ..Default::default()
            };
            progress(JobState::Running, &stages, &[], "", facts).activity
        };
        assert_eq!(
            gang(GangKind::Tensor, 2, 1),
            "waits for 2 workers with tensor-parallel; 1 is here: start another with --plugin-path DIR, where \
             libcappy_plugin_libtorch is"
        );
        assert!(
            gang(GangKind::Data, 4, 2)
                .starts_with("waits for 4 workers with data-parallel; 0 are here: start more")
        );
        assert_eq!(gang(GangKind::Tensor, 2, 2), "waits for 2 free workers with tensor-parallel");
        let unknown = progress(JobState::Queued, &stages, &[], "", ClusterFacts::default());
        assert_eq!((unknown.fraction, unknown.eta_seconds), (0.0, None));
    }
}
