//! Scorers that jobs have trained, as the cluster knows them: listed beside the hub's models, written as directories.

use std::path::{Path, PathBuf};

use cappy_process::exit::Code;
use cappy_proto::v1::{GetModelRequest, ListModelsRequest, NamedArtifact};
use serde_json::{Value, json};

use super::job_view::time;
use crate::{
    arguments::Global,
    cluster::{Cluster, Need},
    failure::{Failure, Outcome},
    printer::Printer,
    transfer,
};

/// What the ids of registered models begin with.
const PREFIX: &str = "mdl_";

/// Whether a name is the id of a registered model.
pub fn is_id(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The registered models, newest first.
pub async fn list(global: &Global, printer: &Printer) -> Outcome<Vec<Value>> {
    let cluster = Cluster::connect(global, Need::Records, printer).await?;
    let models = cluster.workers().list_models(ListModelsRequest {}).await?.into_inner().registered;
    cluster.stop().await;
    let view = |model: &cappy_proto::v1::RegisteredModel| {
        json!({
            "model": model.id,
            "title": model.title,
            "job": model.job_id,
            "created": time(model.create_time.as_ref()),
            "bytes": model.size_bytes,
            "fingerprint": model.fingerprint,
        })
    };
    Ok(models.iter().map(view).collect())
}

/// Writes the model as a directory: `config.json`, `tokenizer.json`, safetensors and what else it came with.
pub async fn pull(id: &str, to: Option<PathBuf>, global: &Global, printer: &Printer) -> Outcome {
    let cluster = Cluster::connect(global, Need::Records, printer).await?;
    let answer = cluster.workers().get_model(GetModelRequest { model_id: id.to_owned() }).await?.into_inner();
    let (model, files) = (answer.model.unwrap_or_default(), answer.files.unwrap_or_default().files);
    let directory = to.unwrap_or_else(|| PathBuf::from(&model.id));
    for file in &files {
        download(&cluster, file, &directory).await?;
    }
    cluster.stop().await;
    let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
    let value = json!({
        "model": model.id,
        "title": model.title,
        "fingerprint": model.fingerprint,
        "directory": directory,
        "files": names,
    });
    printer.value(&value, || {
        format!(
            "{}  {}\n  directory     {}\n  files         {}\n",
            model.id,
            model.title,
            directory.display(),
            names.join(", ")
        )
    })?;
    Ok(Code::Done)
}

async fn download(cluster: &Cluster, file: &NamedArtifact, directory: &Path) -> Outcome<()> {
    let plain = !file.name.is_empty() && !file.name.starts_with('.') && !file.name.contains(['/', '\\']);
    let (true, Some(artifact)) = (plain, &file.artifact) else {
        return Err(Failure::failed(format!("the coordinator named a file that is none: `{}`", file.name)));
    };
    transfer::download(cluster, std::slice::from_ref(artifact), &directory.join(&file.name)).await
}
