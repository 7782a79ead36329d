//! One connection: hello, heartbeats, and what the coordinator says.

use std::{sync::Arc, time::Duration};

use cappy_proto::{
    MAX_MESSAGE_BYTES,
    v1::{
        self, session_request::Message as Said, session_response::Message as Heard,
        worker_service_client::WorkerServiceClient,
    },
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{CancelReason, SessionError, Shared, shard};

/// To connect, and to be welcomed.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// A dead peer is noticed within the sum of both.
pub(super) const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));

/// How a connection ended.
pub enum End {
    /// The worker is told to stop, or drained.
    Done,
    /// For this reason; worth another try.
    Lost(String),
}

/// Connects and serves until the connection ends.
pub async fn connect_once(
    shared: &Arc<Shared>,
    welcomed: &mut bool,
    ttl: &mut Duration,
) -> Result<End, SessionError> {
    let address = &shared.config.coordinator;
    let endpoint = address
        .endpoint()
        .map_err(|_| SessionError::Address(address.url.clone()))?
        .connect_timeout(GREETING_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true);
    let connecting = async {
        tokio::select! {
            channel = endpoint.connect() => Some(channel),
            () = shared.stop.cancelled() => None,
        }
    };
    let channel = match connecting.await {
        None => return Ok(End::Done),
        Some(Err(error)) => return Ok(End::Lost(reason_of(&error))),
        Some(Ok(channel)) => address.with_token(channel),
    };
    let mut client = WorkerServiceClient::new(channel.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);

    let (say, said) = mpsc::channel(16);
    let message = |message| v1::SessionRequest { message: Some(message) };
    let hello = message(Said::Hello(shared.config.hello.clone()));
    say.send(hello).await.expect("the receiver is held below");
    let greeting = async {
        let mut stream = client.session(ReceiverStream::new(said)).await?.into_inner();
        let first = stream.message().await?;
        Ok::<_, tonic::Status>((stream, first))
    };
    let (mut stream, first) = match timeout(GREETING_TIMEOUT, greeting).await {
        Err(_) => return Ok(End::Lost("no welcome in time".to_owned())),
        Ok(Err(status)) => return refused_or_lost(&status),
        Ok(Ok(greeting)) => greeting,
    };
    let Some(v1::SessionResponse { message: Some(Heard::Welcome(welcome)) }) = first else {
        return Ok(End::Lost("the coordinator did not begin with a welcome".to_owned()));
    };
    *welcomed = true;
    if welcome.lease_ttl_ms > 0 {
        *ttl = Duration::from_millis(welcome.lease_ttl_ms.into());
    }
    tracing::info!(worker = welcome.worker_id, "serving the coordinator");
    shared.leases.regained_contact();
    shared.channel.send_replace(Some(channel));

    let mut beat = interval(Duration::from_millis(welcome.heartbeat_interval_ms.max(50).into()));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if shared.stop.is_cancelled() {
            give_back(shared).await;
            return Ok(End::Done);
        }
        if shared.drain.is_cancelled() && shared.leases.is_empty() {
            return Ok(End::Done);
        }
        tokio::select! {
            _ = beat.tick() => {}
            () = shared.news.notified() => {}
            () = shared.stop.cancelled() => continue,
            () = shared.drain.cancelled(), if !shared.drain.is_cancelled() => {}
            heard = stream.message() => {
                match heard {
                    Ok(Some(response)) => hear(shared, response),
                    Ok(None) => return Ok(End::Lost("the coordinator ended the session".to_owned())),
                    Err(status) => return refused_or_lost(&status),
                }
                continue;
            }
        }
        // Only the stream's own flow control can hold this up: then nobody reads at the other end.
        let heartbeat = message(Said::Heartbeat(heartbeat(shared)));
        match timeout(GREETING_TIMEOUT, say.send(heartbeat)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Ok(End::Lost("the coordinator takes no heartbeats".to_owned())),
        }
    }
}

fn hear(shared: &Arc<Shared>, response: v1::SessionResponse) {
    match response.message {
        Some(Heard::Lease(lease)) => {
            let Some(held) = shared.leases.add(lease) else { return };
            tracing::info!(shard = held.lease.shard_id, stage = held.lease.stage, "leased");
            shared.tasks.spawn(shard::run(Arc::clone(shared), held));
        }
        Some(Heard::CancelLease(cancel)) => {
            tracing::info!(
                lease = cancel.lease_id,
                reason = cancel.reason,
                "the coordinator cancelled a lease"
            );
            shared.leases.cancel(&cancel.lease_id, CancelReason::Coordinator);
        }
        Some(Heard::Drain(_)) => {
            tracing::info!("draining");
            shared.drain.cancel();
        }
        Some(Heard::Welcome(_)) | None => {}
    }
}

fn heartbeat(shared: &Shared) -> v1::Heartbeat {
    let held = shared.leases.len() as u32;
    let slots = if shared.drain.is_cancelled() { 0 } else { shared.config.hello.slots };
    v1::Heartbeat {
        leases: shared.leases.report(),
        credits: slots.saturating_sub(held),
        resident_models: shared.config.engine.residency.fingerprints(),
    }
}

/// While the connection still stands, so that shards can say that they are free again.
async fn give_back(shared: &Shared) {
    shared.leases.cancel_all(CancelReason::Stopping);
    shared.tasks.close();
    let _ = timeout(super::STOP_GRACE, shared.tasks.wait()).await;
}

fn refused_or_lost(status: &tonic::Status) -> Result<End, SessionError> {
    match status.code() {
        Code::FailedPrecondition
        | Code::InvalidArgument
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Unimplemented => Err(SessionError::Refused(status.message().to_owned())),
        _ => Ok(End::Lost(status.message().to_owned())),
    }
}

fn reason_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
