//! What the tests of this crate share: an engine on the echo backend, and model directories.

#![allow(dead_code, unreachable_pub)]

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use cappy_hub::{Hub, HubSettings};
use cappy_plugin_abi::Backend;
use cappy_plugin_host::Registry;
use cappy_proto::v1;
use cappy_worker::{
    batching::Budget, checkpoint::CheckpointStore, compute::Budgets, engine::Engine, models::Models,
    residency::Residency,
};
use sha2::{Digest as _, Sha256};

/// Ids of the fixtures' tokenizers are below this.
pub const VOCAB: u32 = 400;

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Finds nothing but what lies below `dir`, and never asks the network.
pub fn hub_settings(dir: &Path) -> HubSettings {
    HubSettings::from_variables(|name| match name {
        "HF_HOME" | "CAPPY_DATA_DIR" | "HOME" => Some(dir.join("hub").into()),
        "HF_HUB_OFFLINE" => Some("1".into()),
        _ => None,
    })
    .unwrap()
}

pub fn echo() -> Arc<dyn Backend> {
    cappy_plugin_host::builtin(cappy_plugin_echo::Echo).unwrap()
}

pub fn engine(dir: &Path, backend: Arc<dyn Backend>) -> Engine {
    let mut registry = Registry::default();
    registry.add_ready(backend);
    Engine {
        registry: Mutex::new(registry),
        device: "cpu".into(),
        dtype: "auto".into(),
        models: Models::new(Hub::new(hub_settings(dir))),
        residency: Residency::new(1 << 30),
        checkpoints: CheckpointStore::open(dir.join("checkpoints"), Duration::ZERO).unwrap(),
        // Small, so that a few rows make several batches.
        budgets: Budgets { score: Budget { tokens: 64, rows: 5 }, generate: Budget { tokens: 64, rows: 3 } },
        names: Mutex::default(),
    }
}

/// Files by content, as the artifact store names them.
#[derive(Default)]
pub struct Store {
    pub files: HashMap<String, PathBuf>,
}

impl Store {
    pub fn put(&mut self, dir: &Path, content: &[u8]) -> v1::Artifact {
        let id = hex::encode(Sha256::digest(content));
        let path = dir.join(&id);
        fs::write(&path, content).unwrap();
        self.files.insert(id.clone(), path);
        v1::Artifact { id, size_bytes: content.len() as u64 }
    }

    /// A model of the echo backend with one of the fixtures' tokenizers.
    pub fn model(&mut self, dir: &Path, tokenizer: &str, max_tokens: u32, bias: f32) -> v1::ModelRef {
        let model = tempfile::tempdir_in(dir).unwrap();
        cappy_plugin_echo::write_model(model.path(), VOCAB, max_tokens, bias).unwrap();
        fs::copy(fixture(tokenizer).join("tokenizer.json"), model.path().join("tokenizer.json")).unwrap();
        let mut files = Vec::new();
        for entry in fs::read_dir(model.path()).unwrap() {
            let entry = entry.unwrap();
            let artifact = self.put(dir, &fs::read(entry.path()).unwrap());
            let name = entry.file_name().into_string().unwrap();
            files.push(v1::NamedArtifact { name, artifact: Some(artifact) });
        }
        let source = Some(v1::model_ref::Source::Files(v1::ModelFiles { files }));
        v1::ModelRef { source, fingerprint: String::new() }
    }
}

pub fn jsonl(rows: &[serde_json::Value]) -> Vec<u8> {
    rows.iter().flat_map(|row| format!("{row}\n").into_bytes()).collect()
}
