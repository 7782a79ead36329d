//! What every job store must do. `job_store_suite!` runs it on one implementation: it is given a function from an empty
//! folder to a store and a closure that moves the store's clock.

use std::time::Duration;

use cappy_proto::{JobId, LeaseId, ShardId, WorkerId};

use super::*;

/// Defines one test a promise for the store that `$open` makes.
macro_rules! job_store_suite {
    ($open:expr) => {
        crate::store::suite::job_store_suite!(@tests $open;
            a_job_is_submitted_once_a_key,
            a_job_is_found_by_a_unique_prefix,
            jobs_are_listed_newest_first_in_pages,
            stages_open_commit_and_are_reused,
            a_shard_commits_exactly_once,
            an_expired_lease_is_granted_again_and_its_holder_fenced,
            a_kept_lease_does_not_expire_and_a_lost_worker_s_does_sooner,
            attempts_are_counted_and_the_last_ends_the_stage,
            cancel_and_completion_have_one_winner,
            a_paused_job_gets_no_leases,
            only_ended_jobs_are_deleted,
            unknown_artifacts_are_not_committed,
            a_lagging_shard_is_leased_twice_and_the_first_commit_wins,
            a_gang_is_leased_as_one_and_ends_as_one,
            the_row_that_fails_is_found_and_the_others_go_on,
            a_stage_with_too_many_bad_rows_fails,
            two_jobs_compute_the_same_stage_once,
            artifacts_live_as_long_as_a_job_holds_them,
            history_is_told_by_stage_and_shard,
            a_trained_model_is_registered_once_and_goes_with_its_last_maker,
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
    (@tests $open:expr; $($name:ident),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() {
                let folder = tempfile::tempdir().unwrap();
                let (store, advance) = ($open)(folder.path());
                crate::store::suite::$name(&store, &advance).await;
            }
        )+
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

pub(super) async fn a_job_is_submitted_once_a_key(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let first = new_job(Some("k"), 3);
    let id = first.id.clone();
    assert_eq!(store.submit(first).await.unwrap(), Submitted::New);
    assert_eq!(store.submit(new_job(Some("k"), 3)).await.unwrap(), Submitted::Existing(id.clone()));
    let mut other = new_job(Some("k"), 3);
    other.spec = b"other".to_vec();
    let error = store.submit(other).await.unwrap_err().to_string();
    assert!(error.contains("`k`") && error.contains(id.as_str()), "{error}");
    assert_eq!(store.submit(new_job(None, 1)).await.unwrap(), Submitted::New);
    assert_eq!(store.submit(new_job(None, 1)).await.unwrap(), Submitted::New);
    let record = store.job(&id).await.unwrap();
    assert_eq!(
        (record.row.state, record.spec.as_slice(), record.stages.len()),
        (JobState::Queued, &b"spec"[..], 3)
    );
    assert_eq!(store.active_jobs().await.unwrap()[0], id);
    assert_eq!(store.active_jobs().await.unwrap().len(), 3);
}

pub(super) async fn a_job_is_found_by_a_unique_prefix(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let jobs: Vec<NewJob> = (0..3).map(|_| new_job(None, 1)).collect();
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id.clone()).collect();
    for job in jobs {
        store.submit(job).await.unwrap();
    }
    for id in &ids {
        assert_eq!(&store.find_job(id.as_str()).await.unwrap(), id);
        assert_eq!(&store.find_job(&id.as_str()[4..]).await.unwrap(), id);
    }
    match store.find_job("job_").await.unwrap_err() {
        StoreError::Ambiguous { candidates, .. } => assert_eq!(candidates.len(), 3),
        other => panic!("{other}"),
    }
    for text in ["job_zzz", "", "%", "../x", "job_'", &"9".repeat(1000)] {
        let error = store.find_job(text).await.unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{text}: {error}");
    }
}

pub(super) async fn jobs_are_listed_newest_first_in_pages(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let mut ids = Vec::new();
    for _ in 0..5 {
        let job = new_job(None, 1);
        ids.push(job.id.clone());
        store.submit(job).await.unwrap();
    }
    ids.reverse();
    let page = |rows: Vec<JobRow>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
    assert_eq!(page(store.list_jobs(3, None).await.unwrap()), ids[..3]);
    assert_eq!(page(store.list_jobs(3, Some(&ids[2])).await.unwrap()), ids[3..]);
    assert!(store.list_jobs(3, Some(&JobId::generate())).await.is_err());
}

pub(super) async fn stages_open_commit_and_are_reused(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let (job, first) = running_job(store, 2).await;
    assert_eq!((first.task.as_slice(), first.units, first.attempt), (&[0][..], 5, 1));
    assert_eq!(store.count_leased().await.unwrap(), 1);
    let second = grant_one(store, &WorkerId::generate()).await.unwrap();
    assert!(grant_one(store, &WorkerId::generate()).await.is_none());
    assert_eq!(store.job(&job).await.unwrap().row.state, JobState::Running);

    // The second shard is done first; outputs stand in the shards' order nevertheless.
    let done = store.complete(&key(&second), output(store, "b").await).await.unwrap();
    assert_eq!(
        done,
        Completed { newly_committed: true, job: job.clone(), stage_ended: false, revoked: vec![] }
    );
    assert!(store.reusable("fp").await.unwrap().is_none());
    let done = store.complete(&key(&first), output(store, "a").await).await.unwrap();
    assert!(done.stage_ended);
    let stage = shard_of(store, &job).await;
    assert_eq!((stage.state, stage.shards_done, stage.units_done), (StageState::Succeeded, 2, 10));
    let outputs = stage.outputs.unwrap();
    let ids: Vec<&str> = outputs.iter().flat_map(|shard| &shard.artifacts).map(|a| a.id.as_str()).collect();
    assert_eq!(ids, ["a", "b"]);

    let reusable = store.reusable("fp").await.unwrap().unwrap();
    assert_eq!(reusable, outputs);
    assert_eq!(outputs.iter().map(|shard| shard.units).collect::<Vec<_>>(), [Some(5), Some(5)]);
    let reuse = Step::Reuse { stage: 1, fingerprint: "fp".into(), outputs: reusable };
    let skip_late = Step::Skip { stage: 1, message: "late".into() };
    let finish = Step::Finish { state: JobState::Succeeded, message: String::new() };
    store.apply(&job, vec![reuse, skip_late, finish]).await.unwrap();
    let record = store.job(&job).await.unwrap();
    assert_eq!((record.row.state, record.stages[1].state), (JobState::Succeeded, StageState::Reused));
    assert!(record.row.ended.is_some());
    store.forget_outputs("fp").await.unwrap();
    assert!(store.reusable("fp").await.unwrap().is_none());

    let log: Vec<String> = store
        .events(&job, 0, 100, &EventFilter::default())
        .await
        .unwrap()
        .into_iter()
        .map(|event| event.message)
        .collect();
    assert_eq!(log[0], "submitted: 2 stages");
    assert!(log.iter().any(|line| line.starts_with("shard 2 of 2 committed")), "{log:?}");
    assert_eq!(log.last().unwrap(), "succeeded");
    let tail = store.events(&job, 2, 1, &EventFilter::default()).await.unwrap();
    assert_eq!((tail.len(), &tail[0].message), (1, &log[2]));
}

pub(super) async fn a_shard_commits_exactly_once(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let (job, granted) = running_job(store, 1).await;
    assert!(store.lease(&granted.shard, &WorkerId::generate(), TTL).await.unwrap().is_none());
    let made = output(store, "a").await;
    for wrong in [
        LeaseKey { fencing_token: granted.fencing_token + 1, ..key(&granted) },
        LeaseKey { lease: LeaseId::generate(), ..key(&granted) },
    ] {
        let error = store.complete(&wrong, made.clone()).await.unwrap_err();
        assert!(matches!(error, StoreError::Fenced { .. }), "{error}");
    }
    let error = store
        .complete(&LeaseKey { shard: ShardId::generate(), ..key(&granted) }, made.clone())
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    assert!(store.complete(&key(&granted), made.clone()).await.unwrap().newly_committed);
    for _ in 0..2 {
        let again = store.complete(&key(&granted), made.clone()).await.unwrap();
        assert_eq!(
            again,
            Completed { newly_committed: false, job: job.clone(), stage_ended: false, revoked: vec![] }
        );
    }
    let late = store.fail(&key(&granted), failure(FailureClass::Attempt), &retry()).await.unwrap_err();
    assert!(matches!(late, StoreError::Fenced { .. }), "{late}");
    assert_eq!(shard_of(store, &job).await.shards_done, 1);
}

pub(super) async fn an_expired_lease_is_granted_again_and_its_holder_fenced(
    store: &dyn JobStore,
    advance: &impl Fn(Duration),
) {
    let (job, lost) = running_job(store, 1).await;
    assert_eq!(store.expire(&retry()).await.unwrap(), FailOutcome::default());
    advance(TTL);
    let expired = store.expire(&retry()).await.unwrap();
    assert_eq!(expired.revoked.iter().map(|revoked| &revoked.lease).collect::<Vec<_>>(), [&lost.lease]);
    assert!(
        store.extend(&WorkerId::generate(), std::slice::from_ref(&lost.lease), TTL).await.unwrap().is_empty()
    );
    let made = output(store, "a").await;
    assert!(matches!(store.complete(&key(&lost), made.clone()).await, Err(StoreError::Fenced { .. })));

    let next = grant_one(store, &WorkerId::generate()).await.unwrap();
    assert!(next.fencing_token > lost.fencing_token);
    assert_eq!(next.attempt, 1, "an expired lease is no attempt");
    assert!(matches!(store.complete(&key(&lost), made.clone()).await, Err(StoreError::Fenced { .. })));
    assert!(store.complete(&key(&next), made.clone()).await.unwrap().newly_committed);
    assert!(matches!(store.complete(&key(&lost), made).await, Err(StoreError::Fenced { .. })));
    assert_eq!(shard_of(store, &job).await.shards_done, 1);
}

pub(super) async fn a_kept_lease_does_not_expire_and_a_lost_worker_s_does_sooner(
    store: &dyn JobStore,
    advance: &impl Fn(Duration),
) {
    let (_, granted) = running_job(store, 1).await;
    // The worker comes back under a new id with the lease in hand.
    let returned = WorkerId::generate();
    for _ in 0..3 {
        advance(TTL / 2);
        let held = store.extend(&returned, &[granted.lease.clone(), LeaseId::generate()], TTL).await.unwrap();
        assert_eq!(held.len(), 1);
        assert_eq!((&held[0].lease, held[0].units), (&granted.lease, 5));
        assert!(store.expire(&retry()).await.unwrap().revoked.is_empty());
    }
    store.shorten(&WorkerId::generate(), Duration::ZERO).await.unwrap();
    store.shorten(&returned, TTL / 10).await.unwrap();
    assert!(store.expire(&retry()).await.unwrap().revoked.is_empty());
    advance(TTL / 10);
    let revoked = store.expire(&retry()).await.unwrap().revoked;
    assert_eq!(revoked.iter().map(|lease| &lease.worker).collect::<Vec<_>>(), [&returned]);
}

pub(super) async fn attempts_are_counted_and_the_last_ends_the_stage(
    store: &dyn JobStore,
    advance: &impl Fn(Duration),
) {
    let (job, mut granted) = running_job(store, 2).await;
    let poison = granted.shard.clone();
    let other = grant_one(store, &WorkerId::generate()).await.unwrap();
    let classes = [FailureClass::Infrastructure, FailureClass::Attempt, FailureClass::Attempt];
    for (class, next_attempt) in classes.into_iter().zip([1, 2, 3]) {
        let outcome = store.fail(&key(&granted), failure(class), &retry()).await.unwrap();
        assert_eq!(outcome, FailOutcome::default());
        let again = store.fail(&key(&granted), failure(class), &retry()).await.unwrap();
        assert_eq!(again, FailOutcome::default(), "a repeated failure changes nothing");
        assert!(grant_one(store, &WorkerId::generate()).await.is_none(), "it waits before it is tried again");
        advance(Duration::from_secs(2));
        granted = grant_one(store, &WorkerId::generate()).await.unwrap();
        assert_eq!((&granted.shard, granted.attempt), (&poison, next_attempt));
    }
    let outcome = store.fail(&key(&granted), failure(FailureClass::Attempt), &retry()).await.unwrap();
    assert_eq!(outcome.ended, std::slice::from_ref(&job));
    assert_eq!(outcome.revoked.iter().map(|lease| &lease.lease).collect::<Vec<_>>(), [&other.lease]);
    let record = store.job(&job).await.unwrap();
    assert_eq!((record.stages[0].state, record.stages[0].message.as_str()), (StageState::Failed, "it broke"));
    let set_aside = SetAside {
        shard: poison,
        stage: "stage/0".into(),
        code: "internal".into(),
        message: "it broke".into(),
        attempts: 3,
        rows: None,
    };
    assert_eq!(record.failures, [set_aside]);
    assert!(!record.row.state.is_terminal(), "the planner ends the job");
    assert!(matches!(
        store.complete(&key(&other), output(store, "a").await).await,
        Err(StoreError::Fenced { .. })
    ));

    let (job, granted) = running_job(store, 1).await;
    let outcome = store.fail(&key(&granted), failure(FailureClass::Permanent), &retry()).await.unwrap();
    assert_eq!(outcome.ended, [job], "a permanent failure is not tried again");
}

pub(super) async fn cancel_and_completion_have_one_winner(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let (job, granted) = running_job(store, 2).await;
    let (cancelled, revoked) = store.cancel(&job).await.unwrap();
    assert!(cancelled);
    assert_eq!(revoked.iter().map(|lease| &lease.lease).collect::<Vec<_>>(), [&granted.lease]);
    let late = store.complete(&key(&granted), output(store, "a").await).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })));
    assert!(grant_one(store, &WorkerId::generate()).await.is_none());
    assert!(!store.cancel(&job).await.unwrap().0);
    let finish = Step::Finish { state: JobState::Succeeded, message: String::new() };
    store.apply(&job, vec![finish, open_step(1, None, 1)]).await.unwrap();
    let record = store.job(&job).await.unwrap();
    assert_eq!(record.row.state, JobState::Cancelled);
    assert!(record.stages.iter().all(|stage| stage.state == StageState::Cancelled));
    assert!(store.active_jobs().await.unwrap().is_empty());
    assert!(matches!(store.set_paused(&job, true).await, Err(StoreError::WrongState(_))));
    assert_eq!(store.count_jobs().await.unwrap(), [(JobState::Cancelled, 1)]);
}

