//! Shards that several workers compute together, seen from one of them: whom it meets, what the backend is told, who hands
//! the result in. The backend is the echo backend, whose ranks have nothing to exchange.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{FromRawFd as _, OwnedFd},
    sync::{Arc, Mutex},
};

use cappy_plugin_abi::{
    Backend, Control, DATA_PARALLEL, Decoding, Descriptor, EncodingId, Failure, Generated, Generator, Group,
    GroupKind, LoadRequest, ModelInfo, RaggedTokens, Scorer, TENSOR_PARALLEL, Trainer,
};
use cappy_proto::v1::{self, session_response::Message as Heard, shard_task::Task};
use cappy_worker::{
    execution::{ExecutionError, FailureClass, Progress},
    group::{Gang, Introduction, Meet, Met, Seat},
    residency::Residency,
    settings::default_settings,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    coordinator::Coordinator,
    session::{ANYWHERE, worker},
    support::{Bench, Store, echo, engine, jsonl},
    training::{Stopping, examples, fine_tuning},
};

/// The echo backend, which takes groups for granted and notes them.
#[derive(Default)]
struct Grouped {
    /// Options of every load.
    loads: Arc<Mutex<Vec<Value>>>,
    /// Generators run out of memory.
    cramped: bool,
}

impl Grouped {
    fn alone(&self, request: &LoadRequest) -> LoadRequest {
        let mut options: Value = serde_json::from_str(&request.options_json).unwrap();
        self.loads.lock().unwrap().push(options.clone());
        options.as_object_mut().unwrap().remove("group");
        LoadRequest { options_json: options.to_string(), ..request.clone() }
    }
}

impl Backend for Grouped {
    fn describe(&self) -> Descriptor {
        let mut it = echo().describe();
        it.features.extend([DATA_PARALLEL, TENSOR_PARALLEL].map(str::to_owned));
        it
    }
    fn load_scorer(&self, request: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
        echo().load_scorer(request)
    }
    fn load_generator(&self, request: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
        let inner = echo().load_generator(&self.alone(request))?;
        Ok(if self.cramped { Box::new(Cramped(inner)) } else { inner })
    }
    fn load_trainer(&self, request: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
        echo().load_trainer(&self.alone(request))
    }
}

struct Cramped(Box<dyn Generator>);

impl Generator for Cramped {
    fn info(&self) -> ModelInfo {
        self.0.info()
    }
    fn encode(&mut self, sources: RaggedTokens<'_>, control: &dyn Control) -> Result<EncodingId, Failure> {
        self.0.encode(sources, control)
    }
    fn generate(
        &mut self,
        _: EncodingId,
        _: &[Decoding],
        _: u64,
        _: &[u64],
        _: &dyn Control,
    ) -> Result<Generated, Failure> {
        Err(Failure::out_of_memory("no room for the cache"))
    }
    fn log_likelihood(
        &mut self,
        encoding: EncodingId,
        targets: RaggedTokens<'_>,
        rows: &[u32],
        control: &dyn Control,
    ) -> Result<Vec<f32>, Failure> {
        self.0.log_likelihood(encoding, targets, rows, control)
    }
    fn forget(&mut self, encoding: EncodingId) {
        self.0.forget(encoding);
    }
}

/// One of two ranks; the other agrees with whatever this one says.
struct Pair {
    rank: u32,
    /// What rank 0 goes on from, where that is the other.
    checkpoint: Option<(u64, String)>,
    /// What rank 0 listens on, for the first to meet.
    listener: Mutex<Option<TcpListener>>,
    heard: Mutex<Vec<Introduction>>,
}

impl Pair {
    fn rank(rank: u32) -> Self {
        Self { rank, checkpoint: None, listener: Mutex::default(), heard: Mutex::default() }
    }

    fn gang(&self, kind: GroupKind) -> Option<Gang<'_>> {
        Some(Gang { kind, world: 2, meet: self })
    }
}

