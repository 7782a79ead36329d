//! Jobs: submitted once, found, listed, paused, cancelled, deleted, and their history.

use std::time::Duration;

use cappy_proto::{JobId, WorkerId};

use super::*;

pub(in crate::store) async fn a_job_is_submitted_once_a_key(store: &dyn JobStore, _: &impl Fn(Duration)) {
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

pub(in crate::store) async fn a_job_is_found_by_a_unique_prefix(store: &dyn JobStore, _: &impl Fn(Duration)) {
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

pub(in crate::store) async fn jobs_are_listed_newest_first_in_pages(
    store: &dyn JobStore,
    _: &impl Fn(Duration),
) {
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

pub(in crate::store) async fn cancel_and_completion_have_one_winner(
    store: &dyn JobStore,
    _: &impl Fn(Duration),
) {
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

pub(in crate::store) async fn a_paused_job_gets_no_leases(store: &dyn JobStore, _: &impl Fn(Duration)) {
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

pub(in crate::store) async fn only_ended_jobs_are_deleted(store: &dyn JobStore, _: &impl Fn(Duration)) {
    let (job, _) = running_job(store, 1).await;
    assert!(matches!(store.delete(&job).await, Err(StoreError::WrongState(_))));
    store.cancel(&job).await.unwrap();
    store.delete(&job).await.unwrap();
    assert!(matches!(store.job(&job).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(store.delete(&job).await, Err(StoreError::NotFound { .. })));
    assert!(store.events(&job, 0, 10, &EventFilter::default()).await.unwrap().is_empty());
}

pub(in crate::store) async fn history_is_told_by_stage_and_shard(
    store: &dyn JobStore,
    _: &impl Fn(Duration),
) {
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