pub(super) async fn a_paused_job_gets_no_leases(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let (job, granted) = running_job(store, 2).await;
    let pending = store.pending(10).await.unwrap()[0].shards[0].id.clone();
    let (paused, revoked) = store.set_paused(&job, true).await.unwrap();
    assert!(paused);
    assert_eq!(revoked.iter().map(|lease| &lease.lease).collect::<Vec<_>>(), [&granted.lease]);
    assert!(!store.set_paused(&job, true).await.unwrap().0);
    assert!(store.pending(10).await.unwrap().is_empty());
    assert!(store.lease(&pending, &WorkerId::generate(), TTL).await.unwrap().is_none());
    let late = store.complete(&key(&granted), output(store, "a").await).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "what was taken back does not commit");
    assert_eq!(store.job(&job).await.unwrap().row.state, JobState::Paused);
    assert!(store.set_paused(&job, false).await.unwrap().0);
    assert_eq!(store.job(&job).await.unwrap().row.state, JobState::Running);
    let again = store.lease(&granted.shard, &WorkerId::generate(), TTL).await.unwrap().unwrap();
    assert_eq!(again.attempt, 1, "being paused is no attempt");
    assert!(store.complete(&key(&again), output(store, "a").await).await.unwrap().newly_committed);
}

pub(super) async fn only_ended_jobs_are_deleted(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let (job, _) = running_job(store, 1).await;
    assert!(matches!(store.delete(&job).await, Err(StoreError::WrongState(_))));
    store.cancel(&job).await.unwrap();
    store.delete(&job).await.unwrap();
    assert!(matches!(store.job(&job).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(store.delete(&job).await, Err(StoreError::NotFound { .. })));
    assert!(store.events(&job, 0, 10, &EventFilter::default()).await.unwrap().is_empty());
}

pub(super) async fn unknown_artifacts_are_not_committed(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let (job, granted) = running_job(store, 1).await;
    let artifact = |id: &str, size_bytes| NamedOutput { name: "x".into(), id: id.into(), size_bytes };
    store.record_artifact("known", 7).await.unwrap();
    store.record_artifact("known", 9).await.unwrap();
    assert_eq!(store.artifact("known").await.unwrap(), Some(7));
    assert_eq!(store.artifact("other").await.unwrap(), None);
    for wrong in [artifact("other", 7), artifact("known", 8)] {
        let made = ShardOutput { artifacts: vec![wrong], ..Default::default() };
        let error = store.complete(&key(&granted), made).await.unwrap_err();
        assert!(matches!(error, StoreError::UnknownArtifact { .. }), "{error}");
    }
    assert_eq!(shard_of(store, &job).await.shards_done, 0);
    let made = ShardOutput { artifacts: vec![artifact("known", 7)], ..Default::default() };
    assert!(store.complete(&key(&granted), made).await.unwrap().newly_committed);
}

pub(super) async fn a_lagging_shard_is_leased_twice_and_the_first_commit_wins(
    store: &dyn JobStore,
    advance: &impl Fn(Duration),
) {
    let slow = WorkerId::generate();
    let (job, first) = running_job(store, 2).await;
    advance(Duration::from_secs(4));
    assert!(store.stragglers().await.unwrap().is_empty(), "its stage has a shard that waits");
    let lagging = grant_one(store, &slow).await.unwrap();
    assert!(store.stragglers().await.unwrap().is_empty(), "nothing is known of the stage's speed yet");
    store.complete(&key(&first), output(store, "a").await).await.unwrap();
    advance(Duration::from_secs(20));
    let stragglers = store.stragglers().await.unwrap();
    assert_eq!(stragglers.len(), 1);
    assert_eq!(
        (&stragglers[0].shard.id, &stragglers[0].shard.last_worker),
        (&lagging.shard, &Some(slow.clone()))
    );
    assert_eq!((stragglers[0].held.as_secs(), stragglers[0].expected.as_secs()), (20, 4));

    assert!(store.lease_again(&lagging.shard, &slow, TTL).await.unwrap().is_none(), "not by the same worker");
    let second = store.lease_again(&lagging.shard, &WorkerId::generate(), TTL).await.unwrap().unwrap();
    assert!(second.fencing_token > lagging.fencing_token);
    assert!(
        store.lease_again(&lagging.shard, &WorkerId::generate(), TTL).await.unwrap().is_none(),
        "two are enough"
    );
    assert!(store.stragglers().await.unwrap().is_empty());

    // One of the two fails, the other goes on; then both run again and the later one is faster.
    store.fail(&key(&second), failure(FailureClass::Attempt), &retry()).await.unwrap();
    assert!(store.pending(10).await.unwrap().is_empty(), "the first still has it");
    let third = store.lease_again(&lagging.shard, &WorkerId::generate(), TTL).await.unwrap().unwrap();
    let done = store.complete(&key(&third), output(store, "b").await).await.unwrap();
    assert!(done.newly_committed && done.stage_ended);
    assert_eq!(done.revoked.iter().map(|lease| &lease.lease).collect::<Vec<_>>(), [&lagging.lease]);
    let late = store.complete(&key(&lagging), output(store, "c").await).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })));
    assert!(!store.complete(&key(&third), output(store, "b").await).await.unwrap().newly_committed);
    assert_eq!(shard_of(store, &job).await.shards_done, 2);
    assert_eq!(store.count_leased().await.unwrap(), 0);
}

