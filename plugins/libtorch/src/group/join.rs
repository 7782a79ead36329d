//! How ranks find each other.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use cappy_plugin_abi::{Failure, Group};
use tch::Device;

use super::Ranks;
use super::ffi::{Connections, Store};
use super::watch::{Meeting, Watch};
use crate::cuda;

/// Beyond the group's timeout: for steps that time out one after the other, and say more than the total would.
const MARGIN: Duration = Duration::from_secs(2);

/// This process's place in a group, from when a backend is asked to load until the ranks meet. What the host has handed
/// over with it, rank 0's listener, is closed when nothing comes of it.
pub struct Seat {
    group: Group,
    listener: Option<OwnedFd>,
}

impl Seat {
    /// Takes the place.
    pub fn take(group: Group) -> Self {
        let listener = group.listener.filter(|&fd| fd >= 0);
        // SAFETY: the host has given the socket away with the request.
        let listener = listener.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        Self { group, listener }
    }

    /// Which place it is.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// As [`Ranks::join`].
    ///
    /// # Errors
    /// Those of [`Ranks::join`].
    pub fn join(self, device: Device) -> Result<Arc<Ranks>, Failure> {
        // The store's from here on.
        let _ = self.listener.map(IntoRawFd::into_raw_fd);
        Ranks::join(&self.group, device)
    }
}

/// A group that has come together.
pub(super) struct Joined {
    pub connections: Arc<Connections>,
    /// Whether these carry tensors of a GPU.
    pub nccl: bool,
    pub watch: Watch,
}

/// Meets the others and connects with them.
pub(super) fn join(group: &Group, device: Device) -> Result<Joined, Failure> {
    let rendezvous = Rendezvous::check(group, device)?;
    let timeout = rendezvous.timeout;
    let at = group.rendezvous.clone();
    let (sender, receiver) = mpsc::sync_channel(1);
    // A thread, since a peer that accepts a connection and then says nothing keeps c10d waiting for ever.
    thread::spawn(move || {
        // Nobody receives when the time was up: then what was made is dropped here.
        let _ = sender.send(rendezvous.meet());
    });
    receiver.recv_timeout(timeout + MARGIN).unwrap_or_else(|error| {
        Err(match error {
            RecvTimeoutError::Timeout => Failure::peer_lost(format!(
                "the ranks did not find each other at `{at}` within {} s",
                timeout.as_secs()
            )),
            RecvTimeoutError::Disconnected => Failure::internal("joining a group panicked"),
        })
    })
}

/// A group, checked.
struct Rendezvous {
    group: Group,
    device: Device,
    host: String,
    port: u16,
    timeout: Duration,
}

impl Rendezvous {
    fn check(group: &Group, device: Device) -> Result<Self, Failure> {
        let wrong =
            |why: String| Err(Failure::invalid_argument(format!("the group is not understood: {why}")));
        let Group { rank, world, timeout_seconds, listener, .. } = *group;
        if rank >= world || world > MOST_RANKS {
            return wrong(format!(
                "rank {rank} of {world}; ranks are counted from 0, and {MOST_RANKS} at most"
            ));
        }
        if !(1..=MOST_SECONDS).contains(&timeout_seconds) {
            return wrong(format!("a timeout of {timeout_seconds} s; give 1 to {MOST_SECONDS}"));
        }
        if listener.is_some_and(|fd| rank != 0 || fd < 0) {
            return wrong("only rank 0 has a listener".into());
        }
        let place =
            group.rendezvous.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let Some((host, port)) = place.filter(|&(host, port)| !host.is_empty() && port != 0) else {
            return wrong(format!("a rendezvous `{}`; give host:port", group.rendezvous));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { group: group.clone(), device, host, port, timeout: Duration::from_secs(timeout_seconds) })
    }

