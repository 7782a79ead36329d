//! T5 encoder-decoders (v1.0, v1.1, FLAN) on the CPU: generation and log-likelihoods.
//!
//! A request's way: [`load`] reads the shape ([`config`]) and the tensors ([`crate::weights`]) and packs them
//! (`weights.rs`) for the products of [`crate::kernels`]. `encode` sends blocks of ragged rows through the encoder
//! (`block.rs`) and keeps, packed likewise, the keys and values that the decoder's cross-attention needs: computed
//! once, shared by all decodings and likelihoods. `generate` (`generate.rs`) then steps all beams and samples of all
//! rows as one batch, storing keys and values by step (`history.rs`); each step's logits become tokens by [`sample`],
//! and what a decoding makes of them is in [`search`]. `log_likelihood` sends whole targets through the same layers.
//! Positions enter through [`bias`] only. What needs no engine is in `cappy_plugin_models::t5`.
//!
//! Source: Raffel et al., arXiv 1910.10683; transformers' `modeling_t5.py`. The tests compare with stored outputs
//! of that implementation, and with a plain forward pass that shares no arithmetic with the fast one.

mod block;
mod cached;
mod generate;
mod history;
#[cfg(test)]
mod plain;
#[cfg(test)]
mod tests;
mod weights;

use crate::kernels::rowwise;
use crate::weights::Checkpoint;
use bias::{Bias, Buckets};
use block::{Model, Run, Scratch, Source, Surroundings};
use cappy_plugin_abi::{
    Control, Decoding, EncodingId, Failure, Generated, Generator, LoadRequest, ModelInfo, RaggedTokens,
};
pub use cappy_plugin_models::t5::config::ARCHITECTURE;
use cappy_plugin_models::t5::config::Config;
use cappy_plugin_models::t5::{bias, config, sample, search};
use history::History;
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use weights::Weights;

/// Tokens of a block of whole sequences; a longer row is a block of its own.
const BLOCK_TOKENS: usize = 224;
/// Tokens whose logits are held at once.
const LOGIT_TOKENS: usize = 56;

/// Bytes that keys and values of running sequences may take; what does not fit waits.
const HISTORY_BYTES: usize = 1 << 30;

/// Loads a T5 generator.
///
/// # Errors
/// `Unsupported` for another device or number format, `BadModel` for a damaged or incomplete directory.
pub fn load(request: &LoadRequest) -> Result<Box<dyn Generator>, Failure> {
    Ok(Box::new(open(request)?))
}

fn open(request: &LoadRequest) -> Result<T5, Failure> {
    if request.device != "cpu" && !request.device.is_empty() {
        return Err(Failure::unsupported(format!("t5 runs on `cpu`, not on `{}`", request.device)));
    }
    if !matches!(request.dtype.as_str(), "auto" | "f32" | "") {
        return Err(Failure::unsupported(format!(
            "t5 computes in `f32`, not in `{}`; ask for auto or f32",
            request.dtype
        )));
    }
    let config = Config::parse(&request.config_json)?;
    let weights = Weights::load(&Checkpoint::open(Path::new(&request.model_dir))?, &config)?;
    Ok(T5::new(config, weights))
}

/// A loaded model with its encodings and buffers.
struct T5 {
    config: Config,
    weights: Weights,
    encodings: HashMap<EncodingId, Vec<Source>>,
    next_encoding: u64,
    encoder_bias: Bias,
    decoder_bias: Bias,
    history: History,
    history_bytes: usize,
    scratch: Mutex<Vec<Scratch>>,
}

impl T5 {
    fn new(config: Config, weights: Weights) -> Self {
        Self {
            config,
            weights,
            encodings: HashMap::new(),
            next_encoding: 0,
            encoder_bias: Bias::default(),
            decoder_bias: Bias::default(),
            history: History::default(),
            history_bytes: HISTORY_BYTES,
            scratch: Mutex::default(),
        }
    }

    fn model(&self) -> Model<'_> {
        Model { config: &self.config, weights: &self.weights }
    }

    fn cover(&mut self, encoder: usize, decoder: usize) {
        let (heads, max_distance) = (self.config.num_heads, self.config.max_distance);
        let of = |table, bidirectional| Buckets { table, heads, bidirectional, max_distance };
        self.encoder_bias.cover(encoder, of(&self.weights.encoder.bias, true));
        self.decoder_bias.cover(decoder, of(&self.weights.decoder.bias, false));
    }

    fn encoding(&self, id: EncodingId) -> Result<&[Source], Failure> {
        self.encodings.get(&id).map(Vec::as_slice).ok_or_else(|| {
            Failure::invalid_argument(format!("unknown encoding {}: it was never made or is forgotten", id.0))
        })
    }

    /// Runs `work` on blocks of consecutive rows, in parallel; the results come in row order.
    fn by_blocks<T: Send>(
        &self,
        batch: RaggedTokens<'_>,
        control: &dyn Control,
        work: impl Fn(std::ops::Range<usize>, &mut Scratch) -> Result<Vec<T>, Failure> + Sync,
    ) -> Result<Vec<T>, Failure> {
        let mut blocks = Vec::new();
        let mut first = 0;
        for row in 0..batch.rows() {
            let tokens = (batch.offsets[row + 1] - batch.offsets[first]) as usize;
            if tokens > BLOCK_TOKENS && row > first {
                blocks.push(first..row);
                first = row;
            }
        }
        if first < batch.rows() {
            blocks.push(first..batch.rows());
        }
        let alone = blocks.len() == 1;
        let done = AtomicU64::new(0);
        let results: Vec<Vec<T>> = blocks
            .into_par_iter()
            .map(|rows| {
                if control.cancelled() {
                    return Err(Failure::cancelled("the call was cancelled"));
                }
                let count = rows.len() as u64;
                let mut s = self.scratch.lock().expect("no holder panics").pop().unwrap_or_default();
                s.alone = alone;
                let result = work(rows, &mut s);
                self.scratch.lock().expect("no holder panics").push(s);
                control.progress(done.fetch_add(count, Ordering::Relaxed) + count, batch.rows() as u64);
                result
            })
            .collect::<Result<_, Failure>>()?;
        Ok(results.into_iter().flatten().collect())
    }
}