/// A job of one stage over `count` rows in one shard, of which it can spare some.
async fn row_job(store: &dyn JobStore, count: u64) -> JobId {
    let mut job = new_job(None, 1);
    job.stages[0].spares_rows = true;
    let id = job.id.clone();
    store.submit(job).await.unwrap();
    let rows = Some(RowRange { start: 0, end: count });
    let shard = NewShard { units: count, rows, ..shards(1).remove(0) };
    let open = Step::Open {
        stage: 0,
        fingerprint: Some("rows".into()),
        shards: vec![shard],
        message: String::new(),
    };
    store.apply(&id, vec![open]).await.unwrap();
    id
}

/// Works until nothing is pending; shards with a row that `fails` fail.
async fn work(
    store: &dyn JobStore,
    advance: &impl Fn(Duration),
    class: FailureClass,
    fails: impl Fn(u64) -> bool,
) {
    for _ in 0..10_000 {
        advance(Duration::from_secs(60));
        let Some(granted) = grant_one(store, &WorkerId::generate()).await else { return };
        let rows = granted.rows.unwrap();
        assert_eq!(granted.units, rows.len());
        if (rows.start..rows.end).any(&fails) {
            store.fail(&key(&granted), failure(class), &retry()).await.unwrap();
        } else {
            let made = output(store, &format!("rows {}-{}", rows.start, rows.end)).await;
            store.complete(&key(&granted), made).await.unwrap();
        }
    }
    panic!("it does not end");
}