    fn meet(self) -> Result<Joined, Failure> {
        let Group { rank, world, kind, listener, .. } = self.group;
        let (at, seconds, ms) =
            (&self.group.rendezvous, self.timeout.as_secs(), self.timeout.as_millis() as i64);
        let store =
            Store::open(&self.host, self.port, (rank == 0).then_some(listener), ms).map_err(|said| {
                Failure::peer_lost(if rank == 0 {
                    format!("rank 0 cannot listen at `{at}`: {said}")
                } else {
                    format!("rank 0 of {world} does not answer at `{at}` within {seconds} s: {said}")
                })
            })?;
        let (rank, world) = (rank as usize, world as usize);
        let meeting = Arc::new(Meeting::new(store, rank, world, self.timeout));
        let joined = self.connect(&meeting, &format!("{world} ranks ({kind:?} parallel)").to_lowercase());
        match joined {
            Ok((connections, nccl)) => {
                let connections = Arc::new(connections);
                let watch = Watch::start(meeting, Arc::clone(&connections));
                Ok(Joined { connections, nccl, watch })
            }
            Err(failure) => {
                meeting.leave(&failure.message);
                // Others may still have to read why.
                thread::spawn(move || meeting.close());
                Err(failure)
            }
        }
    }

    /// The connections, and whether GPUs have theirs.
    fn connect(&self, meeting: &Meeting, group: &str) -> Result<(Connections, bool), Failure> {
        meeting.agree("their group", group)?;
        let Group { rank, world, host, .. } = &self.group;
        let (place, ms) = ((*rank as usize, *world as usize), self.timeout.as_millis() as i64);
        let connections = Connections::open(meeting.store(), host, place.0, place.1, ms).map_err(|said| {
            Failure::peer_lost(format!(
                "rank {rank} of {world} cannot connect with the others from `{host}`: {said}"
            ))
        })?;
        // Where one rank has no GPU, or no NCCL, all exchange through the CPU's memory.
        let gpu = match self.device {
            Device::Cuda(index) if cuda::has_nccl() => Some(index),
            _ => None,
        };
        let all = meeting.all("NCCL", gpu.is_some())?;
        if let (Some(index), true) = (gpu, all) {
            cuda::nccl_connect(&connections, meeting.store(), place, index, ms).map_err(|said| {
                Failure::peer_lost(format!(
                    "NCCL cannot connect GPU {index} of rank {rank} with those of {world} ranks: {said}"
                ))
            })?;
        }
        Ok((connections, all))
    }
}

/// Above it a group is a mistake.
const MOST_RANKS: u32 = 1024;
/// A day.
const MOST_SECONDS: u64 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::{Code, GroupKind};

    #[test]
    fn a_seat_that_nobody_sits_on_is_given_back() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let group = Group {
            kind: GroupKind::Tensor,
            rank: 0,
            world: 2,
            rendezvous: address.to_string(),
            listener: Some(listener.into_raw_fd()),
            host: "127.0.0.1".into(),
            timeout_seconds: 1,
        };
        let seat = Seat::take(group);
        std::net::TcpStream::connect(address).expect("it listens");
        drop(seat);
        std::net::TcpStream::connect(address).expect_err("it is closed");
    }

    #[test]
    fn a_place_in_a_group_is_checked_before_anything_is_opened() {
        type Change = fn(&mut Group);
        let group = |change: Change| {
            let mut group = Group {
                kind: GroupKind::Data,
                rank: 0,
                world: 2,
                rendezvous: "[::1]:4242".into(),
                listener: None,
                host: "127.0.0.1".into(),
                timeout_seconds: 30,
            };
            change(&mut group);
            Rendezvous::check(&group, Device::Cpu)
        };
        let good = group(|_| {}).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!((good.host.as_str(), good.port), ("::1", 4242));
        let cases: [(Change, &str); 6] = [
            (|g| g.rank = 2, "rank 2 of 2"),
            (|g| g.world = 0, "rank 0 of 0"),
            (|g| g.timeout_seconds = 0, "a timeout of 0 s"),
            (|g| (g.rank, g.listener) = (1, Some(3)), "only rank 0"),
            (|g| g.rendezvous = "somewhere".into(), "`somewhere`"),
            (|g| g.rendezvous = ":80".into(), "`:80`"),
        ];
        for (change, words) in cases {
            let failure = group(change).err().expect("it is refused");
            assert_eq!(failure.code, Code::InvalidArgument);
            assert!(failure.message.contains(words), "{failure}");
        }
    }
}
