//! Where a model's files are: found by name through the hub or the coordinator, or put together from artifacts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cappy_hub::{ErrorKind, Hub};
use cappy_proto::v1;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::{
    execution::{Attempt, ExecutionError},
    registered::{self, Registered},
    residency::Role,
    tokenization::ModelTokenizer,
    weights,
};

/// A model directory on this machine.
pub struct LocalModel {
    /// Holds `config.json`, `tokenizer.json` and safetensors.
    pub dir: PathBuf,
    /// Of its content.
    pub fingerprint: String,
    /// From `config.json`: `T5ForConditionalGeneration`, else the model type.
    pub architecture: String,
    /// Content of `config.json`.
    pub config_json: String,
    /// Bytes of the weights on disk.
    pub weight_bytes: u64,
    /// `model_type` of the configuration, which is also how backends say what they load.
    pub model_type: String,
    // Removed with the model's last user, where it was put together for one task.
    _assembled: Option<TempDir>,
}

impl LocalModel {
    /// Attention heads of a layer; 0: the configuration does not say.
    pub fn attention_heads(&self) -> u32 {
        let config: Value = serde_json::from_str(&self.config_json).unwrap_or_default();
        let heads = ["num_heads", "num_attention_heads"].iter().find_map(|name| config.get(name)?.as_u64());
        heads.and_then(|heads| u32::try_from(heads).ok()).unwrap_or(0)
    }

    /// Bytes of its weights in memory in a number format; 0: unknown.
    pub fn bytes_in(&self, dtype: &str) -> u64 {
        weights::parameters(&self.dir).unwrap_or(0) * weights::bytes_of(dtype)
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn tokenizer(&self) -> Result<ModelTokenizer, ExecutionError> {
        ModelTokenizer::open(&self.dir)
            .map_err(|error| ExecutionError::permanent("bad_model", error.to_string()))
    }

    fn new(
        dir: PathBuf,
        fingerprint: String,
        config_json: String,
        model_type: Option<&str>,
        assembled: Option<TempDir>,
    ) -> Result<Self, ExecutionError> {
        let config: Value = serde_json::from_str(&config_json).map_err(|error| {
            ExecutionError::permanent("bad_model", format!("config.json of the model is not JSON: {error}"))
        })?;
        let model_type = model_type.or_else(|| config.get("model_type")?.as_str()).ok_or_else(|| {
            ExecutionError::permanent("bad_model", "config.json of the model has no `model_type`")
        })?;
        let listed = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        let architecture = listed.unwrap_or(model_type).to_owned();
        let model_type = model_type.to_owned();
        let weight_bytes = weight_bytes(&dir);
        Ok(Self {
            dir,
            fingerprint,
            architecture,
            config_json,
            weight_bytes,
            model_type,
            _assembled: assembled,
        })
    }
}

fn weight_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "safetensors"))
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// Finds models.
pub struct Models {
    hub: Hub,
    registered: Option<Registered>,
}

impl Models {
    /// Names are resolved by `hub`.
    pub fn new(hub: Hub) -> Self {
        Self { hub, registered: None }
    }

    /// Ids of registered models are asked for at a coordinator, where there is one.
    #[must_use]
    pub fn with_registered(self, registered: Option<Registered>) -> Self {
        Self { registered, ..self }
    }

    /// A directory, hub id or short name, or the id of a registered model. Blocks: not for async code.
    ///
    /// # Errors
    /// The hub's or the coordinator's one line; permanent when it will be the same elsewhere.
    pub fn by_name(&self, name: &str, role: Role) -> Result<LocalModel, ExecutionError> {
        if name.starts_with(registered::PREFIX) {
            return match (&self.registered, role) {
                (Some(registered), Role::Scorer) => registered.locate(name),
                (Some(_), Role::Generator) => {
                    let message = format!("`{name}` is a scorer: it generates nothing");
                    Err(ExecutionError::permanent("unsupported", message))
                }
                (None, _) => {
                    let message =
                        format!("`{name}` is registered with a coordinator, and this worker has none");
                    Err(ExecutionError::permanent("not_found", message))
                }
            };
        }
        let role = match role {
            Role::Scorer => cappy_hub::Role::Scorer,
            Role::Generator => cappy_hub::Role::Generator,
        };
        let resolved = self.hub.resolve(name, role, &Logged).map_err(|error| {
            let message = error.to_string();
            match error.kind() {
                ErrorKind::NotFound => ExecutionError::permanent("not_found", message),
                ErrorKind::Invalid => ExecutionError::permanent("bad_model", message),
                ErrorKind::Denied => ExecutionError::permanent("permission_denied", message),
                // Counted, so that a hub out of reach for good ends the job.
                ErrorKind::Unavailable => ExecutionError::attempt("unavailable", message),
                ErrorKind::Machine => ExecutionError::attempt("disk", message),
            }
        })?;
        // Files of before 2020 have no `model_type`; the hub knows them by their class.
        let model_type = Some(resolved.architecture.model_type());
        LocalModel::new(resolved.dir, resolved.fingerprint, resolved.config_json, model_type, None)
    }

