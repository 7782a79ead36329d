//! `submit KIND`: what every kind of job has in common.

use std::path::PathBuf;

use cappy_process::exit::Code;
use cappy_proto::v1::{JobSpec, SubmitJobRequest};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{job_view, results, submit_bigbench, watch};
use crate::{arguments::Global, cluster::Cluster, failure::Outcome, interrupt, printer::Printer};

/// Kinds of job.
#[derive(Debug, Subcommand)]
pub enum Submit {
    /// Boost a generator on BIG-bench tasks: generate, label, fine-tune, score, select, report
    Bigbench(submit_bigbench::Bigbench),
}

/// Flags of every kind.
#[derive(Debug, Args)]
pub struct Submission {
    /// Write the result files below this folder
    #[arg(long, value_name = "DIR", default_value = results::DEFAULT_DIRECTORY)]
    pub results: PathBuf,
    /// Do not wait: print the job's id and come back with `watch`
    #[arg(long)]
    pub detach: bool,
    /// Submitting again with the same key returns the same job
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
}

impl Submit {
    /// Submits, and waits unless detached.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        match self {
            Self::Bigbench(verb) => verb.run(global, printer).await,
        }
    }
}

impl Submission {
    /// Hands the job in and follows it.
    pub async fn hand_in(
        self,
        spec: JobSpec,
        cluster: Cluster,
        global: &Global,
        printer: &Printer,
    ) -> Outcome {
        let interrupted = interrupt::token();
        // The key makes a retry of this very call harmless.
        let idempotency_key =
            self.idempotency_key.unwrap_or_else(|| cappy_proto::JobId::generate().to_string());
        let request = SubmitJobRequest { spec: Some(spec), idempotency_key };
        let answer = cluster.jobs().submit_job(request).await?.into_inner();
        let job = answer.job.unwrap_or_default();
        if answer.existing {
            printer.note(format!("{}: submitted before with this key", job.id));
        }
        if self.detach {
            printer
                .value(&json!({ "job": job.id, "state": job_view::state_name(&job) }), || job.id.clone())?;
            if cluster.is_embedded() {
                printer.note(format!(
                    "the embedded cluster ends with this command: `cappy-client watch {}` runs the job",
                    job.id
                ));
            }
            cluster.stop().await;
            return Ok(Code::Done);
        }
        printer.note(format!("{}: {}", job.id, job.title));
        watch::follow(cluster, &job.id, self.results, global, printer, &interrupted).await
    }
}
