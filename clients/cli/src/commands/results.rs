//! `results JOB`: the files that a job made; also what `submit` and `watch` do when a job ends.

use std::path::{Component, Path, PathBuf};

use cappy_process::exit::Code;
use cappy_proto::v1::{GetResultsRequest, ResultFile};
use clap::Args;
use serde_json::json;

use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    failure::{Failure, Outcome},
    printer::Printer,
    transfer,
};

/// Arguments of `results`.
#[derive(Debug, Args)]
pub struct Results {
    /// The job's id, or a unique prefix of it
    job: String,
    /// Write the files below this folder; without it they are only listed
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
}

impl Results {
    /// Lists or writes.
    pub async fn run(self, global: &Global, printer: &Printer) -> Outcome {
        let cluster = Cluster::connect(global, Need::Records, printer).await?;
        let files = files(&cluster, &self.job).await?;
        if let Some(directory) = &self.results {
            save(&cluster, &files, directory).await?;
        }
        let items: Vec<_> = files
            .iter()
            .map(|file| {
                let bytes: u64 = file.parts.iter().map(|part| part.size_bytes).sum();
                json!({ "path": file.path, "bytes": bytes })
            })
            .collect();
        printer.list(&items, &[("FILE", "path"), ("BYTES", "bytes")])?;
        cluster.stop().await;
        Ok(Code::Done)
    }
}

/// The result files of a job.
pub async fn files(cluster: &Cluster, job_id: &str) -> Outcome<Vec<ResultFile>> {
    let request = GetResultsRequest { job_id: job_id.to_owned() };
    let mut pages = cluster.jobs().get_results(request).await?.into_inner();
    let mut files = Vec::new();
    while let Some(page) = pages.message().await? {
        files.extend(page.files);
    }
    Ok(files)
}

/// Writes the files below a folder.
pub async fn save(cluster: &Cluster, files: &[ResultFile], directory: &Path) -> Outcome<()> {
    for file in files {
        transfer::download(cluster, &file.parts, &inside(directory, &file.path)?).await?;
    }
    Ok(())
}

/// A path from the wire must stay below the folder.
fn inside(directory: &Path, path: &str) -> Outcome<PathBuf> {
    let relative = Path::new(path);
    if path.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Failure::failed(format!(
            "the coordinator named a result file outside the folder: `{path}`"
        )));
    }
    Ok(directory.join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_files_stay_below_their_folder() {
        assert!(inside(Path::new("out"), "demo/tense.json").is_ok());
        for bad in ["", "/etc/passwd", "../x", "demo/../../x"] {
            assert!(inside(Path::new("out"), bad).is_err(), "{bad}");
        }
    }
}