impl Meet for Pair {
    fn meet(&self, introduction: &Introduction) -> Result<Met, ExecutionError> {
        self.heard.lock().unwrap().push(introduction.clone());
        let own = (self.rank == 0).then(|| introduction.checkpoint.clone()).flatten();
        let group = Group {
            kind: GroupKind::Data,
            rank: self.rank,
            world: 2,
            rendezvous: "127.0.0.1:1".into(),
            listener: None,
            host: "127.0.0.1".into(),
            timeout_seconds: 5,
        };
        let listener = self.listener.lock().unwrap().take().map(OwnedFd::from);
        Ok(Met {
            seat: Seat::new(group, listener),
            id: introduction.resident.as_ref().map_or_else(|| "g1".into(), |place| place.id.clone()),
            resident: introduction.resident.is_some(),
            checkpoint: own.or_else(|| self.checkpoint.clone()),
        })
    }
}

fn train(bench: &mut Bench) -> Task {
    let examples = bench.put(&examples(7));
    let settings = Some(fine_tuning());
    Task::Train(v1::TrainTask { scorer: bench.model("bert", 0.0), examples, settings, ..Default::default() })
}

#[test]
fn the_first_rank_hands_in_what_one_alone_would_and_the_others_nothing() {
    let loads = Arc::default();
    let mut bench = Bench::new(Arc::new(Grouped { loads: Arc::clone(&loads), cramped: false }));
    let task = train(&mut bench);
    let alone = bench.run(task.clone()).unwrap();
    let (leader, follower) = (Pair::rank(0), Pair::rank(1));
    let led = bench.run_in(leader.gang(GroupKind::Data), task.clone(), &Progress::default()).unwrap();
    let progress = Progress::default();
    let followed = bench.run_in(follower.gang(GroupKind::Data), task.clone(), &progress).unwrap();
    assert_eq!(led.lines("training.json"), alone.lines("training.json"));
    assert!(!led.outcome.follows && followed.outcome.follows);
    assert!(followed.outcome.outputs.is_empty());
    assert_eq!(progress.get().0, 12, "it computes every update too");

    let loads = loads.lock().unwrap();
    assert_eq!((loads[0].get("group"), loads[0].get("micro_batches")), (None, None));
    for (load, rank) in loads[1..].iter().zip(0..) {
        assert_eq!((&load["group"]["rank"], &load["group"]["world"]), (&json!(rank), &json!(2)));
        assert_eq!(load["micro_batches"], 2);
    }
    let (one, two) = (leader.heard.into_inner().unwrap(), follower.heard.into_inner().unwrap());
    assert_eq!(
        (&one[0].model_fingerprint, &one[0].backend),
        (&two[0].model_fingerprint, &two[0].backend),
        "the ranks say the same of themselves"
    );
    assert!(one[0].backend.starts_with("echo ") && one[0].backend.ends_with(" f32"), "{}", one[0].backend);

    let error = bench.run_in(Pair::rank(0).gang(GroupKind::Tensor), task, &Progress::default());
    assert_eq!(error.err().map(|error| error.code), Some("unsupported"), "training is shared by rows");
}

#[test]
fn a_group_goes_on_from_the_newest_checkpoint_of_its_first_rank() {
    let mut bench = Bench::new(Arc::new(Grouped::default()));
    let task = train(&mut bench);
    let straight = bench.run(task.clone()).unwrap();
    let stopping = Stopping { inner: Arc::new(Grouped::default()), after: 21, calls: Default::default() };
    let broken = Bench { engine: engine(bench.dir.path(), Arc::new(stopping)), ..bench };
    let error =
        broken.run_in(Pair::rank(0).gang(GroupKind::Data), task.clone(), &Progress::default()).err().unwrap();
    assert!(error.cancelled(), "{error}");

    let again = Bench { engine: engine(broken.dir.path(), Arc::new(Grouped::default())), ..broken };
    let leader = Pair::rank(0);
    let done = again.run_in(leader.gang(GroupKind::Data), task.clone(), &Progress::default()).unwrap();
    let heard = leader.heard.into_inner().unwrap();
    let (updates, state) = heard[0].checkpoint.clone().expect("there is a checkpoint");
    assert_eq!(updates, 10);
    assert_eq!(done.lines("training.json"), straight.lines("training.json"));

    // A rank that has none goes on from where rank 0 is, and is through after the rest of the updates.
    let fresh = tempfile::tempdir().unwrap();
    let elsewhere = Bench { engine: engine(fresh.path(), Arc::new(Grouped::default())), ..again };
    let follower = Pair { checkpoint: Some((updates, state)), ..Pair::rank(1) };
    let done = elsewhere.run_in(follower.gang(GroupKind::Data), task, &Progress::default()).unwrap();
    assert!(done.outcome.follows);
    assert!(follower.heard.into_inner().unwrap()[0].checkpoint.is_none());
}

