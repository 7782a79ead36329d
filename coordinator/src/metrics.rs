//! Counters since the start, in Prometheus' text format together with what is counted when asked.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    membership::Cluster,
    store::{JobState, JobStore, StoreError},
};

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) jobs_submitted: AtomicU64,
    pub(crate) leases_granted: AtomicU64,
    pub(crate) leases_speculative: AtomicU64,
    pub(crate) leases_lost: AtomicU64,
    pub(crate) shards_committed: AtomicU64,
    pub(crate) attempts_failed: AtomicU64,
    pub(crate) stages_reused: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Metrics {
    pub(crate) async fn render(&self, store: &dyn JobStore, cluster: &Cluster) -> Result<String, StoreError> {
        let jobs = store.count_jobs().await?;
        let mut out = String::new();
        let mut put = |name: &str, kind: &str, help: &str, lines: &[(String, u64)]| {
            let _ = writeln!(out, "# HELP cappy_{name} {help}\n# TYPE cappy_{name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(out, "cappy_{name}{labels} {value}");
            }
        };
        let states = [
            JobState::Queued,
            JobState::Running,
            JobState::Paused,
            JobState::Succeeded,
            JobState::Failed,
            JobState::Cancelled,
            JobState::Partial,
        ];
        let lines: Vec<(String, u64)> = states
            .iter()
            .map(|state| {
                let count = jobs.iter().find(|(found, _)| found == state).map_or(0, |(_, count)| *count);
                (format!("{{state=\"{}\"}}", state.word()), count)
            })
            .collect();
        put("jobs", "gauge", "Jobs in the store by state.", &lines);
        let facts = cluster.facts("");
        put("workers", "gauge", "Workers connected.", &[(String::new(), facts.workers.into())]);
        put(
            "slots",
            "gauge",
            "Shards that the workers can run at once.",
            &[(String::new(), facts.slots.into())],
        );
        put("leases", "gauge", "Leases held now.", &[(String::new(), cluster.held_count())]);
        for (name, help, counter) in [
            ("jobs_submitted_total", "Jobs accepted.", &self.jobs_submitted),
            ("leases_granted_total", "Leases granted.", &self.leases_granted),
            ("leases_speculative_total", "Leases of shards that lagged.", &self.leases_speculative),
            ("leases_lost_total", "Leases that expired or were taken back.", &self.leases_lost),
            ("shards_committed_total", "Shards committed.", &self.shards_committed),
            ("attempts_failed_total", "Attempts that workers gave up.", &self.attempts_failed),
            ("stages_reused_total", "Stages taken over from earlier jobs.", &self.stages_reused),
        ] {
            put(name, "counter", help, &[(String::new(), counter.load(Ordering::Relaxed))]);
        }
        Ok(out)
    }
}
