//! The lease state machine against a model: whatever workers do and in whatever order, each shard commits at most once,
//! by the holder of its newest lease, and the store says what the model says.

use std::{collections::HashMap, time::Duration};

use cappy_proto::{JobId, ShardId, WorkerId};
use proptest::prelude::*;

use super::{
    suite::{TTL, new_job, retry, shards},
    *,
};

const SHARDS: usize = 3;
/// The last shard is for so many ranks.
const RANKS: usize = 2;
const GANG: usize = SHARDS - 1;

#[derive(Clone, Debug)]
enum Action {
    /// Lease the n-th shard.
    Lease(usize),
    /// Lease the n-th shard to two workers together.
    LeaseGang(usize),
    /// Lease it a second time.
    LeaseAgain(usize),
    /// Act on the n-th lease ever granted.
    Complete(usize),
    Fail(usize, FailureClass),
    Extend(usize),
    /// Move the clock by this many seconds and sweep.
    Sweep(u64),
    Cancel,
}

fn action() -> impl Strategy<Value = Action> {
    let class = prop_oneof![
        3 => Just(FailureClass::Infrastructure),
        3 => Just(FailureClass::Attempt),
        1 => Just(FailureClass::Permanent)
    ];
    prop_oneof![
        6 => (0..SHARDS).prop_map(Action::Lease),
        5 => (0..SHARDS).prop_map(Action::LeaseGang),
        4 => (0..SHARDS).prop_map(Action::LeaseAgain),
        5 => (0..12usize).prop_map(Action::Complete),
        3 => ((0..12usize), class).prop_map(|(lease, class)| Action::Fail(lease, class)),
        3 => (0..12usize).prop_map(Action::Extend),
        4 => (0..20u64).prop_map(Action::Sweep),
        1 => Just(Action::Cancel),
    ]
}

#[derive(Clone, Debug, PartialEq)]
enum Is {
    Pending {
        not_before: u64,
    },
    /// Leases by number, with their deadlines.
    Leased(Vec<(usize, u64)>),
    Committed {
        lease: usize,
    },
    Ended,
}

struct Model {
    now: u64,
    shards: Vec<Is>,
    attempts: Vec<u32>,
    interruptions: Vec<u32>,
    /// Shard of each lease, and whether it ended by a failure that the worker told.
    leases: Vec<(usize, bool)>,
    open: bool,
}

impl Model {
    fn new() -> Self {
        Self {
            now: 0,
            shards: vec![Is::Pending { not_before: 0 }; SHARDS],
            attempts: vec![0; SHARDS],
            interruptions: vec![0; SHARDS],
            leases: Vec::new(),
            open: true,
        }
    }

    fn may_lease(&self, shard: usize) -> bool {
        self.open && matches!(self.shards[shard], Is::Pending { not_before } if not_before <= self.now)
    }

    fn holds(&self, lease: usize) -> Option<usize> {
        let (shard, _) = *self.leases.get(lease)?;
        let Is::Leased(held) = &self.shards[shard] else { return None };
        held.iter().any(|(held, _)| *held == lease).then_some(shard)
    }

    fn fail(&mut self, shard: usize, lease: usize, class: FailureClass, expired: bool) {
        match class {
            FailureClass::Infrastructure => self.interruptions[shard] += 1,
            _ => self.attempts[shard] += 1,
        }
        if class == FailureClass::Permanent || self.attempts[shard] >= retry().max_attempts {
            self.end_all();
            return;
        }
        let count = match class {
            FailureClass::Infrastructure => self.interruptions[shard],
            _ => self.attempts[shard],
        };
        let pause = if expired { 0 } else { (1u64 << (count - 1).min(16)).min(60) };
        if let Is::Leased(held) = &mut self.shards[shard] {
            // A gang ends as one.
            held.retain(|(held, _)| *held != lease && shard != GANG);
            if held.is_empty() {
                self.shards[shard] = Is::Pending { not_before: self.now + pause };
            }
        }
    }

    fn end_all(&mut self) {
        for shard in &mut self.shards {
            if !matches!(shard, Is::Committed { .. }) {
                *shard = Is::Ended;
            }
        }
    }
}

