//! What a stage computes, as one hash: equal fingerprints give equal artifacts, so a committed stage is never run again.

use cappy_proto::v1;
use prost::Message;
use sha2::{Digest as _, Sha256};

/// Changes whenever the meaning of a stage's parameters or outputs does.
const REVISION: &str = "cappy-stage-1";

/// Hash over named fields; each is written with its length, so fields cannot run into each other.
pub(super) struct Fingerprint(Sha256);

impl Fingerprint {
    pub(super) fn of(kind: &str) -> Self {
        Self(Sha256::new()).field("revision", REVISION.as_bytes()).field("kind", kind.as_bytes())
    }

    pub(super) fn field(mut self, name: &str, value: &[u8]) -> Self {
        for part in [name.as_bytes(), value] {
            self.0.update((part.len() as u64).to_be_bytes());
            self.0.update(part);
        }
        self
    }

    pub(super) fn text(self, name: &str, value: &str) -> Self {
        self.field(name, value.as_bytes())
    }

    /// Protobuf messages without maps encode to the same bytes each time.
    pub(super) fn message(self, name: &str, value: &impl Message) -> Self {
        self.field(name, &value.encode_to_vec())
    }

    pub(super) fn artifacts<'a>(
        self,
        name: &str,
        artifacts: impl IntoIterator<Item = &'a v1::Artifact>,
    ) -> Self {
        artifacts.into_iter().fold(self, |hash, artifact| hash.text(name, &artifact.id))
    }

    pub(super) fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}
