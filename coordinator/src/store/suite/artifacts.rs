//! Artifacts: known before they are committed, and kept as long as a job holds them.

use std::time::Duration;

use cappy_proto::WorkerId;

use super::*;

pub(in crate::store) async fn unknown_artifacts_are_not_committed(
    store: &dyn JobStore,
    _: &impl Fn(Duration),
) {
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

pub(in crate::store) async fn artifacts_live_as_long_as_a_job_holds_them(
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
