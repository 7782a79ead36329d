//! `WorkerService`: sessions, completions, failures.

use std::{pin::Pin, time::Duration};

use cappy_proto::{LeaseId, PROTOCOL_VERSION, WorkerId, v1};
use futures::{Stream, StreamExt as _, stream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status::bad_field;
use crate::{
    context::Context,
    metrics::add,
    rendezvous::{Introduction, Refusal},
    scheduler::LOST_RANK,
    store::{AttemptFailure, FailureClass, GangMember, LeaseKey, NamedOutput, ResolvedModel, ShardOutput},
};

/// Time to say hello after the session was opened.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest failure message that is kept.
const MAX_MESSAGE_CHARS: usize = 2000;

#[derive(Clone)]
pub(super) struct Workers {
    pub(super) context: Context,
}

#[tonic::async_trait]
impl v1::worker_service_server::WorkerService for Workers {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut requests = request.into_inner();
        let hello = tokio::time::timeout(HELLO_TIMEOUT, hello(&mut requests))
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let name = hello.name.clone();
        if !hello.previous_end.is_empty() {
            self.tell_end(&name, &hello.previous_end).await;
        }
        let (worker, inbox) = self.context.cluster.join(hello);
        tracing::info!(%worker, name, "worker connected");
        let welcome = v1::SessionResponse {
            message: Some(v1::session_response::Message::Welcome(v1::Welcome {
                worker_id: worker.to_string(),
                heartbeat_interval_ms: whole_millis(self.context.config.heartbeat_interval),
                lease_ttl_ms: whole_millis(self.context.config.lease_ttl),
            })),
        };
        let context = self.context.clone();
        tokio::spawn(async move {
            let end = tokio::select! {
                end = listen(&context, &worker, requests) => end,
                () = context.shutdown.cancelled() => "the coordinator is ending".into(),
            };
            let had_leases = context.cluster.leave(&worker);
            tracing::info!(%worker, name, reason = end, "worker disconnected");
            // The worker keeps its leases over a restart of the coordinator.
            if had_leases
                && !context.shutdown.is_cancelled()
                && let Err(error) = context.store.shorten(&worker, context.config.reconnect_grace).await
            {
                tracing::error!(error = &error as &dyn std::error::Error, "failed to shorten leases");
            }
            context.changes.notify_all();
            context.scheduler.wake();
        });
        self.context.changes.notify_all();
        self.context.scheduler.wake();
        let replies = stream::once(async { welcome }).chain(ReceiverStream::new(inbox)).map(Ok);
        Ok(Response::new(Box::pin(replies)))
    }

    async fn complete_shard(
        &self,
        request: Request<v1::CompleteShardRequest>,
    ) -> Result<Response<v1::CompleteShardResponse>, Status> {
        let request = request.into_inner();
        let key = key(&request.lease_id, request.fencing_token, &request.shard_id)?;
        let mut artifacts = Vec::with_capacity(request.outputs.len());
        for output in request.outputs {
            let artifact = output.artifact.ok_or_else(|| bad_field("outputs.artifact", "is missing"))?;
            artifacts.push(NamedOutput {
                name: output.name,
                id: artifact.id,
                size_bytes: artifact.size_bytes,
            });
        }
        let ids: Vec<String> = artifacts.iter().map(|artifact| artifact.id.clone()).collect();
        let resolved = request
            .resolved_models
            .into_iter()
            .map(|model| ResolvedModel {
                name: model.name,
                fingerprint: model.fingerprint,
                architecture: model.architecture,
                weight_bytes: model.weight_bytes,
                dtype: model.dtype,
                attention_heads: model.attention_heads,
            })
            .collect();
        let truncated_rows = request.stats.map(|stats| stats.truncated_rows);
        let output = ShardOutput { artifacts, resolved, truncated_rows, ..Default::default() };
        let completed = self.context.store.complete(&key, output).await?;
        self.context.cluster.end_lease(&key.lease, &ids);
        if completed.newly_committed {
            add(&self.context.metrics.shards_committed, 1);
        }
        self.context.tell_revoked(&completed.revoked, "another worker has committed the shard");
        if completed.stage_ended {
            self.context.job_changed(&completed.job);
        } else {
            self.context.changes.notify(&completed.job);
            self.context.scheduler.wake();
        }
        Ok(Response::new(v1::CompleteShardResponse { newly_committed: completed.newly_committed }))
    }

    async fn fail_shard(
        &self,
        request: Request<v1::FailShardRequest>,
    ) -> Result<Response<v1::FailShardResponse>, Status> {
        let request = request.into_inner();
        let key = key(&request.lease_id, request.fencing_token, &request.shard_id)?;
        let class = match request.failure_class() {
            v1::FailureClass::Infrastructure => FailureClass::Infrastructure,
            v1::FailureClass::Attempt => FailureClass::Attempt,
            v1::FailureClass::Permanent => FailureClass::Permanent,
            v1::FailureClass::Unspecified => {
                return Err(bad_field("failure_class", "say whether the failure counts"));
            }
        };
        let failure = AttemptFailure {
            class,
            code: request.code.chars().take(64).collect(),
            message: request.message.chars().take(MAX_MESSAGE_CHARS).collect(),
        };
        let outcome = self.context.store.fail(&key, failure, &self.context.config.retry()).await?;
        add(&self.context.metrics.attempts_failed, 1);
        self.context.cluster.end_lease(&key.lease, &[]);
        self.context.follow_up(&outcome, LOST_RANK);
        self.context.scheduler.wake();
        Ok(Response::new(v1::FailShardResponse {}))
    }

    async fn join_group(
        &self,
        request: Request<v1::JoinGroupRequest>,
    ) -> Result<Response<v1::JoinGroupResponse>, Status> {
        let request = request.into_inner();
        let key = key(&request.lease_id, request.fencing_token, &request.shard_id)?;
        let gang = self.context.store.gang(&key).await?;
        let Some(own) = gang.iter().find(|member| member.lease == key.lease) else {
            return Err(Status::failed_precondition("the lease is of a shard for one worker"));
        };
        let cluster = &self.context.cluster;
        let introduction = Introduction {
            worker: cluster.name_of(&own.worker),
            address: request.address,
            model_fingerprint: request.model_fingerprint,
            backend: request.backend,
            checkpoint_updates: request.checkpoint_updates,
            checkpoint_state: request.checkpoint_state,
            resident_group: request.resident_group,
            resident_rank: request.resident_rank,
        };
        let name = |member: &GangMember| cluster.name_of(&member.worker);
        let timeout = self.context.config.group_timeout;
        let joining = self.context.rendezvous.join(&gang, &key.lease, introduction, timeout, name);
        let answer = tokio::select! {
            answer = joining => answer,
            () = self.context.shutdown.cancelled() => return Err(Status::unavailable("the coordinator is ending")),
        };
        let answer = answer.map_err(|refusal| match refusal {
            Refusal::Differ { .. } => Status::failed_precondition(refusal.to_string()),
            Refusal::Missing { .. } => Status::deadline_exceeded(refusal.to_string()),
        })?;
        Ok(Response::new(v1::JoinGroupResponse {
            rank: answer.rank,
            world: answer.world,
            rendezvous: answer.rendezvous,
            checkpoint_updates: answer.checkpoint_updates,
            checkpoint_state: answer.checkpoint_state,
            group_id: answer.group_id,
            resident: answer.resident,
        }))
    }
}

