//! Which worker gets an online call.

use std::sync::PoisonError;

use cappy_proto::WorkerId;

use super::{Cluster, Member};

/// A lease keeps a worker as busy as so many rows of online calls.
const LEASE_ROWS: u64 = 32;
/// Loading a model costs as much as so many rows: only then is a worker that has it passed over.
const LOAD_ROWS: u64 = 256;

/// What a call asks of a worker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    /// Empty: any.
    pub(crate) backend: &'a str,
    /// Fingerprints of its models, as far as they are known.
    pub(crate) models: &'a [String],
    /// How much work it is.
    pub(crate) rows: u64,
    /// Workers that could not answer it.
    pub(crate) tried: &'a [WorkerId],
}

/// A worker that answers online calls.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) worker: WorkerId,
    pub(crate) url: String,
}

impl Cluster {
    /// Takes the worker that will answer a call soonest. Give it back with [`Self::release`].
    pub(crate) fn acquire(&self, wanted: Wanted<'_>) -> Option<Server> {
        let mut state = self.lock();
        state.turn = state.turn.wrapping_add(1);
        let turn = state.turn;
        let mut able: Vec<(&WorkerId, &mut Member)> = state
            .members
            .iter_mut()
            .filter(|(worker, member)| member.serves(&wanted) && !wanted.tried.contains(worker))
            .collect();
        able.sort_by(|a, b| a.0.cmp(b.0));
        let least = able.iter().map(|(_, member)| member.rows_before(&wanted)).min()?;
        able.retain(|(_, member)| member.rows_before(&wanted) == least);
        // Equally good ones take turns.
        let chosen = turn % able.len();
        let (worker, member) = able.swap_remove(chosen);
        member.online_rows += wanted.rows;
        Some(Server { worker: worker.clone(), url: member.hello.inference_url.clone() })
    }

    /// A call that was worth `rows` has ended.
    pub(crate) fn release(&self, worker: &WorkerId, rows: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = state.members.get_mut(worker) {
            member.online_rows = member.online_rows.saturating_sub(rows);
        }
    }
}

impl Member {
    fn serves(&self, wanted: &Wanted<'_>) -> bool {
        let backends = &self.hello.backends;
        !self.draining
            && !self.hello.inference_url.is_empty()
            && (wanted.backend.is_empty() || backends.iter().any(|found| found.name == wanted.backend))
    }

    /// How much stands before a call here, the loading of its models included.
    fn rows_before(&self, wanted: &Wanted<'_>) -> u64 {
        let absent = wanted.models.iter().filter(|model| !self.resident.contains(model)).count() as u64;
        self.online_rows + self.leases.len() as u64 * LEASE_ROWS + absent * LOAD_ROWS
    }
}

#[cfg(test)]
mod tests {
    use cappy_proto::v1;

    use super::*;

    fn join(cluster: &Cluster, name: &str, resident: &[&str]) -> WorkerId {
        let hello = v1::Hello {
            name: name.into(),
            inference_url: format!("http://{name}"),
            backends: vec![v1::BackendInfo { name: "candle".into(), ..Default::default() }],
            ..Default::default()
        };
        let (worker, inbox) = cluster.join(hello);
        std::mem::forget(inbox);
        let resident_models = resident.iter().map(|&model| model.to_owned()).collect();
        cluster.heartbeat(&worker, &v1::Heartbeat { resident_models, ..Default::default() }, Vec::new());
        worker
    }

    #[test]
    fn a_call_goes_where_it_is_answered_soonest() {
        let cluster = Cluster::default();
        let (a, b) = (join(&cluster, "a", &["m"]), join(&cluster, "b", &[]));
        let model = ["m".to_owned()];
        let take = |rows, models| {
            let wanted = Wanted { rows, models, ..Wanted::default() };
            cluster.acquire(wanted).unwrap().worker
        };
        for rows in [64, 64, 64, 65] {
            assert_eq!(take(rows, &model), a, "it has the model");
        }
        assert_eq!(take(1, &model), b, "by now loading it there is faster");
        assert_eq!(take(1, &[]), b, "the least busy one");
        cluster.release(&a, 3 * 64 + 65);
        assert_eq!(take(1, &model), a);

        let tried = [a.clone()];
        let again = Wanted { tried: &tried, ..Wanted::default() };
        assert_eq!(cluster.acquire(again).unwrap().worker, b, "not where it failed");
        let other = Wanted { backend: "libtorch", ..Wanted::default() };
        assert!(cluster.acquire(other).is_none());
        cluster.drain(&b);
        assert!(cluster.acquire(again).is_none(), "a draining worker takes no calls");
    }

    #[test]
    fn equals_take_turns() {
        let cluster = Cluster::default();
        let workers: Vec<WorkerId> = ["a", "b", "c"].map(|name| join(&cluster, name, &[])).to_vec();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..3 {
            seen.insert(cluster.acquire(Wanted::default()).unwrap().worker);
        }
        assert_eq!(seen.len(), workers.len());
    }
}