pub(super) async fn a_gang_is_leased_as_one_and_ends_as_one(
    store: &dyn JobStore,
    advance: &impl Fn(Duration),
) {
    let job = new_job(None, 1);
    let id = job.id.clone();
    store.submit(job).await.unwrap();
    let mut gang = shards(1);
    gang[0].requirements.gang = Some(Gang { kind: GangKind::Tensor, ranks: 2 });
    let open = Step::Open { stage: 0, fingerprint: None, shards: gang, message: "split over 2".into() };
    store.apply(&id, vec![open]).await.unwrap();
    let shard = store.pending(10).await.unwrap()[0].shards[0].id.clone();
    assert_eq!(store.job(&id).await.unwrap().pending_gang.map(|gang| gang.ranks), Some(2));
    assert_eq!(shard_of(store, &id).await.message, "split over 2");
    let workers: Vec<WorkerId> = (0..3).map(|_| WorkerId::generate()).collect();
    // All of its ranks or none.
    assert!(store.lease(&shard, &workers[0], TTL).await.unwrap().is_none());
    assert!(store.lease_gang(&shard, &workers, TTL).await.unwrap().is_none());
    assert!(store.lease_gang(&shard, &[], TTL).await.unwrap().is_none());

    let lease = async || store.lease_gang(&shard, &workers[..2], TTL).await.unwrap().unwrap();
    let granted = lease().await;
    assert!(granted[0].fencing_token < granted[1].fencing_token && granted.iter().all(|lease| lease.gang));
    assert!(store.lease_gang(&shard, &workers[..2], TTL).await.unwrap().is_none());
    assert!(store.stragglers().await.unwrap().is_empty());
    assert!(store.lease_again(&shard, &workers[2], TTL).await.unwrap().is_none(), "nobody tries it too");
    assert_eq!(store.pending(10).await.unwrap().len(), 0);
    assert_eq!(store.count_leased().await.unwrap(), 2);
    let members = store.gang(&key(&granted[1])).await.unwrap();
    let expected: Vec<GangMember> = granted
        .iter()
        .zip(&workers)
        .map(|(granted, worker)| GangMember { lease: granted.lease.clone(), worker: worker.clone() })
        .collect();
    assert_eq!(members, expected);
    store.note(&shard, &workers[1], "it was seen").await.unwrap();
    store.note(&ShardId::generate(), &workers[1], "nowhere").await.unwrap();
    let only = EventFilter { shard: shard.to_string(), ..Default::default() };
    let log = store.events(&id, 0, 100, &only).await.unwrap();
    let noted = log.last().map(|event| (event.worker.as_str(), event.message.as_str()));
    assert_eq!(noted, Some((workers[1].as_str(), "it was seen")));
    let held = store.extend(&workers[1], std::slice::from_ref(&granted[1].lease), TTL).await.unwrap();
    assert!(held[0].gang && held[0].shard == shard);

    // A failure of one takes the other's lease; it counts once.
    let outcome =
        store.fail(&key(&granted[1]), failure(FailureClass::Infrastructure), &retry()).await.unwrap();
    assert_eq!(outcome.revoked.iter().map(|lease| &lease.lease).collect::<Vec<_>>(), [&granted[0].lease]);
    let late = store.fail(&key(&granted[0]), failure(FailureClass::Attempt), &retry()).await;
    assert!(matches!(late, Err(StoreError::Fenced { .. })));
    assert!(matches!(store.gang(&key(&granted[0])).await, Err(StoreError::Fenced { .. })));
    assert!(store.lease_gang(&shard, &workers[..2], TTL).await.unwrap().is_none(), "it waits a while");
    advance(Duration::from_secs(2));

    // So does one that is not heard of.
    let granted = lease().await;
    assert_eq!(granted[0].attempt, 1, "infrastructure is no attempt");
    store.extend(&workers[0], std::slice::from_ref(&granted[0].lease), TTL * 3).await.unwrap();
    advance(TTL);
    let revoked = store.expire(&retry()).await.unwrap().revoked;
    assert_eq!(revoked.len(), 2, "{revoked:?}");
    assert_eq!(store.count_leased().await.unwrap(), 0);

    // The first commit ends the other lease.
    let granted = lease().await;
    let made = output(store, "a").await;
    let done = store.complete(&key(&granted[0]), made.clone()).await.unwrap();
    assert!(done.newly_committed && done.stage_ended);
    assert_eq!(done.revoked.iter().map(|lease| &lease.worker).collect::<Vec<_>>(), [&workers[1]]);
    assert!(matches!(store.complete(&key(&granted[1]), made).await, Err(StoreError::Fenced { .. })));
    let stage = shard_of(store, &id).await;
    assert_eq!((stage.state, stage.message.as_str()), (StageState::Succeeded, "split over 2"));
}

