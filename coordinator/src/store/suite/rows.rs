//! Shards of rows that can be spared: halved until the row that fails stands alone.

use std::time::Duration;

use cappy_proto::{JobId, WorkerId};

use super::*;

pub(in crate::store) async fn the_row_that_fails_is_found_and_the_others_go_on(
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

pub(in crate::store) async fn a_stage_with_too_many_bad_rows_fails(
    store: &dyn JobStore,
    advance: &impl Fn(Duration),
) {
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
