//! Stages: opened, committed, reused, and computed by one job for all.

use std::time::Duration;

use cappy_proto::WorkerId;

use super::*;

pub(in crate::store) async fn stages_open_commit_and_are_reused(store: &dyn JobStore, _: &impl Fn(Duration)) {
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

pub(in crate::store) async fn two_jobs_compute_the_same_stage_once(
    store: &dyn JobStore,
    _: &impl Fn(Duration),
) {
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