pub(super) async fn the_row_that_fails_is_found_and_the_others_go_on(
    store: &dyn JobStore,
    advance: &impl Fn(Duration),
) {
    for class in [FailureClass::Attempt, FailureClass::Permanent, FailureClass::Infrastructure] {
        let job = row_job(store, 100).await;
        work(store, advance, class, |row| row == 17 || row == 70).await;
        let record = store.job(&job).await.unwrap();
        let stage = &record.stages[0];
        assert_eq!(
            (stage.state, stage.message.as_str()),
            (StageState::Succeeded, "2 rows set aside"),
            "{class:?}"
        );
        let lost: Vec<RowRange> = record.failures.iter().map(|failure| failure.rows.unwrap()).collect();
        assert_eq!(lost, [17, 70].map(|row| RowRange { start: row, end: row + 1 }));
        let outputs = stage.outputs.clone().unwrap();
        assert_eq!(outputs.iter().map(|shard| shard.units.unwrap()).sum::<u64>(), 98);
        // In the order of the rows, however they were cut.
        let starts: Vec<u64> = outputs
            .iter()
            .map(|shard| shard.artifacts[0].id["rows ".len()..].split('-').next().unwrap().parse().unwrap())
            .collect();
        assert!(starts.is_sorted(), "{starts:?}");
        assert!(store.reusable("rows").await.unwrap().is_none(), "what lacks rows is not reused");
        store.cancel(&job).await.unwrap();
    }
    let job = row_job(store, 1).await;
    work(store, advance, FailureClass::Permanent, |_| true).await;
    assert_eq!(shard_of(store, &job).await.state, StageState::Failed, "nothing is left");
}

