//! One file a verb.

mod bigbench_outcome;
mod boost;
mod completions;
mod data;
mod data_promptsource;
mod demo_data;
mod fine_tuning;
mod generate;
mod job_control;
mod job_outcome;
mod job_view;
mod log_likelihood;
mod logs;
mod models;
mod registered_models;
mod report;
mod report_plot;
mod results;
mod rouge_l;
mod row_store;
mod score;
mod submit;
mod submit_adapt;
mod submit_bigbench;
mod submit_boost;
mod submit_generate;
mod submit_pretrain;
mod submit_promptsource;
mod submit_score;
mod watch;
mod workers;

use cappy_process::exit::Code;
use clap::Subcommand;

use crate::{arguments::Arguments, failure::Outcome, printer::Printer};

/// What the client can do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Submit a job and wait for its result
    #[command(subcommand)]
    Submit(submit::Submit),
    /// List jobs, newest first
    #[command(alias = "list")]
    Ls(job_control::List),
    /// Show a job: its state, stages and failures
    Status(job_control::OneJob),
    /// Follow a job until it ends, then print its result
    Watch(watch::Watch),
    /// End a job; what it finished stays reusable
    Cancel(job_control::OneJob),
    /// Lease no more of a job's work until it is resumed
    Pause(job_control::OneJob),
    /// Let a paused job go on
    Resume(job_control::OneJob),
    /// Write a job's result files
    Results(results::Results),
    /// Print what happened to a job: stages, shards, workers, failures
    Logs(logs::Logs),
    /// Delete a job that has ended
    Rm(job_control::OneJob),
    /// Score responses to an instruction
    Score(score::Score),
    /// Generate responses
    Generate(generate::Generate),
    /// Log-likelihood of responses under a generator
    LogLikelihood(log_likelihood::LogLikelihood),
    /// Choose the best of several responses with a scorer
    Boost(boost::Boost),
    /// List workers, or drain one
    Workers(workers::Workers),
    /// Models on this machine: list, download, convert, verify
    Models(models::Models),
    /// Make benchmark data (no cluster needed)
    #[command(subcommand)]
    Data(data::Data),
    /// ROUGE-L of responses against references (no cluster needed)
    #[command(name = "rouge-l")]
    RougeL(rouge_l::RougeL),
    /// Tables from result files (no cluster needed)
    #[command(subcommand)]
    Report(report::Report),
    /// Print a shell's completion script
    Completions(completions::Completions),
}

/// Runs the verb.
pub async fn run(arguments: Arguments, printer: &Printer) -> Outcome<Code> {
    let global = &arguments.global;
    match arguments.verb {
        Verb::Submit(verb) => verb.run(global, printer).await,
        Verb::Ls(verb) => verb.run(global, printer).await,
        Verb::Status(verb) => verb.status(global, printer).await,
        Verb::Watch(verb) => verb.run(global, printer).await,
        Verb::Cancel(verb) => verb.cancel(global, printer).await,
        Verb::Pause(verb) => verb.pause(global, printer).await,
        Verb::Resume(verb) => verb.resume(global, printer).await,
        Verb::Results(verb) => verb.run(global, printer).await,
        Verb::Logs(verb) => verb.run(global, printer).await,
        Verb::Rm(verb) => verb.delete(global, printer).await,
        Verb::Score(verb) => verb.run(global, printer).await,
        Verb::Generate(verb) => verb.run(global, printer).await,
        Verb::LogLikelihood(verb) => verb.run(global, printer).await,
        Verb::Boost(verb) => verb.run(global, printer).await,
        Verb::Workers(verb) => verb.run(global, printer).await,
        Verb::Models(verb) => verb.run(global, printer).await,
        Verb::Data(verb) => verb.run(printer),
        Verb::RougeL(verb) => verb.run(printer),
        Verb::Report(verb) => verb.run(printer),
        Verb::Completions(verb) => verb.run(printer),
    }
}
