//! A shard that several workers compute together, a rank each.
//!
//! Every rank runs the same code on the same rows in the same order; what they exchange is the backend's business. Before
//! any work they meet at the coordinator ([`Meet`]), which compares what they would compute with and says who is which
//! rank. Rank 0 alone completes the shard; the leases of the others end with its commit.

use std::os::fd::{IntoRawFd as _, OwnedFd};

use cappy_plugin_abi::{
    Code, Control, Decoding, EncodingId, Failure, Generated, Generator, Group, GroupKind, ModelInfo,
    RaggedTokens,
};

use crate::execution::ExecutionError;

/// What a rank says of itself before any work.
#[derive(Clone, Debug, Default)]
pub struct Introduction {
    /// Content of the model that it has located.
    pub model_fingerprint: String,
    /// `libtorch 0.1.0 f32`: must be the same everywhere.
    pub backend: String,
    /// Updates in its newest checkpoint of this run, and the host's part of that as JSON.
    pub checkpoint: Option<(u64, String)>,
    /// The group whose slice of the model it still holds, and its rank there.
    pub resident: Option<GroupPlace>,
}

/// A rank of a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupPlace {
    /// The group's name, the same on all ranks.
    pub id: String,
    /// From 0.
    pub rank: u32,
}

/// A rank's place among the others, for the backend that will connect it with them.
///
/// The socket on which rank 0 listens is closed with the seat, whatever keeps the model from being loaded; only
/// `hand_over` makes it the backend's.
#[derive(Debug)]
pub struct Seat {
    /// Without its listener.
    group: Group,
    listener: Option<OwnedFd>,
}

impl Seat {
    /// `listener`, on rank 0, listens at the group's rendezvous; none where nothing is to be loaded.
    pub fn new(group: Group, listener: Option<OwnedFd>) -> Self {
        Self { group: Group { listener: None, ..group }, listener }
    }

    /// This rank, from 0.
    pub const fn rank(&self) -> u32 {
        self.group.rank
    }

    /// Ranks in all.
    pub const fn world(&self) -> u32 {
        self.group.world
    }

    /// As the backend is told, which owns the listener from here on: for the call that loads, and right before it.
    pub(crate) fn hand_over(self) -> Group {
        Group { listener: self.listener.map(OwnedFd::into_raw_fd), ..self.group }
    }
}

/// What a rank is told when all have come.
#[derive(Debug)]
pub struct Met {
    /// Its place.
    pub seat: Seat,
    /// The group's name.
    pub id: String,
    /// Every rank still holds its slice of the model.
    pub resident: bool,
    /// Rank 0's checkpoint, from which all go on.
    pub checkpoint: Option<(u64, String)>,
}

/// Meets the other ranks. Blocks: not for async code.
pub trait Meet: Sync {
    /// Waits until all have come.
    ///
    /// # Errors
    /// When they would not compute the same, some do not come, or the lease is taken back.
    fn meet(&self, introduction: &Introduction) -> Result<Met, ExecutionError>;
}

/// The other workers of a shard, not met yet.
#[derive(Clone, Copy)]
pub struct Gang<'a> {
    /// How the work is shared.
    pub kind: GroupKind,
    /// Ranks in all, this one too.
    pub world: u32,
    /// Where they meet.
    pub meet: &'a dyn Meet,
}

/// A slice of a generator. Ranks must not halve a batch each on its own, so running out of memory is a failure of the
/// shard.
pub(crate) struct Slice(pub(crate) Box<dyn Generator>);

fn for_all(failure: Failure) -> Failure {
    match failure.code {
        Code::OutOfMemory => Failure::internal(format!(
            "{}; a rank of a group cannot take a smaller batch alone: use more shards",
            failure.message
        )),
        _ => failure,
    }
}

impl Generator for Slice {
    fn info(&self) -> ModelInfo {
        self.0.info()
    }

    fn encode(&mut self, sources: RaggedTokens<'_>, control: &dyn Control) -> Result<EncodingId, Failure> {
        self.0.encode(sources, control).map_err(for_all)
    }

    fn generate(
        &mut self,
        encoding: EncodingId,
        decodings: &[Decoding],
        seed: u64,
        row_keys: &[u64],
        control: &dyn Control,
    ) -> Result<Generated, Failure> {
        self.0.generate(encoding, decodings, seed, row_keys, control).map_err(for_all)
    }

    fn log_likelihood(
        &mut self,
        encoding: EncodingId,
        targets: RaggedTokens<'_>,
        rows: &[u32],
        control: &dyn Control,
    ) -> Result<Vec<f32>, Failure> {
        self.0.log_likelihood(encoding, targets, rows, control).map_err(for_all)
    }

    fn forget(&mut self, encoding: EncodingId) {
        self.0.forget(encoding);
    }
}
