//! Whole sessions: what a worker does with leases, lost connections, cancellation, drain and stop.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use cappy_plugin_abi::Backend;
use cappy_proto::v1::{self, session_response::Message as Heard, shard_task::Task};
use cappy_worker::{Backends, Config, Handle, start};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    coordinator::{Coordinator, Record},
    support::{Masked, Store, echo, hub_settings, jsonl},
};

pub const ANYWHERE: &str = "127.0.0.1:0";

pub async fn worker(
    dir: &Path,
    address: SocketAddr,
    backend: Arc<dyn Backend>,
    stop: &CancellationToken,
) -> Handle {
    let mut config = Config::new(Backends::Builtin(vec![backend]), dir.join("cache"), hub_settings(dir));
    config.coordinator = Some(format!("http://{address}"));
    config.name = "tester".into();
    start(config, stop.clone()).await.unwrap()
}

/// A scoring task whose artifacts the coordinator has.
fn score_task(coordinator: &Coordinator, rows: usize) -> v1::ShardTask {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::default();
    let scorer = store.model(dir.path(), "roberta", 0, 0.5);
    for path in store.files.values() {
        coordinator.put(std::fs::read(path).unwrap());
    }
    let rows: Vec<_> =
        (0..rows).map(|i| json!({ "instruction": format!("row {i}"), "response": "fig" })).collect();
    let input = coordinator.put(jsonl(&rows));
    let task = v1::ScoreTask {
        scorer: Some(scorer),
        input: vec![input],
        row_end: rows.len() as u64,
        ..v1::ScoreTask::default()
    };
    v1::ShardTask { task: Some(Task::Score(task)), backend: "echo".into(), dtype: "auto".into() }
}

/// The lease is at the closed gate.
fn scores(record: &Record, lease_id: &str) -> bool {
    let leases = &record.heartbeats.last().unwrap().leases;
    leases.iter().any(|lease| lease.lease_id == lease_id && lease.activity == "scoring")
}

#[tokio::test]
async fn leases_are_run_and_completed_once() {
    let dir = tempfile::tempdir().unwrap();
    let running = Coordinator::new(30_000).serve(ANYWHERE.parse().unwrap()).await;
    let coordinator = running.coordinator.clone();
    let stop = CancellationToken::new();
    let worker = worker(dir.path(), running.address, echo(), &stop).await;
    let record = coordinator.until(|record| !record.heartbeats.is_empty()).await;
    let hello = &record.hellos[0];
    assert_eq!((hello.name.as_str(), hello.device.as_str(), hello.slots), ("tester", "cpu", 2));
    assert_eq!(hello.protocol_version, cappy_proto::PROTOCOL_VERSION);
    assert_eq!(hello.backends[0].name, "echo");
    assert_eq!(record.heartbeats[0].credits, 2);

    coordinator.refuse_completions(2);
    coordinator.lease("a", score_task(&coordinator, 700)).await;
    let record = coordinator.until(|record| record.completed.len() == 1).await;
    let completed = &record.completed[0];
    assert_eq!((completed.lease_id.as_str(), completed.fencing_token), ("a", 7));
    let stats = completed.stats.unwrap();
    assert!(stats.rows == 700 && stats.tokens > 700 && stats.seconds > 0.0, "{stats:?}");
    let output = completed.outputs[0].artifact.as_ref().unwrap();
    let text = coordinator.get(&output.id).unwrap();
    assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), 700);
    // The slot is free again, and the model stayed.
    coordinator
        .until(|record| {
            let last = record.heartbeats.last().unwrap();
            last.leases.is_empty() && last.credits == 2 && last.resident_models.len() == 1
        })
        .await;

    // The same shard again gives the same artifact, which is not sent again; a broken one is reported.
    coordinator.lease("b", score_task(&coordinator, 700)).await;
    let mut broken = score_task(&coordinator, 3);
    broken.backend = "libtorch".into();
    coordinator.lease("c", broken).await;
    coordinator.lease("d", v1::ShardTask::default()).await;
    let record = coordinator.until(|record| record.completed.len() == 2 && record.failed.len() == 2).await;
    assert_eq!(record.completed[1].outputs, record.completed[0].outputs);
    assert_eq!(record.uploads, 1);
    for failed in &record.failed {
        assert_eq!(failed.failure_class(), v1::FailureClass::Permanent);
        assert_eq!(failed.code, "unsupported");
        assert!(failed.lease_id == "d" || failed.message.contains("libtorch"), "{failed:?}");
    }

    coordinator.say(Heard::Drain(v1::Drain {})).await;
    worker.stopped().await.unwrap();
    coordinator.until(|record| record.sessions_ended == 1).await;
}