pub(super) async fn a_stage_with_too_many_bad_rows_fails(store: &dyn JobStore, advance: &impl Fn(Duration)) {
    let job = row_job(store, 400).await;
    work(store, advance, FailureClass::Permanent, |_| true).await;
    let stage = shard_of(store, &job).await;
    assert_eq!(stage.state, StageState::Failed);
    assert!(stage.message.starts_with("more than 100 rows failed"), "{}", stage.message);

    // What is about the model is about every row.
    let job = row_job(store, 400).await;
    let granted = grant_one(store, &WorkerId::generate()).await.unwrap();
    let broken = AttemptFailure { code: "bad_model".into(), ..failure(FailureClass::Permanent) };
    assert_eq!(store.fail(&key(&granted), broken, &retry()).await.unwrap().ended, std::slice::from_ref(&job));
    assert_eq!(shard_of(store, &job).await.state, StageState::Failed);
}

pub(super) async fn two_jobs_compute_the_same_stage_once(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let (first, granted) = running_job(store, 1).await;
    let mut second = new_job(None, 2);
    second.priority = 7;
    let second_id = second.id.clone();
    store.submit(second).await.unwrap();
    let applied = store.apply(&second_id, vec![open_step(0, Some("fp"), 1)]).await.unwrap();
    assert!(!applied.progressed);
    let stage = shard_of(store, &second_id).await;
    assert_eq!(stage.state, StageState::Waiting);
    assert_eq!(stage.message, format!("waits for job {first}, which computes the same"));
    assert_eq!(store.waiting_for_others().await.unwrap(), std::slice::from_ref(&second_id));
    let third = new_job(None, 1);
    let third_id = third.id.clone();
    store.submit(third).await.unwrap();
    assert!(store.apply(&third_id, vec![open_step(0, Some("else"), 1)]).await.unwrap().progressed);

    // A paused job is not waited for; neither is one that failed.
    store.set_paused(&first, true).await.unwrap();
    assert!(matches!(
        store.complete(&key(&granted), ShardOutput::default()).await,
        Err(StoreError::Fenced { .. })
    ));
    store.set_paused(&first, false).await.unwrap();
    let pending = store.pending(10).await.unwrap();
    assert_eq!(
        pending.iter().map(|job| job.priority).collect::<Vec<_>>(),
        [7, 0],
        "it is as urgent as who waits"
    );
    let granted = store.lease(&granted.shard, &WorkerId::generate(), TTL).await.unwrap().unwrap();
    store.fail(&key(&granted), failure(FailureClass::Permanent), &retry()).await.unwrap();
    assert!(store.apply(&second_id, vec![open_step(0, Some("fp"), 1)]).await.unwrap().progressed);
    let stage = shard_of(store, &second_id).await;
    assert_eq!((stage.state, stage.message.as_str()), (StageState::Running, ""));
    assert!(store.waiting_for_others().await.unwrap().is_empty());
}

