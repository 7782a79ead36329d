//! Asks a coordinator over gRPC, and waits for states.

use cappy_proto::v1::{
    GetJobRequest, Job, JobState, ListWorkersRequest, Worker, WorkerState,
    cluster_service_client::ClusterServiceClient, job_service_client::JobServiceClient,
};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use crate::wait_until;

/// A client for tests' own questions.
#[derive(Debug)]
pub struct Observer {
    runtime: Runtime,
    channel: Channel,
}

impl Observer {
    /// Connects when first asked, and again when the coordinator comes back.
    ///
    /// # Panics
    /// When the URL is none.
    pub fn new(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let channel = {
            let _inside = runtime.enter();
            Endpoint::from_shared(url.to_owned()).expect("a URL").connect_lazy()
        };
        Self { runtime, channel }
    }

    /// The job; `None` while the coordinator does not answer.
    pub fn job(&self, id: &str) -> Option<Job> {
        let mut client = JobServiceClient::new(self.channel.clone());
        let request = GetJobRequest { job_id: id.to_owned() };
        self.runtime.block_on(client.get_job(request)).ok()?.into_inner().job
    }

    /// The workers that serve; none while the coordinator does not answer.
    pub fn workers(&self) -> Vec<Worker> {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        let answer = self.runtime.block_on(client.list_workers(ListWorkersRequest {}));
        let workers = answer.map(|answer| answer.into_inner().workers).unwrap_or_default();
        workers.into_iter().filter(|worker| worker.state() == WorkerState::Ready).collect()
    }

    /// Waits until a job is as wanted.
    ///
    /// # Panics
    /// When it ends before, and when it never is.
    pub fn wait_job(&self, id: &str, what: &str, wanted: impl Fn(&Job) -> bool) -> Job {
        wait_until(what, || {
            let job = self.job(id)?;
            if wanted(&job) {
                return Some(job);
            }
            assert!(!is_over(&job), "the job ended before {what}: {job:#?}");
            None
        })
    }

    /// Waits until a job has ended.
    pub fn wait_end(&self, id: &str) -> Job {
        self.wait_job(id, "the job's end", is_over)
    }

    /// Waits until the workers are as wanted.
    pub fn wait_workers(&self, what: &str, wanted: impl Fn(&[Worker]) -> bool) -> Vec<Worker> {
        wait_until(what, || Some(self.workers()).filter(|workers| wanted(workers)))
    }
}

fn is_over(job: &Job) -> bool {
    matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled | JobState::Partial)
}
