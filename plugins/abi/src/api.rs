//! The contract as backends and the host see it: plain Rust traits. What crosses a library border is in
//! [`crate::border`], made from these by adapters, so neither side touches it.

use crate::failure::Failure;

/// What a backend is; asked before anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Descriptor {
    /// `candle`, `libtorch`, `echo`.
    pub name: String,
    /// Version of the plugin.
    pub version: String,
    /// Version of the engine inside it: `candle 0.11.1`.
    pub engine_version: String,
    /// Devices it sees now: `cpu`, `cuda:0`.
    pub devices: Vec<String>,
    /// Bytes of memory of each of these devices; 0, or fewer entries: the machine's, or not known.
    #[serde(default)]
    pub device_memory: Vec<u64>,
    /// Number formats it computes in: `f32`, `bf16`, `int8`.
    pub dtypes: Vec<String>,
    /// `architectures` / `model_type` values of `config.json` that it loads as scorers: `roberta`, `xlm-roberta`, `bert`.
    pub scorer_architectures: Vec<String>,
    /// Likewise for generators: `t5`.
    pub generator_architectures: Vec<String>,
    /// `training`, [`DATA_PARALLEL`], [`TENSOR_PARALLEL`], [`GPU_SCORING_ONLY`].
    pub features: Vec<String>,
}

impl Descriptor {
    /// Bytes of memory of a device's own, where it has some and the backend knows it.
    #[must_use]
    pub fn memory_of(&self, device: &str) -> Option<u64> {
        let index = self.devices.iter().position(|name| name == device)?;
        self.device_memory.get(index).copied().filter(|&bytes| bytes > 0)
    }
}

/// Where a model is and how it shall run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadRequest {
    /// Directory with `config.json` and `*.safetensors` (single file, or sharded with its index), already
    /// resolved, checked and converted by the host.
    pub model_dir: String,
    /// Content of `config.json`. With `ranking_label: {name, index, of}` the model has one label (the other fields
    /// say so): row `index` of the `of` rows that the stored head has, unless that has one row only.
    pub config_json: String,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// `auto`, `f32`, `bf16`, `int8`.
    pub dtype: String,
    /// JSON object: the fields of [`ModelOptions`], for a trainer those of [`TrainerOptions`]. Unknown keys are
    /// refused.
    pub options_json: String,
}

/// In [`Descriptor::features`]: trainers take [`TrainerOptions::group`] of the kind `data`.
pub const DATA_PARALLEL: &str = "data-parallel";
/// In [`Descriptor::features`]: generators take [`ModelOptions::group`] of the kind `tensor`.
pub const TENSOR_PARALLEL: &str = "tensor-parallel";

/// In [`Descriptor::features`]: on any device but the CPU it loads scorers and nothing else.
pub const GPU_SCORING_ONLY: &str = "gpu-scoring-only";

/// How the ranks of a group share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupKind {
    /// Each rank holds the whole model and computes its share of every micro-batch's rows.
    Data,
    /// Each rank holds a slice of every weight and computes its share of every row.
    Tensor,
}

/// Processes that run one model or one training run together, and this one's place among them.
///
/// Every rank is called with the same arguments in the same order (the same batches, seeds and rates) and gives the
/// same answers; what they exchange in between is the backend's own business. A call fails on all ranks when one of
/// them is gone.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What is shared.
    pub kind: GroupKind,
    /// This process, from 0.
    pub rank: u32,
    /// Processes.
    pub world: u32,
    /// `host:port` on which rank 0 listens for the others.
    pub rendezvous: String,
    /// On rank 0: the file descriptor of the socket that listens at `rendezvous`; the backend owns it from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<i32>,
    /// Address of this process's host by which the other ranks reach it: `127.0.0.1`, `10.0.0.7`.
    pub host: String,
    /// Seconds that a rank waits for the others, at the start and in each exchange, before it gives up.
    pub timeout_seconds: u64,
}

impl Group {
    /// What a backend without groups says of one.
    ///
    /// # Errors
    /// `Unsupported` naming the backend, when there is a group.
    pub fn refuse(group: Option<&Self>, backend: &str) -> Result<(), Failure> {
        match group {
            None => Ok(()),
            Some(group) => Err(Failure::unsupported(format!(
                "the {backend} backend runs on one device, not on {} together; use a backend with groups, such as libtorch",
                group.world
            ))),
        }
    }
}

/// Options of a scorer or generator, carried in [`LoadRequest::options_json`].
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelOptions {
    /// The ranks that hold the model together; only for a backend with the feature [`TENSOR_PARALLEL`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
}

