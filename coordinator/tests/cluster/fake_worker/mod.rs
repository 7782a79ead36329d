//! A worker that speaks the real protocol and computes trivial things, so that a test can say when it does what.

mod compute;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use cappy_proto::{
    PROTOCOL_VERSION,
    v1::{self, shard_task::Task, worker_service_client::WorkerServiceClient},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

pub use compute::{Made, compute, upload};

use crate::harness::eventually;

/// What the worker does with a lease.
#[derive(Clone, Debug)]
pub enum Act {
    Complete,
    Fail(v1::FailureClass, &'static str),
    /// Keep it and heartbeat.
    Hold,
    /// Meet the other ranks with a model of this content; rank 0 completes, the others keep their leases.
    Join(&'static str),
}

type Script = Arc<dyn Fn(&v1::Lease) -> Act + Send + Sync>;

#[derive(Default)]
struct Seen {
    /// `stage` of every lease taken, in order.
    stages: Vec<String>,
    /// Job of each.
    jobs: Vec<String>,
    held: HashMap<String, v1::Lease>,
    cancelled: Vec<String>,
    /// Shard and what was told, of every gang that this worker has joined.
    joined: Vec<(String, v1::JoinGroupResponse)>,
    ended: bool,
}

/// A connected worker. Dropped, it vanishes without a word.
pub struct FakeWorker {
    seen: Arc<Mutex<Seen>>,
    channel: Channel,
    task: JoinHandle<()>,
    beats: JoinHandle<()>,
}

pub fn hello(name: &str, slots: u32) -> v1::Hello {
    v1::Hello {
        protocol_version: PROTOCOL_VERSION,
        name: name.into(),
        version: "test".into(),
        device: "cpu".into(),
        backends: vec![v1::BackendInfo { name: "candle".into(), ..Default::default() }],
        slots,
        ..Default::default()
    }
}

/// A worker that can be a rank of a group.
pub fn rank(name: &str, slots: u32) -> v1::Hello {
    let features = ["data-parallel", "tensor-parallel"].map(str::to_owned).into();
    let backends = vec![v1::BackendInfo { name: "libtorch".into(), features, ..Default::default() }];
    v1::Hello { backends, ..hello(name, slots) }
}

impl FakeWorker {
    pub async fn connect(
        url: &str,
        hello: v1::Hello,
        script: impl Fn(&v1::Lease) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self::connect_holding(url, hello, Vec::new(), script).await
    }

    /// Connects with leases of an earlier session.
    pub async fn connect_holding(
        url: &str,
        hello: v1::Hello,
        held: Vec<v1::Lease>,
        script: impl Fn(&v1::Lease) -> Act + Send + Sync + 'static,
    ) -> Self {
        let channel = Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
        let seen = Arc::new(Mutex::new(Seen {
            held: held.into_iter().map(|lease| (lease.lease_id.clone(), lease)).collect(),
            ..Default::default()
        }));
        let (sender, receiver) = mpsc::channel(16);
        sender.send(request(v1::session_request::Message::Hello(hello))).await.unwrap();
        let mut replies = WorkerServiceClient::new(channel.clone())
            .session(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        let welcome = replies.message().await.unwrap().unwrap().message.unwrap();
        let v1::session_response::Message::Welcome(welcome) = welcome else { panic!("{welcome:?}") };

        let interval = Duration::from_millis(welcome.heartbeat_interval_ms.into());
        let beats = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                loop {
                    if sender.send(request(heartbeat(&seen))).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(interval).await;
                }
            }
        });
        let script: Script = Arc::new(script);
        let task = tokio::spawn({
            let (seen, channel) = (Arc::clone(&seen), channel.clone());
            async move {
                while let Ok(Some(reply)) = replies.message().await {
                    match reply.message {
                        Some(v1::session_response::Message::Lease(lease)) => {
                            {
                                let mut seen = seen.lock().unwrap();
                                seen.stages.push(lease.stage.clone());
                                seen.jobs.push(lease.job_id.clone());
                                seen.held.insert(lease.lease_id.clone(), lease.clone());
                            }
                            let act = script(&lease);
                            if !matches!(act, Act::Hold) {
                                tokio::spawn(end(channel.clone(), Arc::clone(&seen), lease, act));
                            }
                        }
                        Some(v1::session_response::Message::CancelLease(cancel)) => {
                            let mut seen = seen.lock().unwrap();
                            seen.held.remove(&cancel.lease_id);
                            seen.cancelled.push(cancel.lease_id);
                        }
                        Some(v1::session_response::Message::Drain(_)) => break,
                        _ => {}
                    }
                }
                seen.lock().unwrap().ended = true;
            }
        });
        Self { seen, channel, task, beats }
    }

    pub fn stages(&self) -> Vec<String> {
        self.seen.lock().unwrap().stages.clone()
    }

    pub fn jobs(&self) -> Vec<String> {
        self.seen.lock().unwrap().jobs.clone()
    }

    /// The lease has ended by the test's own doing.
    pub fn forget(&self, lease: &v1::Lease) {
        self.seen.lock().unwrap().held.remove(&lease.lease_id);
    }

    pub fn held(&self) -> Vec<v1::Lease> {
        self.seen.lock().unwrap().held.values().cloned().collect()
    }

