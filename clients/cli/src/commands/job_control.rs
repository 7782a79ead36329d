//! `ls`, `status`, `cancel`, `pause`, `resume`, `rm`: a call each.

use cappy_process::exit::Code;
use cappy_proto::v1::{
    CancelJobRequest, DeleteJobRequest, GetJobRequest, Job, JobState, ListJobsRequest, PauseJobRequest,
    ResumeJobRequest,
};
use clap::Args;
use serde_json::json;

use super::job_view;
use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    failure::Outcome,
    printer::Printer,
};

/// Jobs that are fetched in one call.
const PAGE_SIZE: u32 = 100;

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub struct List {
    /// Show at most this many
    #[arg(short = 'n', long, default_value_t = 20)]
    limit: usize,
}

impl List {
    /// Prints the newest jobs.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let cluster = Cluster::connect(global, Need::Records, printer).await?;
        let mut jobs = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListJobsRequest { page_size: PAGE_SIZE, page_token };
            let page = cluster.jobs().list_jobs(request).await?.into_inner();
            jobs.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() || jobs.len() >= self.limit {
                break;
            }
        }
        jobs.truncate(self.limit);
        let items: Vec<_> = jobs
            .iter()
            .map(|job| {
                // The list may come without progress; then only the end is known.
                let known = job.progress.as_ref().map(|progress| progress.fraction);
                let succeeded = job.state() == JobState::Succeeded;
                let done = if succeeded { Some(1.0) } else { known };
                json!({
                    "id": job.id,
                    "state": job_view::state_name(job),
                    "done": done.map(|done| format!("{:.0}%", done * 100.0)),
                    "created": job_view::time(job.create_time.as_ref()),
                    "kind": job.kind,
                    "title": job.title,
                })
            })
            .collect();
        if items.is_empty() {
            printer.note("no jobs yet; `cappy-client submit bigbench --model demo` runs one");
        }
        let columns =
            [("JOB", "id"), ("STATE", "state"), ("DONE", "done"), ("CREATED", "created"), ("WHAT", "title")];
        printer.list(&items, &columns)?;
        cluster.stop().await;
        Ok(Code::Done)
    }
}

/// Arguments of the verbs that take a job.
#[derive(Debug, Args)]
pub struct OneJob {
    /// The job's id, or a unique prefix of it
    job: String,
}

impl OneJob {
    /// Prints the job.
    pub async fn status(self, global: &Global, printer: &Printer) -> Outcome {
        let cluster = Cluster::connect(global, Need::Records, printer).await?;
        let answer = cluster.jobs().get_job(GetJobRequest { job_id: self.job }).await?;
        show(answer.into_inner().job, cluster, printer).await
    }

    /// Ends the job.
    pub async fn cancel(self, global: &Global, printer: &Printer) -> Outcome {
        let cluster = Cluster::connect(global, Need::Records, printer).await?;
        let answer = cluster.jobs().cancel_job(CancelJobRequest { job_id: self.job }).await?;
        show(answer.into_inner().job, cluster, printer).await
    }

    /// Holds the job back.
    pub async fn pause(self, global: &Global, printer: &Printer) -> Outcome {
        let cluster = Cluster::connect(global, Need::Records, printer).await?;
        let answer = cluster.jobs().pause_job(PauseJobRequest { job_id: self.job }).await?;
        show(answer.into_inner().job, cluster, printer).await
    }

    /// Lets the job go on.
    pub async fn resume(self, global: &Global, printer: &Printer) -> Outcome {
        let cluster = Cluster::connect(global, Need::Records, printer).await?;
        let answer = cluster.jobs().resume_job(ResumeJobRequest { job_id: self.job }).await?;
        show(answer.into_inner().job, cluster, printer).await
    }

    /// Forgets the job.
    pub async fn delete(self, global: &Global, printer: &Printer) -> Outcome {
        let cluster = Cluster::connect(global, Need::Records, printer).await?;
        let answer = cluster.jobs().delete_job(DeleteJobRequest { job_id: self.job.clone() }).await?;
        printer.note(format!("deleted {}", self.job));
        for model in answer.into_inner().models {
            printer.note(format!("deleted {model}, which it had made"));
        }
        cluster.stop().await;
        Ok(Code::Done)
    }
}

async fn show(job: Option<Job>, cluster: Cluster, printer: &Printer) -> Outcome {
    let job = job.unwrap_or_default();
    printer.value(&job_view::json(&job), || job_view::text(&job))?;
    cluster.stop().await;
    Ok(Code::Done)
}
