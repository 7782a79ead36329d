//! Leases of one worker: granted, kept, expired, fenced, and the attempts that they count.

use std::time::Duration;

use cappy_proto::{LeaseId, ShardId, WorkerId};

use super::*;

pub(in crate::store) async fn a_shard_commits_exactly_once(store: &dyn JobStore, _: &impl Fn(Duration)) {
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

pub(in crate::store) async fn an_expired_lease_is_granted_again_and_its_holder_fenced(
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

pub(in crate::store) async fn a_kept_lease_does_not_expire_and_a_lost_worker_s_does_sooner(
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

pub(in crate::store) async fn attempts_are_counted_and_the_last_ends_the_stage(
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

pub(in crate::store) async fn a_lagging_shard_is_leased_twice_and_the_first_commit_wins(
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