impl Workers {
    /// Tells the jobs that a worker was working for how its process died.
    async fn tell_end(&self, name: &str, end: &str) {
        let end: String = end.chars().take(MAX_MESSAGE_CHARS).collect();
        for (worker, shard) in self.context.cluster.lost_work(name) {
            let message = format!("the process of worker `{name}` died: {end}");
            if let Err(error) = self.context.store.note(&shard, &worker, &message).await {
                tracing::error!(error = &error as &dyn std::error::Error, "failed to note a worker's end");
            }
        }
    }
}

async fn hello(requests: &mut Streaming<v1::SessionRequest>) -> Result<v1::Hello, Status> {
    let first = requests.message().await?.and_then(|request| request.message);
    let Some(v1::session_request::Message::Hello(hello)) = first else {
        return Err(bad_field("message", "a session begins with a hello"));
    };
    if hello.protocol_version != PROTOCOL_VERSION {
        return Err(Status::failed_precondition(format!(
            "the worker speaks protocol version {}, this coordinator {PROTOCOL_VERSION}; install the same release on both",
            hello.protocol_version
        )));
    }
    if hello.slots == 0 {
        return Err(bad_field("hello.slots", "a worker needs at least one slot"));
    }
    Ok(hello)
}

/// Hears heartbeats until the session ends. Returns why it did.
async fn listen(context: &Context, worker: &WorkerId, mut requests: Streaming<v1::SessionRequest>) -> String {
    loop {
        let request = match tokio::time::timeout(context.config.lease_ttl, requests.message()).await {
            Err(_) => return "no heartbeat within the leases' time to live".into(),
            Ok(Err(status)) => return status.message().to_owned(),
            Ok(Ok(None)) => return "it said goodbye".into(),
            Ok(Ok(Some(request))) => request,
        };
        match request.message {
            Some(v1::session_request::Message::Heartbeat(beat)) => heard(context, worker, &beat).await,
            Some(v1::session_request::Message::Hello(_)) => return "it said hello twice".into(),
            None => {}
        }
    }
}

/// Prolongs the leases that a heartbeat names and tells the worker which of them it has lost.
async fn heard(context: &Context, worker: &WorkerId, beat: &v1::Heartbeat) {
    let mut leases = Vec::with_capacity(beat.leases.len());
    for told in &beat.leases {
        match told.lease_id.parse::<LeaseId>() {
            Ok(lease) => leases.push(lease),
            Err(_) => context.cluster.refuse(worker, &told.lease_id),
        }
    }
    match context.store.extend(worker, &leases, context.config.lease_ttl).await {
        Ok(held) => {
            for lease in leases.iter().filter(|lease| held.iter().all(|held| held.lease != **lease)) {
                context.cluster.refuse(worker, lease.as_str());
            }
            let jobs = context.cluster.heartbeat(worker, beat, held);
            jobs.iter().for_each(|job| context.changes.notify(job));
            context.scheduler.wake();
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "failed to prolong leases");
        }
    }
}

fn key(lease: &str, fencing_token: u64, shard: &str) -> Result<LeaseKey, Status> {
    Ok(LeaseKey {
        lease: lease
            .parse()
            .map_err(|error: cappy_proto::IdError| bad_field("lease_id", error.to_string()))?,
        fencing_token,
        shard: shard
            .parse()
            .map_err(|error: cappy_proto::IdError| bad_field("shard_id", error.to_string()))?,
    })
}

fn whole_millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