/// Hyper-parameters of a trainer, carried in [`LoadRequest::options_json`].
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainerOptions {
    /// Dropout probability, used in every place where the reference implementation uses one.
    pub dropout: f64,
    /// AdamW.
    pub beta1: f64,
    /// AdamW.
    pub beta2: f64,
    /// AdamW.
    pub epsilon: f64,
    /// AdamW, decoupled.
    pub weight_decay: f64,
    /// Key of all randomness (dropout; weights that the checkpoint lacks).
    pub seed: u64,
    /// Micro-batches that each [`Trainer::update`] will take, as far as the caller knows: the last of them may start
    /// exchanging gradients while its backward pass goes on. 0: unknown.
    #[serde(skip_serializing_if = "is_zero")]
    pub micro_batches: u64,
    /// The ranks that train together; only for a backend with the feature [`DATA_PARALLEL`]. They start from the
    /// weights (and after [`Trainer::load_checkpoint`] on rank 0, from the whole state) of rank 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Default for TrainerOptions {
    fn default() -> Self {
        Self {
            dropout: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            seed: 11111,
            micro_batches: 0,
            group: None,
        }
    }
}

/// What a loaded model tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ModelInfo {
    /// `model_type` of the configuration: `roberta`, `t5`.
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes of weights in memory.
    pub weight_bytes: u64,
    /// Number format it computes in.
    pub dtype: String,
    /// Longest row in tokens, special tokens included; 0: no limit of the model's own.
    pub max_tokens: u32,
    /// Ids are below this.
    pub vocab_size: u32,
    /// Scores a row (`num_labels`); 0 for a generator.
    pub labels: u32,
}

/// Rows of token ids without padding: row `i` is `tokens[offsets[i]..offsets[i + 1]]`.
#[derive(Clone, Copy, Debug)]
pub struct RaggedTokens<'a> {
    /// All rows, one after the other.
    pub tokens: &'a [u32],
    /// `[rows + 1]`, starting at 0, not decreasing, ending at `tokens.len()`.
    pub offsets: &'a [u32],
    /// Segment of each token (BERT), or empty: all 0.
    pub type_ids: &'a [u8],
}

/// A tokens buffer that a caller fills row by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRows {
    /// See [`RaggedTokens::tokens`].
    pub tokens: Vec<u32>,
    /// See [`RaggedTokens::offsets`].
    pub offsets: Vec<u32>,
    /// See [`RaggedTokens::type_ids`].
    pub type_ids: Vec<u8>,
}

impl TokenRows {
    /// No rows.
    pub fn new() -> Self {
        Self { tokens: Vec::new(), offsets: vec![0], type_ids: Vec::new() }
    }

    /// Appends a row without segments.
    pub fn push(&mut self, row: &[u32]) {
        self.tokens.extend_from_slice(row);
        self.offsets.push(u32::try_from(self.tokens.len()).expect("a batch has fewer than 2^32 tokens"));
    }

    /// The rows as a backend takes them.
    pub fn view(&self) -> RaggedTokens<'_> {
        RaggedTokens { tokens: &self.tokens, offsets: &self.offsets, type_ids: &self.type_ids }
    }
}

impl<'a> RaggedTokens<'a> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Tokens of row `i`.
    pub fn row(&self, i: usize) -> &'a [u32] {
        &self.tokens[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }

    /// Checks the offsets, and every id against `vocab_size`.
    ///
    /// # Errors
    /// `InvalidArgument` that names the row.
    pub fn check(&self, vocab_size: u32) -> Result<(), Failure> {
        let bad = |text: String| Err(Failure::invalid_argument(text));
        if self.offsets.first() != Some(&0)
            || self.offsets.last().copied() != u32::try_from(self.tokens.len()).ok()
        {
            return bad("ragged batch: offsets must start at 0 and end at the number of tokens".into());
        }
        if !self.type_ids.is_empty() && self.type_ids.len() != self.tokens.len() {
            return bad("ragged batch: one type id a token, or none".into());
        }
        for i in 0..self.rows() {
            if self.offsets[i] >= self.offsets[i + 1] || self.offsets[i + 1] as usize > self.tokens.len() {
                return bad(format!(
                    "ragged batch: row {i} is empty, or its offsets decrease or pass the tokens' end"
                ));
            }
            if let Some(id) = self.row(i).iter().find(|&&id| id >= vocab_size) {
                return bad(format!(
                    "ragged batch: row {i} has token id {id}, the model's vocabulary ends at {vocab_size}"
                ));
            }
        }
        Ok(())
    }
}

/// Lets a long call be cancelled, and tells how far it is. Called from the backend's threads.
pub trait Control: Sync {
    /// True once the caller wants the call to end with `Cancelled`.
    fn cancelled(&self) -> bool;
    /// `done` of `total` units of this call (rows, steps).
    fn progress(&self, done: u64, total: u64);
}

/// Never cancels, ignores progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unattended;

