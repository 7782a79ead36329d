//! Trivial outputs in the real formats.

use cappy_proto::v1::{self, artifact_service_client::ArtifactServiceClient, shard_task::Task};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tonic::{Status, transport::Channel};

/// The number before a word in a model's name; 0: none.
fn number_before(name: &str, word: &str) -> u32 {
    let Some((before, _)) = name.split_once(word) else { return 0 };
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

/// What a shard made.
#[derive(Clone, Debug, Default)]
pub struct Made {
    pub outputs: Vec<v1::NamedArtifact>,
    pub resolved: Vec<v1::ResolvedModel>,
}

pub async fn upload(channel: &Channel, content: &[u8]) -> Result<v1::Artifact, Status> {
    let artifact =
        v1::Artifact { id: hex::encode(Sha256::digest(content)), size_bytes: content.len() as u64 };
    let header = v1::UploadHeader { artifact: Some(artifact.clone()), offset: 0 };
    let mut parts = vec![v1::upload_request::Part::Header(header)];
    for piece in content.chunks(1000) {
        parts.push(v1::upload_request::Part::Chunk(bytes::Bytes::copy_from_slice(piece)));
    }
    let requests = parts.into_iter().map(|part| v1::UploadRequest { part: Some(part) });
    ArtifactServiceClient::new(channel.clone())
        .upload(tokio_stream::iter(requests.collect::<Vec<_>>()))
        .await?;
    Ok(artifact)
}

pub async fn download(channel: &Channel, parts: &[v1::Artifact]) -> Vec<u8> {
    let mut content = Vec::new();
    for part in parts {
        let request = v1::DownloadRequest { artifact_id: part.id.clone(), offset: 0 };
        let mut pieces =
            ArtifactServiceClient::new(channel.clone()).download(request).await.unwrap().into_inner();
        while let Some(piece) = pieces.message().await.unwrap() {
            content.extend_from_slice(&piece.chunk);
        }
    }
    content
}

async fn named(channel: &Channel, name: &str, content: &[u8]) -> v1::NamedArtifact {
    v1::NamedArtifact { name: name.into(), artifact: Some(upload(channel, content).await.unwrap()) }
}

/// Computes a lease's outputs and uploads them. Depends on the task alone.
pub async fn compute(channel: &Channel, lease: &v1::Lease) -> Made {
    match lease.task.clone().unwrap().task.unwrap() {
        Task::ResolveModels(task) => {
            let resolved = task.models.iter().map(|model| v1::ResolvedModel {
                name: model.name.clone(),
                fingerprint: format!("fp-{}-{}", model.name, model.role),
                architecture: "Any".into(),
                // `6heads-90gib`
                attention_heads: number_before(&model.name, "heads"),
                weight_bytes: u64::from(number_before(&model.name, "gib")) << 30,
                dtype: "f32".into(),
            });
            Made { resolved: resolved.collect(), ..Default::default() }
        }
        Task::Generate(task) => {
            let rows = rows(&download(channel, &task.input).await, task.row_start, task.row_end);
            let mut out = String::new();
            for (index, mut row) in rows {
                let mut samples = serde_json::Map::new();
                for decoding in task.settings.as_ref().unwrap().decodings.iter() {
                    let list: Vec<Value> = (0..decoding.num_samples)
                        .map(|sample| {
                            let mut value = json!({"response": format!("answer {index} {sample}")});
                            if task.log_likelihood {
                                value["log_likelihood_sum"] = json!(-f64::from(sample) - 1.0);
                                value["log_likelihood_mean"] = json!(-0.5);
                            }
                            value
                        })
                        .collect();
                    samples.insert(decoding.name.clone(), list.into());
                }
                row["flan_samples"] = samples.into();
                out += &format!("{row}\n");
            }
            Made { outputs: vec![named(channel, "rows.jsonl", out.as_bytes()).await], ..Default::default() }
        }
        Task::Train(task) => {
            let mut hash = Sha256::new();
            // A trained model is another one than its base.
            if let Some(v1::model_ref::Source::Files(files)) = task.scorer.unwrap().source {
                assert!(files.files.iter().any(|file| file.name == "model.safetensors"));
                hash.update(&files.files[0].artifact.as_ref().unwrap().id);
            }
            hash.update(download(channel, &task.examples).await);
            let mut record = json!({"updates": 2, "losses": [0.5, 0.25], "learning_rates": [0.0, 1e-5]});
            if !task.validation.is_empty() {
                let validation = download(channel, &task.validation).await;
                let rows = validation.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
                record["evaluations"] = json!([{"update": 2, "loss": 0.125, "rows": rows}]);
                record["best_update"] = json!(2);
                record["stopped_early"] = json!(false);
            }
            let outputs = vec![
                named(channel, "model.safetensors", &hash.finalize()).await,
                named(channel, "training.json", record.to_string().as_bytes()).await,
            ];
            Made { outputs, ..Default::default() }
        }
        Task::Score(task) => {
            if let Some(v1::model_ref::Source::Files(files)) = task.scorer.unwrap().source {
                let names: Vec<&str> = files.files.iter().map(|file| file.name.as_str()).collect();
                assert_eq!(names, ["model.safetensors"]);
            }
            let mut out = String::new();
            for (index, mut row) in rows(&download(channel, &task.input).await, task.row_start, task.row_end)
            {
                let candidates: usize = match row.get("responses").and_then(Value::as_array) {
                    Some(responses) => responses.len(),
                    None if row.get("flan_samples").is_none() => 1,
                    None => task
                        .decodings
                        .iter()
                        .map(|decoding| row["flan_samples"][decoding].as_array().map_or(0, Vec::len))
                        .sum(),
                };
                // The first candidate wins; of several rows, the one with `label` 1.
                let scores: Vec<f64> = (0..candidates).map(|at| 1.0 / (at + 1) as f64).collect();
                if !task.carry_rows {
                    out += &format!("{}\n", json!({"row": index, "scores": scores}));
                    continue;
                }
                if row.get("responses").is_some() || row.get("flan_samples").is_some() {
                    row["scores"] = json!(scores);
                } else {
                    row["score"] = json!(row["label"].as_f64().unwrap_or(0.5));
                }
                out += &format!("{row}\n");
            }
            let name = if task.carry_rows { "rows.jsonl" } else { "scores.jsonl" };
            Made { outputs: vec![named(channel, name, out.as_bytes()).await], ..Default::default() }
        }
    }
}

fn rows(content: &[u8], start: u64, end: u64) -> Vec<(u64, Value)> {
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .enumerate()
        .map(|(index, line)| (index as u64, line))
        .filter(|(index, _)| (start..end).contains(index))
        .map(|(index, line)| (index, serde_json::from_slice(line).unwrap()))
        .collect()
}
