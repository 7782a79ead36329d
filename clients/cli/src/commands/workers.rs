//! `workers` and `workers drain ID`.

use cappy_process::exit::Code;
use cappy_proto::v1::{DrainWorkerRequest, ListWorkersRequest, Worker, WorkerState};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::job_view::time;
use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    failure::Outcome,
    printer::Printer,
};

/// Arguments of `workers`.
#[derive(Debug, Args)]
pub struct Workers {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the workers (the default)
    Ls,
    /// Let a worker finish its shards, then end
    Drain {
        /// The worker's id
        id: String,
    },
}

impl Workers {
    /// Lists or drains.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let cluster = Cluster::connect(global, Need::Models, printer).await?;
        let workers = match self.action {
            Some(Action::Drain { id }) => {
                let answer =
                    cluster.workers().drain_worker(DrainWorkerRequest { worker_id: id }).await?.into_inner();
                answer.worker.into_iter().collect()
            }
            None | Some(Action::Ls) => {
                cluster.workers().list_workers(ListWorkersRequest {}).await?.into_inner().workers
            }
        };
        let items: Vec<Value> = workers.iter().map(view).collect();
        let columns = [
            ("WORKER", "id"),
            ("NAME", "name"),
            ("STATE", "state"),
            ("DEVICE", "device"),
            ("BUSY", "busy"),
            ("BACKENDS", "backends"),
        ];
        printer.list(&items, &columns)?;
        cluster.stop().await;
        Ok(Code::Done)
    }
}

fn view(worker: &Worker) -> Value {
    let state = WorkerState::try_from(worker.state).unwrap_or_default().as_str_name();
    let backends: Vec<String> =
        worker.backends.iter().map(|backend| format!("{} {}", backend.name, backend.version)).collect();
    json!({
        "id": worker.id,
        "name": worker.name,
        "state": state.trim_start_matches("WORKER_STATE_").to_lowercase(),
        "device": worker.device,
        "busy": format!("{}/{}", worker.busy_slots, worker.slots),
        "backends": backends.join(", "),
        "version": worker.version,
        "connected": time(worker.connect_time.as_ref()),
        "heartbeat": time(worker.heartbeat_time.as_ref()),
        "resident_models": worker.resident_models,
    })
}