pub(super) async fn artifacts_live_as_long_as_a_job_holds_them(
    store: &dyn JobStore,
    advance: &impl Fn(Duration),
) {
    let grace = Duration::from_secs(60);
    for id in ["input", "unused"] {
        store.record_artifact(id, 100).await.unwrap();
    }
    let mut job = new_job(None, 2);
    job.inputs = vec!["input".into()];
    let first = job.id.clone();
    store.submit(job).await.unwrap();
    let mut missing = new_job(None, 1);
    missing.inputs = vec!["nowhere".into()];
    assert!(matches!(store.submit(missing).await, Err(StoreError::UnknownArtifact { .. })));
    store.apply(&first, vec![open_step(0, Some("fp"), 1)]).await.unwrap();
    let granted = grant_one(store, &WorkerId::generate()).await.unwrap();
    store.complete(&key(&granted), output(store, "made").await).await.unwrap();
    assert_eq!(store.stored_bytes().await.unwrap(), 207);

    let mut second = new_job(None, 1);
    second.inputs = vec!["input".into()];
    let second_id = second.id.clone();
    store.submit(second).await.unwrap();
    assert!(store.take_garbage(grace, 10).await.unwrap().is_empty(), "an upload may yet be used");
    advance(grace / 2);
    assert_eq!(store.touch_artifact("unused").await.unwrap(), Some(100));
    advance(grace / 2);
    assert!(store.take_garbage(grace, 10).await.unwrap().is_empty(), "somebody asked for it");
    advance(grace / 2);
    assert_eq!(store.take_garbage(grace, 10).await.unwrap(), ["unused"]);

    store.cancel(&first).await.unwrap();
    assert_eq!(store.heaviest_jobs(5).await.unwrap(), [(first.clone(), 7)], "the input would stay");
    assert!(store.reusable("fp").await.unwrap().is_some());
    store.delete(&first).await.unwrap();
    assert!(store.reusable("fp").await.unwrap().is_none(), "what nobody holds cannot be reused");
    assert_eq!(store.take_garbage(grace, 10).await.unwrap(), ["made"], "at once: nobody is about to use it");
    store.cancel(&second_id).await.unwrap();
    store.delete(&second_id).await.unwrap();
    assert_eq!(store.take_garbage(grace, 10).await.unwrap(), ["input"]);
    assert_eq!((store.stored_bytes().await.unwrap(), store.artifact("input").await.unwrap()), (0, None));
}

