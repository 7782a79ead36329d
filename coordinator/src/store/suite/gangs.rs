//! Leases of several workers that compute a shard together.

use std::time::Duration;

use cappy_proto::{ShardId, WorkerId};

use super::*;

pub(in crate::store) async fn a_gang_is_leased_as_one_and_ends_as_one(
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
