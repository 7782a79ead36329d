//! Meets the other ranks of a shard at the coordinator, for the thread that computes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};

use cappy_plugin_abi::{Group, GroupKind};
use cappy_proto::{
    MAX_MESSAGE_BYTES,
    v1::{self, worker_service_client::WorkerServiceClient},
};
use tonic::{Code, Status, transport::Uri};

use super::{
    Backoff, Shared, is_transient,
    leases::Held,
    shard::{RETRY_PAUSE, cancelled, channel},
};
use crate::{
    execution::ExecutionError,
    group::{Gang, Introduction, Meet, Met, Seat},
};

/// One lease of a gang, and the way to its coordinator.
pub struct Meeting {
    pub shared: Arc<Shared>,
    pub held: Held,
    pub gang: v1::Gang,
    pub runtime: tokio::runtime::Handle,
}

impl Meeting {
    /// As the computation takes it.
    ///
    /// # Errors
    /// When the coordinator names a way to share the work that this worker does not know.
    pub fn as_gang(&self) -> Result<Gang<'_>, ExecutionError> {
        Ok(Gang { kind: self.kind()?, world: self.gang.world, meet: self })
    }

    fn kind(&self) -> Result<GroupKind, ExecutionError> {
        match self.gang.kind() {
            v1::GangKind::Data => Ok(GroupKind::Data),
            v1::GangKind::Tensor => Ok(GroupKind::Tensor),
            v1::GangKind::Unspecified => Err(ExecutionError::permanent(
                "unsupported",
                "this worker does not know how the ranks share the work: it is older than the coordinator",
            )),
        }
    }

    async fn join(&self, request: v1::JoinGroupRequest) -> Result<v1::JoinGroupResponse, ExecutionError> {
        let calls = async {
            let mut pause = Backoff::new(RETRY_PAUSE);
            loop {
                let mut client = WorkerServiceClient::new(channel(&self.shared).await)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES)
                    .max_decoding_message_size(MAX_MESSAGE_BYTES);
                match client.join_group(request.clone()).await {
                    Err(status) if is_transient(status.code()) && status.code() != Code::DeadlineExceeded => {
                        tracing::debug!(code = ?status.code(), "cannot meet the other ranks, trying again");
                        tokio::time::sleep(pause.next()).await;
                    }
                    result => return result.map(tonic::Response::into_inner),
                }
            }
        };
        tokio::select! {
            result = calls => result.map_err(refused),
            () = self.held.cancelled.cancelled() => Err(cancelled()),
        }
    }
}

/// That some did not come is nobody's attempt; that ranks differ is.
fn refused(status: Status) -> ExecutionError {
    match status.code() {
        Code::DeadlineExceeded => ExecutionError::infrastructure("peer_missing", status.message()),
        _ => ExecutionError::attempt("model_differs", status.message()),
    }
}

impl Meet for Meeting {
    fn meet(&self, introduction: &Introduction) -> Result<Met, ExecutionError> {
        let kind = self.kind()?;
        let config = &self.shared.config;
        let host = match &config.group_host {
            Some(host) => host.clone(),
            None => host_towards(&config.coordinator.url).map(|host| host.to_string()).map_err(|error| {
                let message = format!(
                    "cannot tell this worker's address towards the coordinator; give --group-host: {error}"
                );
                ExecutionError::infrastructure("network", message)
            })?,
        };
        let listener = listen(&host).map_err(|error| {
            let message =
                format!("cannot listen on `{host}` for the other ranks; give --group-host: {error}");
            ExecutionError::infrastructure("network", message)
        })?;
        let port = listener.local_addr().map_err(|error| ExecutionError::internal(error.to_string()))?.port();
        let lease = &self.held.lease;
        let (checkpoint_updates, checkpoint_state) = introduction.checkpoint.clone().unwrap_or_default();
        let resident = introduction.resident.as_ref();
        let told = self.runtime.block_on(self.join(v1::JoinGroupRequest {
            lease_id: lease.lease_id.clone(),
            fencing_token: lease.fencing_token,
            shard_id: lease.shard_id.clone(),
            address: if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") },
            model_fingerprint: introduction.model_fingerprint.clone(),
            backend: introduction.backend.clone(),
            checkpoint_updates,
            checkpoint_state,
            resident_group: resident.map(|place| place.id.clone()).unwrap_or_default(),
            resident_rank: resident.map_or(0, |place| place.rank),
        }))?;
        tracing::info!(shard = lease.shard_id, rank = told.rank, world = told.world, "met the other ranks");
        // Of use where there is something to connect.
        let listener = (told.rank == 0 && !told.resident).then(|| listener.into());
        let timeout = Duration::from_millis(self.gang.exchange_timeout_ms.into());
        let group = Group {
            kind,
            rank: told.rank,
            world: told.world,
            rendezvous: told.rendezvous,
            listener: None,
            host,
            timeout_seconds: timeout.as_secs().max(1),
        };
        Ok(Met {
            seat: Seat::new(group, listener),
            id: told.group_id,
            resident: told.resident,
            checkpoint: (told.checkpoint_updates > 0)
                .then_some((told.checkpoint_updates, told.checkpoint_state)),
        })
    }
}

/// The address from which this machine reaches a URL: the one by which it can be reached from there.
fn host_towards(url: &str) -> std::io::Result<IpAddr> {
    let uri: Uri = url.parse().map_err(std::io::Error::other)?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let mut last = std::io::Error::other("the URL has no host");
    let places = std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), uri.port_u16().unwrap_or(80)))?;
    for place in places {
        let any: IpAddr = match place {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Connecting a datagram socket sends nothing: it asks the system for the way.
        let found = UdpSocket::bind((any, 0)).and_then(|socket| {
            socket.connect(place)?;
            socket.local_addr()
        });
        match found {
            Ok(address) => return Ok(address.ip()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A socket for the other ranks; everywhere, where the host's address is not one of this machine's own (behind a
/// translation of addresses).
fn listen(host: &str) -> std::io::Result<TcpListener> {
    TcpListener::bind((host, 0)).or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_knows_its_address_towards_another() {
        assert_eq!(host_towards("http://127.0.0.1:50051").unwrap(), IpAddr::from(Ipv4Addr::LOCALHOST));
        assert!(host_towards("nonsense").is_err());
        assert_ne!(listen("127.0.0.1").unwrap().local_addr().unwrap().port(), 0);
        // An address for documentation only, which no machine has.
        assert!(listen("192.0.2.1").unwrap().local_addr().unwrap().ip().is_unspecified());
    }

    #[test]
    fn who_does_not_come_is_nobody_s_attempt() {
        use crate::execution::FailureClass;
        assert_eq!(refused(Status::deadline_exceeded("late")).class, FailureClass::Infrastructure);
        assert_eq!(refused(Status::failed_precondition("differs")).class, FailureClass::Attempt);
    }
}
