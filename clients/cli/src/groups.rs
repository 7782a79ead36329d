//! Flags of work that several workers do together.

use clap::Args;

use crate::{
    cluster::Cluster,
    failure::{Failure, Outcome},
};

/// One copy of a generator on several workers.
#[derive(Clone, Copy, Debug, Args)]
pub struct ModelShards {
    /// Workers that hold one copy of the generator together, each with a slice of every weight; must divide its
    /// attention heads. They need a backend that splits models (libtorch) [default: as many as its memory needs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    model_shards: Option<u32>,
}

/// One training run on several workers.
#[derive(Clone, Copy, Debug, Args)]
pub struct DataParallel {
    /// Workers that train together, each on its share of every micro-batch; the result is that of one, sooner. They
    /// need a backend that trains in parallel (libtorch) [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    data_parallel: Option<u32>,
}

impl ModelShards {
    /// As the wire has it; 0: as many as memory needs.
    pub fn on(self, cluster: &Cluster) -> Outcome<u32> {
        checked("--model-shards", self.model_shards, cluster.is_embedded())
    }
}

impl DataParallel {
    /// As the wire has it; 0: one.
    pub fn on(self, cluster: &Cluster) -> Outcome<u32> {
        checked("--data-parallel", self.data_parallel, cluster.is_embedded())
    }
}

/// An embedded cluster is one worker: what needs more would wait for ever.
fn checked(flag: &str, workers: Option<u32>, embedded: bool) -> Outcome<u32> {
    match workers {
        Some(workers) if workers > 1 && embedded => Err(Failure::usage(format!(
            "{flag} {workers} needs {workers} workers, and the embedded cluster is one: start `cappy-coordinator serve` and \
             `cappy-worker serve --coordinator http://127.0.0.1:50051` {workers} times, and give --coordinator \
             http://127.0.0.1:50051"
        ))),
        workers => Ok(workers.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::checked;

    #[test]
    fn an_embedded_cluster_has_no_groups() {
        assert_eq!([checked("-x", None, true).ok(), checked("-x", Some(1), true).ok()], [Some(0), Some(1)]);
        assert_eq!(checked("-x", Some(4), false).ok(), Some(4));
        let told = checked("--model-shards", Some(2), true).unwrap_err().to_string();
        assert!(
            told.contains("--model-shards 2 needs 2 workers") && told.contains("cappy-worker serve"),
            "{told}"
        );
    }
}