async fn follow(store: SqliteStore, actions: Vec<Action>) {
    let job = new_job(None, 1);
    let id: JobId = job.id.clone();
    store.submit(job).await.unwrap();
    let mut new_shards = shards(SHARDS);
    new_shards[GANG].requirements.gang = Some(Gang { kind: GangKind::Data, ranks: RANKS as u32 });
    store
        .apply(
            &id,
            vec![Step::Open { stage: 0, fingerprint: None, shards: new_shards, message: String::new() }],
        )
        .await
        .unwrap();
    store.record_artifact("a", 1).await.unwrap();
    let pending = store.pending(10).await.unwrap();
    let ids: Vec<ShardId> = pending[0].shards.iter().map(|shard| shard.id.clone()).collect();
    let mut keys: Vec<LeaseKey> = Vec::new();
    let mut tokens: HashMap<ShardId, u64> = HashMap::new();
    let mut model = Model::new();
    let output = ShardOutput {
        artifacts: vec![NamedOutput { name: "x".into(), id: "a".into(), size_bytes: 1 }],
        ..Default::default()
    };

    for action in actions {
        match action {
            Action::Lease(shard) => {
                let granted = store.lease(&ids[shard], &WorkerId::generate(), TTL).await.unwrap();
                assert_eq!(granted.is_some(), shard != GANG && model.may_lease(shard));
                let Some(granted) = granted else { continue };
                let before = tokens.insert(ids[shard].clone(), granted.fencing_token);
                assert!(before.is_none_or(|token| token < granted.fencing_token), "tokens only grow");
                assert_eq!(granted.attempt, model.attempts[shard] + 1);
                let deadline = model.now + TTL.as_secs();
                model.shards[shard] = Is::Leased(vec![(model.leases.len(), deadline)]);
                model.leases.push((shard, false));
                keys.push(LeaseKey {
                    lease: granted.lease,
                    fencing_token: granted.fencing_token,
                    shard: granted.shard,
                });
            }
            Action::LeaseGang(shard) => {
                let workers: Vec<WorkerId> = (0..RANKS).map(|_| WorkerId::generate()).collect();
                let granted = store.lease_gang(&ids[shard], &workers, TTL).await.unwrap();
                assert_eq!(granted.is_some(), shard == GANG && model.may_lease(shard));
                let Some(granted) = granted else { continue };
                let deadline = model.now + TTL.as_secs();
                let numbers = model.leases.len()..model.leases.len() + RANKS;
                model.shards[shard] = Is::Leased(numbers.map(|number| (number, deadline)).collect());
                for granted in granted {
                    let before = tokens.insert(ids[shard].clone(), granted.fencing_token);
                    assert!(before.is_none_or(|token| token < granted.fencing_token), "tokens only grow");
                    model.leases.push((shard, false));
                    keys.push(LeaseKey {
                        lease: granted.lease,
                        fencing_token: granted.fencing_token,
                        shard: granted.shard,
                    });
                }
            }
            Action::LeaseAgain(shard) => {
                let granted = store.lease_again(&ids[shard], &WorkerId::generate(), TTL).await.unwrap();
                let number = model.leases.len();
                let deadline = model.now + TTL.as_secs();
                match &mut model.shards[shard] {
                    Is::Leased(held) if held.len() == 1 && model.open => held.push((number, deadline)),
                    _ => {
                        assert!(granted.is_none());
                        continue;
                    }
                }
                let granted = granted.expect("one lease is held");
                let before = tokens.insert(ids[shard].clone(), granted.fencing_token);
                assert!(before.is_some_and(|token| token < granted.fencing_token), "tokens only grow");
                model.leases.push((shard, false));
                keys.push(LeaseKey {
                    lease: granted.lease,
                    fencing_token: granted.fencing_token,
                    shard: granted.shard,
                });
            }
            Action::Complete(lease) => {
                let Some(key) = keys.get(lease) else { continue };
                let told = store.complete(key, output.clone()).await;
                let shard = model.leases[lease].0;
                if model.holds(lease).is_some() {
                    assert!(told.unwrap().newly_committed);
                    model.shards[shard] = Is::Committed { lease };
                } else if model.shards[shard] == (Is::Committed { lease }) {
                    assert!(!told.unwrap().newly_committed);
                } else {
                    assert!(matches!(told, Err(StoreError::Fenced { .. })));
                }
            }
            Action::Fail(lease, class) => {
                let Some(key) = keys.get(lease) else { continue };
                let failure = AttemptFailure { class, code: "c".into(), message: "m".into() };
                let told = store.fail(key, failure, &retry()).await;
                if let Some(shard) = model.holds(lease) {
                    told.unwrap();
                    model.leases[lease].1 = true;
                    model.fail(shard, lease, class, false);
                } else if model.leases[lease].1 {
                    assert_eq!(told.unwrap(), FailOutcome::default());
                } else {
                    assert!(matches!(told, Err(StoreError::Fenced { .. })));
                }
            }
            Action::Extend(lease) => {
                let Some(key) = keys.get(lease) else { continue };
                let held =
                    store.extend(&WorkerId::generate(), std::slice::from_ref(&key.lease), TTL).await.unwrap();
                assert_eq!(held.len(), usize::from(model.holds(lease).is_some()));
                let until = model.now + TTL.as_secs();
                if let Some(shard) = model.holds(lease)
                    && let Is::Leased(held) = &mut model.shards[shard]
                {
                    held.iter_mut()
                        .filter(|(held, _)| *held == lease)
                        .for_each(|(_, deadline)| *deadline = until);
                }
            }
            Action::Sweep(seconds) => {
                store.clock().advance(Duration::from_secs(seconds));
                model.now += seconds;
                store.expire(&retry()).await.unwrap();
                let due: Vec<(usize, usize)> = model
                    .shards
                    .iter()
                    .enumerate()
                    .flat_map(|(shard, is)| match is {
                        Is::Leased(held) => held
                            .iter()
                            .filter(|(_, deadline)| *deadline <= model.now)
                            .map(|(lease, _)| (shard, *lease))
                            .collect(),
                        _ => Vec::new(),
                    })
                    .collect();
                for (shard, lease) in due {
                    if model.holds(lease).is_some() {
                        model.fail(shard, lease, FailureClass::Infrastructure, true);
                    }
                }
            }
            Action::Cancel => {
                let (cancelled, _) = store.cancel(&id).await.unwrap();
                assert_eq!(cancelled, model.open);
                model.open = false;
                model.end_all();
            }
        }
        let stage = store.job(&id).await.unwrap().stages.remove(0);
        let committed = model.shards.iter().filter(|shard| matches!(shard, Is::Committed { .. })).count();
        assert_eq!(stage.shards_done as usize, committed);
        assert_eq!(stage.units_done as usize, committed * 5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_store_follows_the_model(actions in proptest::collection::vec(action(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("jobs.sqlite")).unwrap();
        store.clock().freeze();
        runtime.block_on(follow(store, actions));
    }
}