    /// What a task refers to.
    ///
    /// # Errors
    /// As [`Models::by_name`]; an attempt's failure when this worker's copy is not what the job was planned with.
    pub fn by_reference(
        &self,
        model: &v1::ModelRef,
        role: Role,
        attempt: &Attempt<'_>,
    ) -> Result<LocalModel, ExecutionError> {
        match &model.source {
            Some(v1::model_ref::Source::Name(name)) => {
                let located = self.by_name(name, role)?;
                if !model.fingerprint.is_empty() && located.fingerprint != model.fingerprint {
                    let short = |fingerprint: &str| fingerprint.chars().take(12).collect::<String>();
                    let message = format!(
                        "`{name}` on this worker has the content {}, the job was planned with {}: give every worker the same copy",
                        short(&located.fingerprint),
                        short(&model.fingerprint)
                    );
                    return Err(ExecutionError::attempt("model_differs", message));
                }
                Ok(located)
            }
            Some(v1::model_ref::Source::Files(files)) => {
                let place =
                    |artifact: &v1::Artifact| Ok(attempt.files(std::slice::from_ref(artifact))?.remove(0));
                assemble(files, &model.fingerprint, &place, attempt.scratch)
            }
            Some(v1::model_ref::Source::Endpoint(_)) => {
                let message = "a model behind an endpoint has no files";
                Err(ExecutionError::permanent("unsupported", message))
            }
            None => Err(ExecutionError::permanent("invalid_argument", "the task names no model")),
        }
    }
}

/// Fingerprint of a model that a task refers to, as far as the reference alone tells it.
pub fn known_fingerprint(model: &v1::ModelRef) -> Option<String> {
    match &model.source {
        _ if !model.fingerprint.is_empty() => Some(model.fingerprint.clone()),
        Some(v1::model_ref::Source::Files(files)) => Some(fingerprint_of(files)),
        _ => None,
    }
}

/// Artifact ids are hashes of their content, so names and ids say what the model is.
fn fingerprint_of(files: &v1::ModelFiles) -> String {
    let mut lines: Vec<String> = files
        .files
        .iter()
        .map(|file| format!("{} {}\n", file.artifact.as_ref().map_or("", |artifact| &artifact.id), file.name))
        .collect();
    lines.sort();
    hex::encode(Sha256::digest(lines.concat()))
}

/// A directory in `scratch` with the files, each found by `place`, under their names. Hard links where the file system
/// can: no byte is copied.
///
/// # Errors
/// When the files are not those of `fingerprint` (empty: any), are no model, or cannot be written.
pub(crate) fn assemble(
    files: &v1::ModelFiles,
    fingerprint: &str,
    place: &dyn Fn(&v1::Artifact) -> Result<PathBuf, ExecutionError>,
    scratch: &Path,
) -> Result<LocalModel, ExecutionError> {
    let written = |error| ExecutionError::disk("put a model together", &error);
    let found = fingerprint_of(files);
    if !fingerprint.is_empty() && fingerprint != found {
        let short = |fingerprint: &str| fingerprint.chars().take(12).collect::<String>();
        let message =
            format!("a model's files have the content {}, not {}", short(&found), short(fingerprint));
        return Err(ExecutionError::attempt("model_differs", message));
    }
    let dir = tempfile::Builder::new().prefix("model-").tempdir_in(scratch).map_err(written)?;
    for file in &files.files {
        if file.name.is_empty() || file.name.contains(['/', '\\', '\0']) || file.name.starts_with('.') {
            let message = format!("`{}` is not a file name", file.name);
            return Err(ExecutionError::permanent("invalid_argument", message));
        }
        let artifact = file.artifact.clone().unwrap_or_default();
        let source = place(&artifact)?;
        let target = dir.path().join(&file.name);
        fs::hard_link(&source, &target).or_else(|_| fs::copy(&source, &target).map(drop)).map_err(written)?;
    }
    let config_json = fs::read_to_string(dir.path().join("config.json")).map_err(|error| {
        ExecutionError::permanent("bad_model", format!("config.json of the model cannot be read: {error}"))
    })?;
    LocalModel::new(dir.path().to_owned(), found, config_json, None, Some(dir))
}

/// Downloads and conversions are told in the log.
struct Logged;

impl cappy_hub::Progress for Logged {
    fn started(&self, file: &str, have: u64, total: u64) {
        tracing::info!(file, have, total, "downloading");
    }
    fn advanced(&self, _file: &str, _done: u64, _total: u64) {}
    fn note(&self, text: &str) {
        tracing::info!("{text}");
    }
}
