//! `submit KIND`: what every kind of job has in common.

use std::path::PathBuf;

use cappy_process::exit::Code;
use cappy_proto::v1::{JobSpec, SubmitJobRequest, job_spec::Kind};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    job_view, submit_adapt, submit_bigbench, submit_boost, submit_generate, submit_pretrain,
    submit_promptsource, submit_score, watch,
};
use crate::{arguments::Global, cluster::Cluster, failure::Outcome, interrupt, printer::Printer};

/// Kinds of job.
#[derive(Debug, Subcommand)]
pub enum Submit {
    /// Boost a generator on BIG-bench tasks: generate, label, fine-tune, score, select, report
    Bigbench(submit_bigbench::Bigbench),
    /// Zero-shot accuracy of a scorer on prompted classification tasks
    Promptsource(submit_promptsource::Promptsource),
    /// Answer rows with a generator: a benchmark folder, or a file of your own
    Generate(submit_generate::Generate),
    /// Score a file of responses of any size
    Score(submit_score::Score),
    /// Fine-tune a scorer on your own rows; the result is a model that `score`, `boost` and `submit` accept
    Adapt(submit_adapt::Adapt),
    /// Choose the best candidate of every row of a file
    Boost(submit_boost::Boost),
    /// Train a scorer on a mixture of datasets, from a recipe
    Pretrain(submit_pretrain::Pretrain),
}

/// Flags of every kind.
#[derive(Debug, Args)]
pub struct Submission {
    /// Write the result files below this folder [default: bigbench_cappy_results, bigbench_flan_gens for generations
    /// of the benchmark, cappy_results/<JOB> for everything else]
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// Do not wait: print the job's id and come back with `watch`
    #[arg(long)]
    pub detach: bool,
    /// Submitting again with the same key returns the same job
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Of two jobs that wait for the same worker the one with the higher priority goes first; equals share
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-100..=100))]
    pub priority: i32,
}

impl Submit {
    /// Submits, and waits unless detached.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        match self {
            Self::Bigbench(verb) => verb.run(global, printer).await,
            Self::Promptsource(verb) => verb.run(global, printer).await,
            Self::Generate(verb) => verb.run(global, printer).await,
            Self::Score(verb) => verb.run(global, printer).await,
            Self::Adapt(verb) => verb.run(global, printer).await,
            Self::Boost(verb) => verb.run(global, printer).await,
            Self::Pretrain(verb) => verb.run(global, printer).await,
        }
    }
}

impl Submission {
    /// Hands the job in and follows it. `bad` rows of its inputs were left out: what is done is done in part.
    pub async fn hand_in(
        self,
        kind: Kind,
        bad: u64,
        cluster: Cluster,
        global: &Global,
        printer: &Printer,
    ) -> Outcome {
        match self.run(kind, cluster, global, printer).await? {
            Code::Done if bad > 0 => {
                let plural = if bad == 1 { "" } else { "s" };
                printer.warning(format!("{bad} bad row{plural} left out"));
                Ok(Code::Partial)
            }
            code => Ok(code),
        }
    }

    async fn run(self, kind: Kind, cluster: Cluster, global: &Global, printer: &Printer) -> Outcome {
        let interrupted = interrupt::token();
        let spec = JobSpec { kind: Some(kind), priority: self.priority };
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