pub(super) async fn history_is_told_by_stage_and_shard(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let (job, granted) = running_job(store, 2).await;
    store.complete(&key(&granted), output(store, "a").await).await.unwrap();
    let lines = async |stage: &str, shard: &str| {
        let only = EventFilter { stage: stage.into(), shard: shard.into() };
        store.events(&job, 0, 100, &only).await.unwrap().len()
    };
    let (all, stage) = (lines("", "").await, lines("stage/0", "").await);
    assert!(all > stage && stage == 2, "{all} {stage}");
    assert_eq!(lines("", granted.shard.as_str()).await, 1);
    assert_eq!(lines("stage/1", granted.shard.as_str()).await, 0);
}

pub(super) async fn a_trained_model_is_registered_once_and_goes_with_its_last_maker(
    store: &dyn JobStore,
    advance: &impl Fn(Duration),
) {
    let (first, granted) = running_job(store, 1).await;
    let mut made = output(store, "weights").await;
    let new = NewModel {
        title: "a adapted on b".into(),
        fingerprint: "content".into(),
        files: made.artifacts.clone(),
    };
    made.model = Some(new.clone());
    store.complete(&key(&granted), made).await.unwrap();
    let model = store.find_model("mdl_").await.unwrap();
    assert_eq!((&model.job, &model.title, &model.files), (&first, &new.title, &new.files));
    assert_eq!(store.job(&first).await.unwrap().row.model.as_ref(), Some(&model.id));

    // A second job reuses the stage: the same content is the same model, and belongs to both.
    advance(Duration::from_secs(1));
    let second = new_job(None, 1);
    let second_id = second.id.clone();
    store.submit(second).await.unwrap();
    let outputs = store.reusable("fp").await.unwrap().unwrap();
    let reuse = Step::Reuse { stage: 0, fingerprint: "fp".into(), outputs };
    let finish = || Step::Finish { state: JobState::Succeeded, message: String::new() };
    store.apply(&second_id, vec![reuse, finish()]).await.unwrap();
    assert_eq!(store.list_models().await.unwrap(), std::slice::from_ref(&model));
    assert_eq!(store.list_jobs(1, None).await.unwrap()[0].model.as_ref(), Some(&model.id));

    let mut user = new_job(None, 1);
    user.models = vec![model.id.clone()];
    let user_id = user.id.clone();
    store.submit(user).await.unwrap();
    assert_eq!(store.job(&user_id).await.unwrap().models, std::slice::from_ref(&model));

    store.apply(&first, vec![finish()]).await.unwrap();
    assert!(store.delete(&first).await.unwrap().is_empty(), "the other job made it too");
    let refused = store.delete(&second_id).await.unwrap_err().to_string();
    assert!(refused.contains(model.id.as_str()) && refused.contains(user_id.as_str()), "{refused}");
    assert_eq!(store.find_model(model.id.as_str()).await.unwrap().job, second_id);
    store.cancel(&user_id).await.unwrap();
    assert_eq!(store.delete(&second_id).await.unwrap(), std::slice::from_ref(&model.id));
    assert!(matches!(store.find_model(model.id.as_str()).await, Err(StoreError::NotFound { .. })));
    assert!(store.job(&user_id).await.unwrap().models.is_empty());
    let mut late = new_job(None, 1);
    late.models = vec![model.id];
    assert!(matches!(store.submit(late).await, Err(StoreError::NotFound { what: "model", .. })));
}

pub(super) async fn finds_it_again(store: &dyn JobStore, job: &JobId, granted: &Granted) {
    let record = store.job(job).await.unwrap();
    assert_eq!((record.row.state, record.stages[0].state), (JobState::Running, StageState::Running));
    assert_eq!(store.active_jobs().await.unwrap(), std::slice::from_ref(job));
    assert_eq!(store.count_leased().await.unwrap(), 1);
    assert!(store.complete(&key(granted), output(store, "a").await).await.unwrap().newly_committed);
}
