//! One lease, from its arrival to the coordinator's receipt.

use std::{collections::HashMap, future::Future, panic, path::PathBuf, sync::Arc, time::Duration};

use cappy_proto::{
    MAX_MESSAGE_BYTES,
    v1::{self, worker_service_client::WorkerServiceClient},
};
use tonic::{Code, Status};

use super::{Backoff, CancelReason, Shared, is_transient, leases::Held, meeting::Meeting};
use crate::{
    artifacts::{self, CachedFile, TransferError},
    coordinator::Channel,
    execution::{self, Attempt, ExecutionError, Outcome},
};

/// First and longest pause before a call is made again.
pub(super) const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Tries of a transfer whose failure is not about the connection alone.
const TRANSFER_TRIES: u32 = 8;

/// How long a stopping worker tries to give a shard back.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the shard and reports; the lease is held until then.
pub async fn run(shared: Arc<Shared>, held: Held) {
    let lease = Arc::clone(&held.lease);
    let result = tokio::select! {
        biased;
        result = attempt(&shared, &held) => result,
        () = held.cancelled.cancelled() => Err(cancelled()),
    };
    match (held.reason(), result) {
        (None, Ok(completion)) => complete(&shared, &held, completion).await,
        (None, Err(error)) => {
            tracing::warn!(
                shard = lease.shard_id,
                stage = lease.stage,
                code = error.code,
                "shard failed: {error}"
            );
            fail(&shared, &held, error.request(&lease)).await;
        }
        (Some(CancelReason::Stopping), _) => {
            let error = ExecutionError::infrastructure("cancelled", "the worker is stopping");
            let request = error.request(&lease);
            let call = async { client(channel(&shared).await).fail_shard(request).await };
            match tokio::time::timeout(GIVE_BACK_TIMEOUT, call).await {
                Ok(Ok(_)) => {}
                // Its lease runs out, which only takes longer.
                Ok(Err(status)) => {
                    tracing::warn!(shard = lease.shard_id, "cannot give back: {}", status.message())
                }
                Err(_) => tracing::warn!(shard = lease.shard_id, "cannot give back in time"),
            }
        }
        (Some(CancelReason::Coordinator | CancelReason::Expired), _) => {}
    }
    shared.leases.remove(&lease.lease_id);
    shared.news.notify_one();
}

pub(super) fn cancelled() -> ExecutionError {
    ExecutionError::infrastructure("cancelled", "the lease was cancelled")
}

/// Fetches, computes, uploads.
async fn attempt(shared: &Arc<Shared>, held: &Held) -> Result<v1::CompleteShardRequest, ExecutionError> {
    let lease = &held.lease;
    let task = lease.task.clone().ok_or_else(|| {
        ExecutionError::permanent("unsupported", "the lease has no task that this worker knows")
    })?;
    held.progress.set(0, 0, "fetching inputs");
    // Before a slot is taken: while this one waits for files, another computes.
    let mut files: HashMap<String, CachedFile> = HashMap::new();
    for artifact in execution::inputs_of(&task) {
        let file = transfer(shared, |channel| {
            let artifact = &artifact;
            async move { artifacts::fetch(channel, &shared.config.cache, artifact).await }
        })
        .await?;
        files.insert(artifact.id, file);
    }
    let scratch = tempfile::Builder::new()
        .prefix("shard-")
        .tempdir_in(&shared.config.scratch)
        .map_err(|error| ExecutionError::disk("make a scratch directory", &error))?;

    let permit = shared.compute.acquire().await.map_err(|_| cancelled())?;
    let outcome = {
        let engine = Arc::clone(&shared.config.engine);
        let progress = Arc::clone(&held.progress);
        let meeting = lease.gang.map(|gang| Meeting {
            shared: Arc::clone(shared),
            held: held.clone(),
            gang,
            runtime: tokio::runtime::Handle::current(),
        });
        let inputs: HashMap<String, PathBuf> =
            files.iter().map(|(id, file)| (id.clone(), file.path().to_owned())).collect();
        // The thread may outlive this future (a cancelled one does not wait), so what it uses moves in with it.
        tokio::task::spawn_blocking(move || {
            let _held_files = files;
            let outcome = panic::catch_unwind(panic::AssertUnwindSafe(|| {
                let gang = meeting.as_ref().map(Meeting::as_gang).transpose()?;
                let attempt = Attempt { inputs: &inputs, scratch: scratch.path(), progress: &progress, gang };
                execution::run(&engine, &task, &attempt)
            }));
            (outcome, scratch)
        })
        .await
    };
    drop(permit);
    let (outcome, scratch) =
        outcome.map_err(|error| ExecutionError::internal(format!("shard thread: {error}")))?;
    let outcome = outcome.unwrap_or_else(|payload| Err(ExecutionError::internal(panic_text(&*payload))))?;

    let Outcome { outputs, stats, resolved_models, follows } = outcome;
    if follows {
        // The commit of rank 0 ends this lease.
        held.progress.say("waiting for rank 0 to hand in the result");
        held.cancelled.cancelled().await;
        return Err(cancelled());
    }
    let mut named = Vec::new();
    for (name, path) in outputs {
        let artifact = transfer(shared, |channel| {
            let path = &path;
            async move { artifacts::upload(channel, &shared.config.cache, path).await }
        })
        .await?;
        named.push(v1::NamedArtifact { name, artifact: Some(artifact) });
    }
    drop(scratch);
    Ok(v1::CompleteShardRequest {
        lease_id: lease.lease_id.clone(),
        fencing_token: lease.fencing_token,
        shard_id: lease.shard_id.clone(),
        outputs: named,
        stats: Some(stats),
        resolved_models,
    })
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    format!("the worker panicked: {text}")
}

