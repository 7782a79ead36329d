//! `logs JOB`: what happened, in order.

use cappy_process::exit::Code;
use cappy_proto::{
    ShardId,
    v1::{GetLogsRequest, LogEntry},
};
use clap::Args;
use serde_json::json;

use super::job_view::time;
use crate::{
    arguments::{Format, Global},
    cluster::{Cluster, Need},
    failure::Outcome,
    printer::{Printer, cell},
};

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub struct Logs {
    /// The job's id, or a unique prefix of it
    job: String,
    /// Only entries of stages whose name contains this
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Only entries of this shard: its id, or the beginning of it
    #[arg(long, value_name = "ID")]
    shard: Option<String>,
}

impl Logs {
    /// Prints the entries as they come.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let cluster = Cluster::connect(global, Need::Records, printer).await?;
        // A whole id is looked up there, the beginning of one here.
        let whole = |id: &&String| id.parse::<ShardId>().is_ok();
        let shard_id = self.shard.as_ref().filter(whole).cloned().unwrap_or_default();
        let mut pages = cluster
            .jobs()
            .get_logs(GetLogsRequest { job_id: self.job, stage: String::new(), shard_id })
            .await?
            .into_inner();
        let mut all = Vec::new();
        while let Some(page) = pages.message().await? {
            let wanted = |entry: &LogEntry| {
                self.stage.as_ref().is_none_or(|stage| entry.stage.contains(stage))
                    && self.shard.as_ref().is_none_or(|shard| entry.shard_id.starts_with(shard))
            };
            for entry in page.entries.into_iter().filter(wanted) {
                let value = json!({
                    "time": time(entry.time.as_ref()),
                    "level": entry.level,
                    "stage": entry.stage,
                    "shard": entry.shard_id,
                    "worker": entry.worker_id,
                    "message": entry.message,
                });
                match printer.format() {
                    Format::Table => printer.text(&format!(
                        "{}  {:<5}  {}{}{}",
                        cell(&value["time"]),
                        entry.level,
                        prefix(&entry.stage),
                        prefix(&entry.worker_id),
                        entry.message
                    ))?,
                    Format::Ndjson => printer.text(&value.to_string())?,
                    Format::Json => all.push(value),
                }
            }
        }
        if printer.format() == Format::Json {
            printer.list(&all, &[])?;
        }
        cluster.stop().await;
        Ok(Code::Done)
    }
}

fn prefix(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{text}: ") }
}