    pub fn cancelled(&self) -> Vec<String> {
        self.seen.lock().unwrap().cancelled.clone()
    }

    pub fn joined(&self) -> Vec<(String, v1::JoinGroupResponse)> {
        self.seen.lock().unwrap().joined.clone()
    }

    pub fn ended(&self) -> bool {
        self.seen.lock().unwrap().ended
    }

    /// Waits until the worker holds a lease.
    pub async fn lease(&self) -> v1::Lease {
        eventually("a lease comes", async || self.held().into_iter().next()).await
    }

    /// Waits until the worker holds a lease of this stage.
    pub async fn lease_of(&self, stage: &str) -> v1::Lease {
        let find = async || self.held().into_iter().find(|lease| lease.stage == stage);
        eventually(&format!("a lease of {stage} comes"), find).await
    }

    /// Computes a lease's outputs and uploads them, without telling.
    pub async fn make(&self, lease: &v1::Lease) -> Made {
        compute(&self.channel, lease).await
    }

    /// Reports a completion.
    pub async fn complete(&self, lease: &v1::Lease, made: Made) -> Result<v1::CompleteShardResponse, Status> {
        complete(&self.channel, lease, made).await
    }
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        self.task.abort();
        self.beats.abort();
    }
}

fn request(message: v1::session_request::Message) -> v1::SessionRequest {
    v1::SessionRequest { message: Some(message) }
}

fn heartbeat(seen: &Mutex<Seen>) -> v1::session_request::Message {
    let leases = seen
        .lock()
        .unwrap()
        .held
        .values()
        .map(|lease| v1::LeaseProgress {
            lease_id: lease.lease_id.clone(),
            units_done: 1,
            units_total: 2,
            activity: match lease.task.as_ref().and_then(|task| task.task.as_ref()) {
                Some(Task::Train(_)) => "update 12 of 40, loss 0.061".into(),
                _ => String::new(),
            },
        })
        .collect();
    v1::session_request::Message::Heartbeat(v1::Heartbeat { leases, credits: 1, resident_models: vec![] })
}

async fn end(channel: Channel, seen: Arc<Mutex<Seen>>, lease: v1::Lease, act: Act) {
    let told = match act {
        Act::Fail(class, message) => WorkerServiceClient::new(channel.clone())
            .fail_shard(v1::FailShardRequest {
                lease_id: lease.lease_id.clone(),
                fencing_token: lease.fencing_token,
                shard_id: lease.shard_id.clone(),
                failure_class: class.into(),
                code: "internal".into(),
                message: message.into(),
            })
            .await
            .map(drop),
        Act::Join(content) => match join(&channel, &lease, content).await {
            Ok(told) => {
                let leads = told.rank == 0;
                seen.lock().unwrap().joined.push((lease.shard_id.clone(), told));
                if !leads {
                    return;
                }
                let made = compute(&channel, &lease).await;
                complete(&channel, &lease, made).await.map(drop)
            }
            Err(status) => {
                let class = match status.code() {
                    Code::DeadlineExceeded => v1::FailureClass::Infrastructure,
                    _ => v1::FailureClass::Attempt,
                };
                WorkerServiceClient::new(channel.clone())
                    .fail_shard(v1::FailShardRequest {
                        lease_id: lease.lease_id.clone(),
                        fencing_token: lease.fencing_token,
                        shard_id: lease.shard_id.clone(),
                        failure_class: class.into(),
                        code: "model_differs".into(),
                        message: status.message().into(),
                    })
                    .await
                    .map(drop)
            }
        },
        Act::Complete | Act::Hold => {
            let made = compute(&channel, &lease).await;
            complete(&channel, &lease, made).await.map(drop)
        }
    };
    seen.lock().unwrap().held.remove(&lease.lease_id);
    if let Err(status) = told {
        // The job was cancelled or the coordinator stopped meanwhile.
        assert!(
            matches!(status.code(), Code::FailedPrecondition | Code::Unavailable | Code::Unknown),
            "{status}"
        );
    }
}

async fn join(channel: &Channel, lease: &v1::Lease, content: &str) -> Result<v1::JoinGroupResponse, Status> {
    let request = v1::JoinGroupRequest {
        lease_id: lease.lease_id.clone(),
        fencing_token: lease.fencing_token,
        shard_id: lease.shard_id.clone(),
        address: format!("127.0.0.1:{}", lease.fencing_token),
        model_fingerprint: content.into(),
        backend: "libtorch test f32".into(),
        ..Default::default()
    };
    Ok(WorkerServiceClient::new(channel.clone()).join_group(request).await?.into_inner())
}

async fn complete(
    channel: &Channel,
    lease: &v1::Lease,
    made: Made,
) -> Result<v1::CompleteShardResponse, Status> {
    let request = v1::CompleteShardRequest {
        lease_id: lease.lease_id.clone(),
        fencing_token: lease.fencing_token,
        shard_id: lease.shard_id.clone(),
        outputs: made.outputs,
        stats: Some(v1::ShardStats { rows: 1, ..Default::default() }),
        resolved_models: made.resolved,
    };
    Ok(WorkerServiceClient::new(channel.clone()).complete_shard(request).await?.into_inner())
}