/// A rank 0, and where it listens.
fn listening() -> (Pair, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (Pair { listener: Mutex::new(Some(listener)), ..Pair::rank(0) }, address)
}

/// Owns the listener that it was told of in its last load.
fn taken(loads: &Mutex<Vec<Value>>) -> TcpListener {
    let fd = loads.lock().unwrap().pop().unwrap()["group"]["listener"].as_i64().unwrap();
    // SAFETY: the worker gave the descriptor to the backend, which is this test's, and nobody else takes it.
    unsafe { TcpListener::from_raw_fd(i32::try_from(fd).unwrap()) }
}

#[test]
fn the_first_rank_listens_until_the_backend_has_the_socket_or_nobody_wants_it() {
    let loads: Arc<Mutex<Vec<Value>>> = Arc::default();
    let mut bench = Bench::new(Arc::new(Grouped { loads: Arc::clone(&loads), cramped: false }));
    let train = train(&mut bench);
    let generate = Task::Generate(v1::GenerateTask {
        model: bench.model("t5", 0.0),
        input: bench.put(&[json!({ "instruction": "fig" })]),
        row_end: 1,
        settings: Some(default_settings()),
        ..Default::default()
    });
    for (kind, task) in [(GroupKind::Data, &train), (GroupKind::Tensor, &generate)] {
        let (pair, address) = listening();
        bench.run_in(pair.gang(kind), task.clone(), &Progress::default()).unwrap();
        TcpStream::connect(address).unwrap();
        let listener = taken(&loads);
        assert_eq!(listener.local_addr().unwrap(), address);
        drop(listener);
        assert!(TcpStream::connect(address).is_err(), "nobody else has it");
    }

    // Refused before the backend hears of it: there is no room for a slice of another model.
    bench.engine.residency = Residency::new(1);
    let (pair, address) = listening();
    let error = bench.run_in(pair.gang(GroupKind::Tensor), generate, &Progress::default()).err().unwrap();
    assert!(loads.lock().unwrap().is_empty(), "{error}");
    assert!(TcpStream::connect(address).is_err(), "it is closed");
}

#[test]
fn a_slice_stays_in_memory_between_shards_until_its_group_fails() {
    let loads = Arc::default();
    let mut bench = Bench::new(Arc::new(Grouped { loads: Arc::clone(&loads), cramped: false }));
    let rows: Vec<Value> = (0..6).map(|i| json!({ "instruction": format!("fig {i}") })).collect();
    let input = bench.put(&rows);
    let model = bench.model("t5", 0.0);
    let task = |row_start, row_end| {
        Task::Generate(v1::GenerateTask {
            model: model.clone(),
            input: input.clone(),
            row_start,
            row_end,
            settings: Some(default_settings()),
            log_likelihood: true,
            ..Default::default()
        })
    };
    let pair = Pair::rank(0);
    let run = |task| bench.run_in(pair.gang(GroupKind::Tensor), task, &Progress::default());
    let parts: Vec<Value> = [run(task(0, 3)), run(task(3, 6))]
        .into_iter()
        .flat_map(|part| part.unwrap().lines("rows.jsonl"))
        .collect();
    assert_eq!(loads.lock().unwrap().len(), 1, "the second shard found it in memory");
    assert_eq!(bench.run(task(0, 6)).unwrap().lines("rows.jsonl"), parts);
    assert_eq!(loads.lock().unwrap().len(), 2, "a slice is no whole model");

    let cancelled = Progress::default();
    cancelled.cancel();
    assert!(bench.run_in(pair.gang(GroupKind::Tensor), task(0, 3), &cancelled).is_err());
    run(task(0, 3)).unwrap();
    assert_eq!(loads.lock().unwrap().len(), 3, "after a failure nobody trusts what is in memory");
    let resident: Vec<bool> =
        pair.heard.lock().unwrap().iter().map(|heard| heard.resident.is_some()).collect();
    assert_eq!(resident, [false, true, true, false]);
}

