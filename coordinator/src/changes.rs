//! Tells watchers that a job has changed. Only a hint: a watcher reads the store, and also looks by itself from time to
//! time, so a hint lost to a restart or sent on another coordinator costs a moment, never the news.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use cappy_proto::JobId;
use tokio::sync::watch;

#[derive(Debug, Default)]
pub(crate) struct Changes {
    jobs: Mutex<HashMap<JobId, watch::Sender<u64>>>,
}

impl Changes {
    /// The job, or something that it waits for, is not what it was.
    pub(crate) fn notify(&self, job: &JobId) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = jobs.get(job) {
            sender.send_modify(|revision| *revision += 1);
            if sender.is_closed() {
                jobs.remove(job);
            }
        }
    }

    /// Everybody: workers came or went.
    pub(crate) fn notify_all(&self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.retain(|_, sender| !sender.is_closed());
        jobs.values().for_each(|sender| sender.send_modify(|revision| *revision += 1));
    }

    pub(crate) fn watch(&self, job: &JobId) -> watch::Receiver<u64> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.entry(job.clone()).or_insert_with(|| watch::channel(0).0).subscribe()
    }
}