impl Control for Unattended {
    fn cancelled(&self) -> bool {
        false
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

/// A library of models.
pub trait Backend: Send + Sync {
    /// What it is and can do. Never fails, loads nothing.
    fn describe(&self) -> Descriptor;
    /// Loads a sequence classifier.
    fn load_scorer(&self, request: &LoadRequest) -> Result<Box<dyn Scorer>, Failure>;
    /// Loads an encoder-decoder.
    fn load_generator(&self, request: &LoadRequest) -> Result<Box<dyn Generator>, Failure>;
    /// Loads a sequence classifier for fine-tuning, in f32.
    fn load_trainer(&self, request: &LoadRequest) -> Result<Box<dyn Trainer>, Failure>;
}

/// A sequence classifier. Used by one thread at a time.
pub trait Scorer: Send {
    /// What was loaded.
    fn info(&self) -> ModelInfo;
    /// Raw logits, `[rows, labels]` in row order. A row's scores do not depend on its batch (within f32 rounding).
    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure>;
}

/// How a decoding chooses tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// As transformers' `BeamSearchScorer`.
    Beam {
        /// Beams a row.
        num_beams: u32,
        /// Exponent of the length in a finished beam's score.
        length_penalty: f64,
        /// Stop as soon as `num_beams` candidates are finished.
        early_stopping: bool,
    },
    /// Temperature, then top-k, then top-p.
    Sample {
        /// 1: unchanged.
        temperature: f64,
        /// 0: all.
        top_k: u32,
        /// 1: all. The token that crosses `top_p` is kept.
        top_p: f64,
    },
}

/// When the end token becomes legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinLengthRule {
    /// Forbidden while the decoder length (start token counted) is `< min_length`.
    Pytorch,
    /// Forbidden while it is `<= min_length`.
    Flax,
}

/// One generation setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoding {
    /// Part of the randomness key; the host derives it from the decoding's name ([`crate::random::key_of`]).
    pub key: u64,
    /// How tokens are chosen.
    pub method: Method,
    /// Outputs a row.
    pub num_samples: u32,
    /// Counts the decoder start token.
    pub min_length: u32,
    /// Counts the decoder start token.
    pub max_length: u32,
    /// When the end token becomes legal.
    pub min_length_rule: MinLengthRule,
}

/// Sequences in the order (row, decoding, sample).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// All sequences: the start token left out, the end token kept where one was generated, no padding.
    pub tokens: Vec<u32>,
    /// `[rows * sum of num_samples + 1]`; a sequence may be empty.
    pub offsets: Vec<u32>,
    /// `[tokens]`: log-probability of each token under the model's own distribution (before temperature, top-k,
    /// top-p and the minimum length).
    pub log_probs: Vec<f32>,
}

/// Names the encoding of a batch of sources inside a [`Generator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EncodingId(pub u64);

/// An encoder-decoder. Used by one thread at a time.
///
/// One encoding serves all decodings of a batch and any likelihoods: `encode`, then `generate` and
/// `log_likelihood` any number of times, then `forget`.
pub trait Generator: Send {
    /// What was loaded.
    fn info(&self) -> ModelInfo;
    /// Runs the encoder and keeps its output and the decoder's cross-attention keys and values.
    fn encode(&mut self, sources: RaggedTokens<'_>, control: &dyn Control) -> Result<EncodingId, Failure>;
    /// All decodings of all rows of an encoding. `row_keys[i]` is row `i`'s randomness key, `seed` the job's.
    /// A row's output does not depend on its batch or on which other decodings are asked for.
    fn generate(
        &mut self,
        encoding: EncodingId,
        decodings: &[Decoding],
        seed: u64,
        row_keys: &[u64],
        control: &dyn Control,
    ) -> Result<Generated, Failure>;
    /// Log-probability of each target token, `[targets.tokens]`. `rows[i]` is the encoding's row that target `i`
    /// belongs to; decoder inputs are the targets shifted right behind the start token.
    fn log_likelihood(
        &mut self,
        encoding: EncodingId,
        targets: RaggedTokens<'_>,
        rows: &[u32],
        control: &dyn Control,
    ) -> Result<Vec<f32>, Failure>;
    /// Frees an encoding. Unknown ids are ignored.
    fn forget(&mut self, encoding: EncodingId);
}

/// A sequence classifier being fine-tuned. Used by one thread at a time.
///
/// Mean squared error on raw logits (one label), AdamW. The caller owns data order, batching and the schedule.
pub trait Trainer: Send {
    /// What was loaded.
    fn info(&self) -> ModelInfo;
    /// Forward and backward of a micro-batch with dropout; adds its mean gradient. Returns its mean loss.
    /// `step` keys the dropout masks, with the options' seed.
    fn accumulate(
        &mut self,
        batch: RaggedTokens<'_>,
        labels: &[f32],
        step: u64,
        control: &dyn Control,
    ) -> Result<f32, Failure>;
    /// One AdamW update with the mean of the accumulated gradients; returns that gradient's norm.
    /// `FailedPrecondition` when nothing was accumulated, `Internal` when a variable got no gradient.
    fn update(&mut self, learning_rate: f64) -> Result<f64, Failure>;
    /// Scores without dropout, as a [`Scorer`] of these weights would.
    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure>;
    /// Writes `model.safetensors` (transformers' tensor names, f32) into a directory.
    fn save_model(&mut self, dir: &str) -> Result<(), Failure>;
    /// Writes everything needed to go on: weights, optimizer moments, update count. Between updates only.
    fn save_checkpoint(&mut self, dir: &str) -> Result<(), Failure>;
    /// Goes on from `save_checkpoint`, bit for bit.
    fn load_checkpoint(&mut self, dir: &str) -> Result<(), Failure>;
}