#[tokio::test]
async fn a_lease_outlives_the_coordinators_crash() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new(60_000);
    let running = coordinator.serve(ANYWHERE.parse().unwrap()).await;
    let address = running.address;
    let (backend, gate) = Masked::new(false);
    let stop = CancellationToken::new();
    let worker = worker(dir.path(), address, backend, &stop).await;
    coordinator.until(|record| !record.heartbeats.is_empty()).await;
    coordinator.lease("a", score_task(&coordinator, 5)).await;
    coordinator.until(|record| scores(record, "a")).await;

    running.crash().await;
    let running = coordinator.serve(address).await;
    let record = coordinator
        .until(|record| record.hellos.len() == 2 && !record.heartbeats.last().unwrap().leases.is_empty())
        .await;
    assert_eq!(record.heartbeats.last().unwrap().leases[0].lease_id, "a");
    gate.store(true, Ordering::Relaxed);
    coordinator.until(|record| record.completed.len() == 1).await;

    // Ended from outside: what it was doing is given back at once.
    gate.store(false, Ordering::Relaxed);
    coordinator.lease("b", score_task(&coordinator, 6)).await;
    coordinator.until(|record| scores(record, "b")).await;
    stop.cancel();
    let record = coordinator.until(|record| record.failed.len() == 1).await;
    assert_eq!(record.failed[0].failure_class(), v1::FailureClass::Infrastructure);
    worker.stopped().await.unwrap();
    assert_eq!(coordinator.until(|_| true).await.completed.len(), 1);
    drop(running);
}

#[tokio::test]
async fn a_lease_ends_when_the_coordinator_cancels_it_or_stays_away() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new(300);
    let running = coordinator.serve(ANYWHERE.parse().unwrap()).await;
    let (backend, _gate) = Masked::new(false);
    let stop = CancellationToken::new();
    let worker = worker(dir.path(), running.address, backend, &stop).await;
    coordinator.until(|record| !record.heartbeats.is_empty()).await;
    coordinator.lease("a", score_task(&coordinator, 5)).await;
    coordinator.until(|record| scores(record, "a")).await;
    let cancel = v1::CancelLease { lease_id: "a".into(), reason: "the job was cancelled".into() };
    coordinator.say(Heard::CancelLease(cancel)).await;
    coordinator.until(|record| record.heartbeats.last().unwrap().leases.is_empty()).await;

    coordinator.lease("b", score_task(&coordinator, 6)).await;
    coordinator.until(|record| scores(record, "b")).await;
    let address = running.address;
    running.crash().await;
    // Draining ends the worker as soon as it holds nothing, which is when the lease has run out.
    worker.drain();
    worker.stopped().await.unwrap();
    let running = coordinator.serve(address).await;
    let record = coordinator.until(|_| true).await;
    assert_eq!((record.completed.len(), record.failed.len()), (0, 0), "nobody waits for these shards");
    drop(running);
}

#[tokio::test]
async fn a_worker_of_another_protocol_is_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::new(300);
    coordinator
        .refuse_sessions(Status::failed_precondition("protocol 1 of the worker, 2 of the coordinator"));
    let running = coordinator.serve(ANYWHERE.parse().unwrap()).await;
    let worker = worker(dir.path(), running.address, echo(), &CancellationToken::new()).await;
    let error = worker.stopped().await.unwrap_err();
    assert!(error.to_string().contains("protocol 1 of the worker"), "{error}");
}