/// Tries a transfer over the newest connection until it succeeds or cannot.
async fn transfer<T, F: Future<Output = Result<T, TransferError>>>(
    shared: &Shared,
    call: impl Fn(Channel) -> F,
) -> Result<T, ExecutionError> {
    let mut pause = Backoff::new(RETRY_PAUSE);
    let mut tries = 0;
    loop {
        match call(channel(shared).await).await {
            Ok(done) => return Ok(done),
            Err(error) if error.is_transient() => {
                // An absent coordinator is waited for as long as the lease lives.
                let absent = matches!(&error, TransferError::Status { status, .. } if status.code() == Code::Unavailable);
                tries += u32::from(!absent);
                if tries >= TRANSFER_TRIES {
                    return Err(ExecutionError::infrastructure("unavailable", error.to_string()));
                }
                tracing::debug!(%error, "transfer failed, trying again");
                tokio::time::sleep(pause.next()).await;
            }
            Err(error @ TransferError::Disk(_)) => {
                return Err(ExecutionError::infrastructure("disk", error.to_string()));
            }
            Err(error) if error.is_missing() => {
                return Err(ExecutionError::attempt("not_found", error.to_string()));
            }
            Err(error) => return Err(ExecutionError::attempt("transfer", error.to_string())),
        }
    }
}

pub(super) async fn channel(shared: &Shared) -> Channel {
    let mut newest = shared.channel.subscribe();
    let channel = newest.wait_for(Option::is_some).await.expect("the sender lives as long as this session");
    channel.clone().expect("waited for")
}

fn client(channel: Channel) -> WorkerServiceClient<Channel> {
    WorkerServiceClient::new(channel).max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// Completes; the same completion may be sent any number of times.
async fn complete(shared: &Shared, held: &Held, request: v1::CompleteShardRequest) {
    let result = report(shared, held, |channel| {
        let request = request.clone();
        async move { client(channel).complete_shard(request).await.map(tonic::Response::into_inner) }
    })
    .await;
    let shard = &held.lease.shard_id;
    match result {
        Some(Ok(reply)) => tracing::info!(shard, newly_committed = reply.newly_committed, "completed"),
        // Another attempt was faster, or the job is gone: the coordinator has decided.
        Some(Err(status)) => tracing::warn!(shard, "completion refused: {}", status.message()),
        None => {}
    }
}

async fn fail(shared: &Shared, held: &Held, request: v1::FailShardRequest) {
    let result = report(shared, held, |channel| {
        let request = request.clone();
        async move { client(channel).fail_shard(request).await }
    })
    .await;
    if let Some(Err(status)) = result {
        tracing::warn!(shard = held.lease.shard_id, "failure report refused: {}", status.message());
    }
}

/// Calls until the coordinator has answered, or the lease was cancelled (`None`).
async fn report<T, F: Future<Output = Result<T, Status>>>(
    shared: &Shared,
    held: &Held,
    call: impl Fn(Channel) -> F,
) -> Option<Result<T, Status>> {
    let calls = async {
        let mut pause = Backoff::new(RETRY_PAUSE);
        loop {
            match call(channel(shared).await).await {
                Err(status) if is_transient(status.code()) => {
                    tracing::debug!(code = ?status.code(), "report failed, trying again");
                    tokio::time::sleep(pause.next()).await;
                }
                result => return result,
            }
        }
    };
    tokio::select! {
        result = calls => Some(result),
        () = held.cancelled.cancelled() => None,
    }
}
