//! What the tests of this crate share: an engine on the echo backend, and model directories.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cappy_hub::{Hub, HubSettings};
use cappy_plugin_abi::{
    Backend, Control, Descriptor, Failure, Generator, LoadRequest, ModelInfo, RaggedTokens, Scorer, Trainer,
};
use cappy_plugin_host::Registry;
use cappy_proto::v1::{self, shard_task::Task};
use cappy_worker::{
    batching::Budget,
    checkpoint::CheckpointStore,
    compute::Budgets,
    endpoint::{EndpointSettings, Endpoints},
    engine::{Engine, RecentNames},
    execution::{Attempt, ExecutionError, Outcome, Progress, RowIndex, run},
    group::Gang,
    models::Models,
    residency::Residency,
    tokenization::ModelTokenizer,
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

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
        endpoints: Endpoints::new(EndpointSettings::default(), dir.join("answers")),
        names: RecentNames::default(),
        row_index: RowIndex::default(),
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

/// An engine with the artifacts that its tasks read.
pub struct Bench {
    pub dir: TempDir,
    pub store: Store,
    pub engine: Engine,
}

pub struct Done {
    pub outcome: Outcome,
    _scratch: TempDir,
}

impl Bench {
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path(), backend);
        Self { dir, store: Store::default(), engine }
    }

    pub fn put(&mut self, rows: &[Value]) -> Vec<v1::Artifact> {
        // In two files, so that rows are counted across them.
        let (head, tail) = rows.split_at(rows.len() / 2);
        [head, tail].map(|part| self.store.put(self.dir.path(), &jsonl(part))).to_vec()
    }

    pub fn model(&mut self, tokenizer: &str, bias: f32) -> Option<v1::ModelRef> {
        Some(self.store.model(self.dir.path(), tokenizer, 64, bias))
    }

    pub fn run(&self, task: Task) -> Result<Done, ExecutionError> {
        self.run_with(task, &Progress::default())
    }

    pub fn run_with(&self, task: Task, progress: &Progress) -> Result<Done, ExecutionError> {
        self.run_in(None, task, progress)
    }

    pub fn run_in(
        &self,
        gang: Option<Gang<'_>>,
        task: Task,
        progress: &Progress,
    ) -> Result<Done, ExecutionError> {
        let scratch = tempfile::tempdir_in(self.dir.path()).unwrap();
        let attempt = Attempt { inputs: &self.store.files, scratch: scratch.path(), progress, gang };
        let task = v1::ShardTask { task: Some(task), backend: String::new(), dtype: "auto".into() };
        Ok(Done { outcome: run(&self.engine, &task, &attempt)?, _scratch: scratch })
    }
}

impl Done {
    pub fn lines(&self, name: &str) -> Vec<Value> {
        let (_, path) = self.outcome.outputs.iter().find(|(output, _)| output == name).unwrap();
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub fn tokenizer(name: &str) -> ModelTokenizer {
    ModelTokenizer::open(&fixture(name)).unwrap()
}

pub fn echo_score(tokenizer: &ModelTokenizer, instruction: &str, response: &str, bias: f32) -> f32 {
    let [first, second] = [instruction, response].map(|text| tokenizer.side(text).unwrap());
    let ids = tokenizer.pair(&first, &second, 64).unwrap().ids;
    bias + ids.iter().sum::<u32>() as f32 / ids.len() as f32 / VOCAB as f32
}

pub fn jsonl(rows: &[serde_json::Value]) -> Vec<u8> {
    rows.iter().flat_map(|row| format!("{row}\n").into_bytes()).collect()
}

/// A model directory as the hub accepts it, with the weights of the echo backend; for [`Masked`].
pub fn model_dir(dir: &Path, model_type: &str, tokenizer: &str) -> String {
    let model = dir.join(format!("model-{model_type}"));
    fs::create_dir_all(&model).unwrap();
    cappy_plugin_echo::write_model(&model, VOCAB, 64, 0.5).unwrap();
    let config = serde_json::json!({
        "model_type": model_type, "vocab_size": VOCAB, "max_tokens": 64, "hidden_size": 8, "intermediate_size": 8,
        "num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 66, "num_labels": 1,
        "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 1,
    });
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    fs::copy(fixture(tokenizer).join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    model.to_str().unwrap().to_owned()
}

/// The echo backend under the names of real architectures, since the hub knows no others. It scores only while its
/// gate is open, and can be cancelled while it waits.
pub struct Masked {
    pub inner: Arc<dyn Backend>,
    pub open: Arc<AtomicBool>,
}

impl Masked {
    pub fn new(open: bool) -> (Arc<Self>, Arc<AtomicBool>) {
        let gate = Arc::new(AtomicBool::new(open));
        (Arc::new(Self { inner: echo(), open: Arc::clone(&gate) }), gate)
    }

    fn unmasked(&self, request: &LoadRequest) -> LoadRequest {
        let mut request = request.clone();
        for name in ["roberta", "t5"] {
            request.config_json = request.config_json.replace(&format!("\"{name}\""), "\"echo\"");
        }
        request
    }
}

impl Backend for Masked {
    fn describe(&self) -> Descriptor {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Descriptor {
            scorer_architectures: list(&["echo", "roberta"]),
            generator_architectures: list(&["echo", "t5"]),
            ..self.inner.describe()
        }
    }
    fn load_scorer(&self, request: &LoadRequest) -> Result<Box<dyn Scorer>, Failure> {
        Ok(Box::new(GatedScorer(self.inner.load_scorer(&self.unmasked(request))?, Arc::clone(&self.open))))
    }
    fn load_generator(&self, request: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
        self.inner.load_generator(&self.unmasked(request))
    }
    fn load_trainer(&self, request: &LoadRequest) -> Result<Box<dyn Trainer>, Failure> {
        self.inner.load_trainer(&self.unmasked(request))
    }
}

struct GatedScorer(Box<dyn Scorer>, Arc<AtomicBool>);

impl Scorer for GatedScorer {
    fn info(&self) -> ModelInfo {
        self.0.info()
    }
    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        while !self.1.load(Ordering::Relaxed) {
            if control.cancelled() {
                return Err(Failure::cancelled("cancelled at the gate"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.0.score(batch, control)
    }
}
