//! `WatchJob`: the job now, then at each change but not too often, and its end always.

use std::time::Duration;

use cappy_proto::{JobId, v1};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::{status::try_again, view};
use crate::{context::Context, store::JobRecord};

/// Without a hint the job is looked at this often: progress of a quiet worker, or another coordinator's commits.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Snapshots that wait for a slow watcher; it then simply sees fewer.
const QUEUE: usize = 1;

pub(super) fn watch(
    context: Context,
    job: JobId,
    first: JobRecord,
) -> impl Stream<Item = Result<v1::WatchJobResponse, Status>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut changes = context.changes.watch(&job);
        let mut record = first;
        // An estimate that improves may fall; a bar that goes back helps nobody.
        let mut reached = 0.0_f64;
        loop {
            let ended = record.row.state.is_terminal();
            let mut view = view::job(&context, &record);
            if let Some(progress) = view.progress.as_mut() {
                reached = reached.max(progress.fraction);
                progress.fraction = reached;
            }
            if sender.send(Ok(v1::WatchJobResponse { job: Some(view) })).await.is_err() || ended {
                return;
            }
            tokio::select! {
                () = sender.closed() => return,
                () = context.shutdown.cancelled() => {
                    let _ = sender.send(Err(try_again(Code::Unavailable, "the coordinator is ending"))).await;
                    return;
                }
                () = async {
                    tokio::time::sleep(context.config.watch_interval).await;
                    let _ = tokio::time::timeout(LOOK_INTERVAL, changes.changed()).await;
                } => {}
            }
            record = match context.store.job(&job).await {
                Ok(record) => record,
                Err(error) => {
                    let _ = sender.send(Err(error.into())).await;
                    return;
                }
            };
        }
    });
    ReceiverStream::new(receiver)
}
