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

#[cfg(test)]
mod tests {
    use cappy_proto::v1;

    use crate::{
        planner::testing::{artifact, bigbench, graph_of, next_steps, record, rows_of, set},
        store::{StageState::Succeeded, Step},
    };

    #[test]
    fn fingerprints_change_with_what_decides_the_output_and_only_with_that() {
        let fingerprints = |spec: &v1::BigbenchSpec| -> Vec<Option<String>> {
            let graph = graph_of(&v1::job_spec::Kind::Bigbench(spec.clone()), &[]);
            let mut stages = rows_of(&graph);
            set(&mut stages, "resolve", Succeeded);
            next_steps(&graph, &record(&stages))
                .into_iter()
                .map(|step| match step {
                    Step::Open { fingerprint, .. } => fingerprint,
                    other => panic!("{other:?}"),
                })
                .collect()
        };
        let base = fingerprints(&bigbench(false));
        assert_eq!(base.len(), 4);
        assert!(base.iter().all(Option::is_some));
        assert_eq!(base.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        let mut other = bigbench(false);
        other.subsets[0].train = artifact("t2");
        other.fine_tuning = Some(v1::FineTuning { learning_rate: 1.0, ..Default::default() });
        let changed = fingerprints(&other);
        assert_ne!(changed[0], base[0]);
        assert_eq!(changed[1..], base[1..], "fine-tuning does not decide generations");
        other.dtype = "bf16".into();
        assert!(fingerprints(&other).iter().all(|fingerprint| !base.contains(fingerprint)));
    }
}
