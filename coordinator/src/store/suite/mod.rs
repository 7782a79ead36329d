//! What every job store must do. `job_store_suite!` runs it on one implementation: it is given a function from an empty
//! folder to a store and a closure that moves the store's clock. One file a part of the store; here is what they share.

pub(super) mod artifacts;
pub(super) mod gangs;
pub(super) mod jobs;
pub(super) mod leases;
pub(super) mod models;
pub(super) mod rows;
pub(super) mod stages;

use std::time::Duration;

use cappy_proto::{JobId, WorkerId};

use super::*;

/// Defines one test a promise for the store that `$open` makes.
macro_rules! job_store_suite {
    ($open:expr) => {
        crate::store::suite::job_store_suite!(@tests $open;
            jobs {
                a_job_is_submitted_once_a_key,
                a_job_is_found_by_a_unique_prefix,
                jobs_are_listed_newest_first_in_pages,
                cancel_and_completion_have_one_winner,
                a_paused_job_gets_no_leases,
                only_ended_jobs_are_deleted,
                history_is_told_by_stage_and_shard,
            }
            stages {
                stages_open_commit_and_are_reused,
                two_jobs_compute_the_same_stage_once,
            }
            leases {
                a_shard_commits_exactly_once,
                an_expired_lease_is_granted_again_and_its_holder_fenced,
                a_kept_lease_does_not_expire_and_a_lost_worker_s_does_sooner,
                attempts_are_counted_and_the_last_ends_the_stage,
                a_lagging_shard_is_leased_twice_and_the_first_commit_wins,
            }
            gangs {
                a_gang_is_leased_as_one_and_ends_as_one,
            }
            rows {
                the_row_that_fails_is_found_and_the_others_go_on,
                a_stage_with_too_many_bad_rows_fails,
            }
            artifacts {
                unknown_artifacts_are_not_committed,
                artifacts_live_as_long_as_a_job_holds_them,
            }
            models {
                a_trained_model_is_registered_once_and_goes_with_its_last_maker,
            }
        );
        #[tokio::test]
        async fn a_store_opened_again_knows_everything() {
            let folder = tempfile::tempdir().unwrap();
            let (store, _) = ($open)(folder.path());
            let (job, granted) = crate::store::suite::running_job(&store, 1).await;
            drop(store);
            let (store, _) = ($open)(folder.path());
            crate::store::suite::finds_it_again(&store, &job, &granted).await;
        }
    };
    (@tests $open:expr; $($room:ident { $($name:ident),+ $(,)? })+) => {
        $($(
            #[tokio::test]
            async fn $name() {
                let folder = tempfile::tempdir().unwrap();
                let (store, advance) = ($open)(folder.path());
                crate::store::suite::$room::$name(&store, &advance).await;
            }
        )+)+
    };
}
pub(super) use job_store_suite;

pub(super) const TTL: Duration = Duration::from_secs(30);

pub(super) fn retry() -> RetryPolicy {
    RetryPolicy { max_attempts: 3, max_interruptions: 100, backoff: Duration::from_secs(1) }
}

pub(super) fn new_job(key: Option<&str>, stages: usize) -> NewJob {
    NewJob {
        id: JobId::generate(),
        idempotency_key: key.map(str::to_owned),
        kind: "bigbench".into(),
        title: "a title".into(),
        spec: b"spec".to_vec(),
        priority: 0,
        inputs: Vec::new(),
        models: Vec::new(),
        stages: (0..stages)
            .map(|index| NewStage {
                name: format!("stage/{index}"),
                kind: "generate".into(),
                units_total: 10,
                spares_rows: false,
            })
            .collect(),
    }
}

pub(super) fn shards(count: usize) -> Vec<NewShard> {
    let requirements = Requirements { inputs: vec!["input".into()], ..Default::default() };
    (0..count)
        .map(|index| NewShard {
            task: vec![u8::try_from(index).unwrap()],
            units: 5,
            rows: None,
            requirements: requirements.clone(),
        })
        .collect()
}

fn open_step(stage: u32, fingerprint: Option<&str>, count: usize) -> Step {
    Step::Open {
        stage,
        fingerprint: fingerprint.map(str::to_owned),
        shards: shards(count),
        message: String::new(),
    }
}

/// A job of two stages whose first is open, and a lease on its first shard.
pub(super) async fn running_job(store: &dyn JobStore, count: usize) -> (JobId, Granted) {
    let job = new_job(None, 2);
    let id = job.id.clone();
    store.submit(job).await.unwrap();
    store.apply(&id, vec![open_step(0, Some("fp"), count)]).await.unwrap();
    let granted = grant_one(store, &WorkerId::generate()).await.unwrap();
    (id, granted)
}

/// Leases whatever is pending first.
async fn grant_one(store: &dyn JobStore, worker: &WorkerId) -> Option<Granted> {
    let pending = store.pending(10).await.unwrap();
    let shard = pending.iter().flat_map(|job| &job.shards).next()?;
    store.lease(&shard.id, worker, TTL).await.unwrap()
}

fn key(granted: &Granted) -> LeaseKey {
    LeaseKey {
        lease: granted.lease.clone(),
        fencing_token: granted.fencing_token,
        shard: granted.shard.clone(),
    }
}

async fn output(store: &dyn JobStore, id: &str) -> ShardOutput {
    store.record_artifact(id, 7).await.unwrap();
    let artifact = NamedOutput { name: "rows.jsonl".into(), id: id.into(), size_bytes: 7 };
    ShardOutput { artifacts: vec![artifact], ..Default::default() }
}

fn failure(class: FailureClass) -> AttemptFailure {
    AttemptFailure { class, code: "internal".into(), message: "it broke".into() }
}

async fn shard_of(store: &dyn JobStore, job: &JobId) -> StageRow {
    store.job(job).await.unwrap().stages.into_iter().next().unwrap()
}

pub(super) async fn finds_it_again(store: &dyn JobStore, job: &JobId, granted: &Granted) {
    let record = store.job(job).await.unwrap();
    assert_eq!((record.row.state, record.stages[0].state), (JobState::Running, StageState::Running));
    assert_eq!(store.active_jobs().await.unwrap(), std::slice::from_ref(job));
    assert_eq!(store.count_leased().await.unwrap(), 1);
    assert!(store.complete(&key(granted), output(store, "a").await).await.unwrap().newly_committed);
}
