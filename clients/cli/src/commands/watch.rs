//! `watch JOB`: follows a job until it ends, then prints what it found. `submit` ends in the same way.

use std::{path::PathBuf, time::Duration};

use cappy_process::exit;
use cappy_proto::v1::{Job, JobState, StageState, WatchJobRequest};
use clap::Args;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::{job_outcome, job_view, results};
use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    failure::{Failure, Outcome},
    interrupt,
    printer::Printer,
    progress::Progress,
};

/// Pauses before the coordinator that went away is asked again; after the last one the command gives up.
const RECONNECT_PAUSES: [u64; 8] = [1, 1, 2, 4, 8, 15, 30, 60];

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub struct Watch {
    /// The job's id, or a unique prefix of it
    job: String,
    /// Write the result files below this folder [default: as `submit` has it]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
}

impl Watch {
    /// Follows and prints.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let interrupted = interrupt::token();
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        follow(cluster, &self.job, self.results, global, printer, &interrupted).await
    }
}

/// Follows a job to its end, writes its results and prints the table; Ctrl-C only stops the following.
pub async fn follow(
    mut cluster: Cluster,
    job_id: &str,
    directory: Option<PathBuf>,
    global: &Global,
    printer: &Printer,
    interrupted: &CancellationToken,
) -> Outcome {
    let mut progress = Progress::new(printer);
    let mut pauses = RECONNECT_PAUSES.iter();
    let job = loop {
        let step = tokio::select! {
            step = until_over(&cluster, job_id, &mut progress, || pauses = RECONNECT_PAUSES.iter()) => step,
            () = interrupted.cancelled() => {
                progress.clear();
                detached(&cluster, job_id, printer);
                cluster.stop().await;
                return Ok(exit::Code::Interrupted);
            }
        };
        match step {
            Ok(job) => break job,
            Err(failure) if failure.code == exit::Code::Unreachable => {
                let Some(&pause) = pauses.next() else { return Err(failure) };
                tracing::warn!("the coordinator does not answer; asking again in {pause} s");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(pause)) => {}
                    () = interrupted.cancelled() => return Ok(exit::Code::Interrupted),
                }
                // An embedded cluster of another process may have ended with it: this one takes over.
                match Cluster::connect(global, Need::Models, printer).await {
                    Ok(again) => cluster = again,
                    Err(failure) if failure.code == exit::Code::Unreachable => {}
                    Err(failure) => return Err(failure),
                }
            }
            Err(failure) => return Err(failure),
        }
    };
    progress.clear();
    let outcome = finish(&cluster, &job, directory, printer).await;
    cluster.stop().await;
    outcome
}

/// The job once it is over.
async fn until_over(
    cluster: &Cluster,
    job_id: &str,
    progress: &mut Progress,
    mut answered: impl FnMut(),
) -> Outcome<Job> {
    let request = WatchJobRequest { job_id: job_id.to_owned() };
    let mut snapshots = cluster.jobs().watch_job(request).await.map_err(ended)?.into_inner();
    while let Some(message) = snapshots.message().await.map_err(ended)? {
        answered();
        let Some(job) = message.job else { continue };
        progress.show(&job);
        if job_view::is_over(&job) {
            return Ok(job);
        }
    }
    Err(Failure::unreachable("the coordinator ended the stream; is it shutting down?"))
}

/// A coordinator that ends says so, which is no end of the job: another one, or this process, goes on with it.
fn ended(status: Status) -> Failure {
    match status.code() {
        Code::Unavailable => Failure::unreachable(status.message()),
        _ => status.into(),
    }
}

fn detached(cluster: &Cluster, job_id: &str, printer: &Printer) {
    let until = if cluster.is_embedded() { "waits where it is" } else { "goes on" };
    printer.note(format!(
        "the job {until}: `cappy-client watch {job_id}` comes back to it, `cappy-client cancel {job_id}` ends it"
    ));
}

/// Writes and prints what a job that is over left.
async fn finish(cluster: &Cluster, job: &Job, directory: Option<PathBuf>, printer: &Printer) -> Outcome {
    let reused = job.stages.iter().filter(|stage| stage.state == StageState::Reused as i32).count();
    if reused > 0 {
        printer.note(format!("{reused} of {} stages reused from earlier jobs", job.stages.len()));
    }
    let code = match JobState::try_from(job.state) {
        Ok(JobState::Succeeded) => exit::Code::Done,
        Ok(JobState::Partial) => {
            printer.warning(format!("partial: {}", job.message));
            eprint!("{}", job_view::failures(job));
            exit::Code::Partial
        }
        Ok(JobState::Cancelled) => return Err(Failure::failed(format!("job {} was cancelled", job.id))),
        _ => {
            let mut message = format!("job {} failed: {}", job.id, job.message);
            for line in job_view::failures(job).lines() {
                message.push_str("\n  ");
                message.push_str(line);
            }
            return Err(Failure::failed(message));
        }
    };
    let directory = directory.unwrap_or_else(|| job_outcome::default_directory(job));
    let files = results::files(cluster, &job.id).await?;
    results::save(cluster, &files, &directory).await?;
    job_outcome::print(job, &files, &directory, printer)?;
    Ok(code)
}