#[test]
fn a_rank_that_runs_out_of_memory_does_not_halve_its_batch_alone() {
    let mut bench = Bench::new(Arc::new(Grouped { cramped: true, ..Grouped::default() }));
    let rows: Vec<Value> = (0..6).map(|i| json!({ "instruction": format!("fig {i}") })).collect();
    let task = Task::Generate(v1::GenerateTask {
        model: bench.model("t5", 0.0),
        input: bench.put(&rows),
        row_end: 6,
        settings: Some(default_settings()),
        ..Default::default()
    });
    let failed =
        bench.run_in(Pair::rank(0).gang(GroupKind::Tensor), task, &Progress::default()).err().unwrap();
    assert_eq!(failed.class, FailureClass::Attempt);
    assert!(failed.message.contains("no room for the cache") && failed.message.contains("use more shards"));
}

#[tokio::test]
async fn a_rank_meets_the_others_and_only_the_first_completes() {
    let dir = tempfile::tempdir().unwrap();
    let running = Coordinator::new(30_000).serve(ANYWHERE.parse().unwrap()).await;
    let coordinator = running.coordinator.clone();
    let stop = CancellationToken::new();
    let worker = worker(dir.path(), running.address, Arc::new(Grouped::default()), &stop).await;
    let record = coordinator.until(|record| !record.heartbeats.is_empty()).await;
    assert!(record.hellos[0].backends[0].features.contains(&DATA_PARALLEL.to_owned()));
    assert!(record.hellos[0].memory_bytes > 0);

    let files = tempfile::tempdir().unwrap();
    let mut store = Store::default();
    let scorer = store.model(files.path(), "bert", 64, 0.0);
    for path in store.files.values() {
        coordinator.put(std::fs::read(path).unwrap());
    }
    let examples = vec![coordinator.put(jsonl(&examples(7)))];
    let task =
        v1::TrainTask { scorer: Some(scorer), examples, settings: Some(fine_tuning()), ..Default::default() };
    let task = v1::ShardTask { task: Some(Task::Train(task)), backend: String::new(), dtype: "auto".into() };
    let gang = v1::Gang { kind: v1::GangKind::Data.into(), world: 2, exchange_timeout_ms: 5000 };
    let place = |rank| v1::JoinGroupResponse {
        rank,
        world: 2,
        rendezvous: "127.0.0.1:1".into(),
        group_id: "g".into(),
        ..Default::default()
    };

    coordinator.answer_joins(Ok(place(1)));
    coordinator.lease_to_gang("follows", task.clone(), Some(gang)).await;
    let waits = "waiting for rank 0 to hand in the result";
    coordinator
        .until(|record| {
            record
                .heartbeats
                .last()
                .is_some_and(|beat| beat.leases.iter().any(|lease| lease.activity == waits))
        })
        .await;
    let cancel = v1::CancelLease { lease_id: "follows".into(), reason: "committed".into() };
    coordinator.say(Heard::CancelLease(cancel)).await;
    coordinator.until(|record| record.heartbeats.last().is_some_and(|beat| beat.leases.is_empty())).await;

    coordinator.answer_joins(Ok(place(0)));
    coordinator.lease_to_gang("leads", task.clone(), Some(gang)).await;
    let record = coordinator.until(|record| record.completed.len() == 1).await;
    assert_eq!((record.completed[0].lease_id.as_str(), record.failed.len()), ("leads", 0));
    let joined = &record.joined[0];
    assert_eq!((joined.lease_id.as_str(), joined.fencing_token), ("follows", 7));
    let (host, port) = joined.address.rsplit_once(':').unwrap();
    assert!(host == "127.0.0.1" && port.parse::<u16>().is_ok_and(|port| port != 0), "{}", joined.address);

    coordinator.answer_joins(Err(Status::failed_precondition("`a` has aa, `b` has bb")));
    coordinator.lease_to_gang("differs", task.clone(), Some(gang)).await;
    coordinator.until(|record| record.failed.len() == 1).await;
    coordinator.answer_joins(Err(Status::deadline_exceeded("b did not come")));
    coordinator.lease_to_gang("alone", task, Some(gang)).await;
    let record = coordinator.until(|record| record.failed.len() == 2).await;
    let told: Vec<(&str, v1::FailureClass)> =
        record.failed.iter().map(|failed| (failed.code.as_str(), failed.failure_class())).collect();
    assert_eq!(
        told,
        [("model_differs", v1::FailureClass::Attempt), ("peer_missing", v1::FailureClass::Infrastructure)]
    );
    stop.cancel();
    worker.stopped().await.unwrap();
}