fn longest(batch: RaggedTokens<'_>) -> usize {
    (0..batch.rows()).map(|i| batch.row(i).len()).max().unwrap_or(0)
}

fn part<'a>(batch: RaggedTokens<'a>, rows: &std::ops::Range<usize>) -> (&'a [u32], Vec<usize>) {
    let tokens = &batch.tokens[batch.offsets[rows.start] as usize..batch.offsets[rows.end] as usize];
    (tokens, rows.clone().map(|i| batch.row(i).len()).collect())
}

impl Generator for T5 {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            architecture: ARCHITECTURE.into(),
            parameters: self.weights.parameters,
            weight_bytes: self.weights.bytes,
            dtype: "f32".into(),
            max_tokens: 0,
            vocab_size: self.config.vocab_size as u32,
            labels: 0,
        }
    }

    fn encode(&mut self, sources: RaggedTokens<'_>, control: &dyn Control) -> Result<EncodingId, Failure> {
        sources.check(self.config.vocab_size as u32)?;
        self.cover(longest(sources), 0);
        let encoded = self.by_blocks(sources, control, |rows, s| {
            let (tokens, lengths) = part(sources, &rows);
            self.model().embed(tokens.iter().copied(), s);
            Ok(self.model().encode(&lengths, &self.encoder_bias, s))
        })?;
        let id = EncodingId(self.next_encoding);
        self.next_encoding += 1;
        self.encodings.insert(id, encoded);
        Ok(id)
    }

    fn generate(
        &mut self,
        encoding: EncodingId,
        decodings: &[Decoding],
        seed: u64,
        row_keys: &[u64],
        control: &dyn Control,
    ) -> Result<Generated, Failure> {
        let rows = self.encoding(encoding)?.len();
        search::check(decodings)?;
        search::check_keys(row_keys, rows)?;
        self.cover(0, decodings.iter().map(|d| d.max_length as usize).max().unwrap_or(0));
        let mut history = std::mem::take(&mut self.history);
        let batch = generate::Batch {
            model: self.model(),
            sources: self.encoding(encoding)?,
            bias: &self.decoder_bias,
            decodings,
            history_bytes: self.history_bytes,
            seed,
            row_keys,
        };
        let generated = batch.run(&mut history, &self.scratch, control);
        self.history = history;
        generated
    }

    fn log_likelihood(
        &mut self,
        encoding: EncodingId,
        targets: RaggedTokens<'_>,
        rows: &[u32],
        control: &dyn Control,
    ) -> Result<Vec<f32>, Failure> {
        let encoded = self.encoding(encoding)?.len();
        targets.check(self.config.vocab_size as u32)?;
        search::check_owners(rows, targets.rows(), encoded)?;
        self.cover(0, longest(targets));
        let sources = self.encoding(encoding)?;
        let vocab = self.config.vocab_size;
        self.by_blocks(targets, control, |block, s| {
            let (tokens, lengths) = part(targets, &block);
            let start = block.start;
            let mut inputs = Vec::with_capacity(tokens.len());
            let mut runs = Vec::with_capacity(lengths.len());
            for i in block {
                let target = targets.row(i);
                runs.push(Run { first: inputs.len(), rows: target.len(), source: rows[i] as usize });
                inputs.push(self.config.start_token);
                inputs.extend_from_slice(&target[..target.len() - 1]);
            }
            self.model().embed(inputs.into_iter(), s);
            let around = Surroundings { runs: &runs, sources, bias: &self.decoder_bias };
            self.model().decode_whole(&lengths, around, s);
            let mut log_probs = Vec::with_capacity(tokens.len());
            for first in (0..tokens.len()).step_by(LOGIT_TOKENS) {
                let count = LOGIT_TOKENS.min(tokens.len() - first);
                let logits = self.model().logits(first, count, s);
                for (&token, logits) in tokens[first..first + count].iter().zip(logits.chunks_exact(vocab)) {
                    log_probs.push(logits[token as usize] - rowwise::log_sum_exp(logits));
                }
            }
            if let Some(at) = log_probs.iter().position(|log_prob| !log_prob.is_finite()) {
                let at = targets.offsets[start] as usize + at;
                let target = targets.offsets.partition_point(|&offset| offset as usize <= at) - 1;
                return Err(Failure::not_finite(format!("the likelihood of target {target} is not finite")));
            }
            Ok(log_probs)
        })
    }

    fn forget(&mut self, encoding: EncodingId) {
        self.encodings.remove(&encoding);
    }
}
