//! T5 encoder-decoders (v1.0, v1.1, FLAN): generation and log-likelihoods, on one rank or several.
//!
//! A request's way: [`load`] reads the shape and this rank's slices of the tensors (`weights.rs`; `shard.rs` says which
//! those are). `encode` sends ragged rows through the encoder (`model.rs`): all tokens at once through linear layers,
//! groups of rows of nearly equal lengths (`crate::ragged`) through attention. It keeps the keys and values that the
//! decoder's cross-attention needs (`cross.rs`), computed once, shared by all decodings and likelihoods. `generate`
//! (`generate.rs`) steps all beams and samples of all rows as one batch over a cache (`cache.rs`); a step's
//! logits become tokens in `choice.rs`; what a decoding makes of them is in `cappy_plugin_models::t5`, the same for
//! every backend. `log_likelihood`
//! (`likelihood.rs`) sends whole targets through the same layers. Positions enter through `positions.rs` only.
//!
//! Source: Raffel et al., arXiv 1910.10683; transformers' `modeling_t5.py`. The tests compare with stored outputs
//! of that implementation, and with the candle backend.

mod cache;
mod choice;
mod cross;
mod generate;
mod likelihood;
mod model;
mod positions;
mod shard;
#[cfg(test)]
mod tests;
mod weights;

use std::collections::HashMap;
use std::path::Path;

use cappy_plugin_abi::{
    Control, Decoding, EncodingId, Failure, Generated, Generator, LoadRequest, ModelInfo, RaggedTokens,
};
pub use cappy_plugin_models::t5::config::ARCHITECTURE;
use cappy_plugin_models::t5::config::Config;
use cappy_plugin_models::t5::search;
use cappy_plugin_models::weights::Checkpoint;
use tch::{Device, Kind};

use crate::cuda;
use crate::engine::Result;
use crate::group::Seat;
use crate::inference::InferenceMode;
use crate::ragged::blocks;
use cross::Encoding;
use model::{Model, Pass};
use positions::Positions;
use shard::Shard;
use weights::Weights;

/// Tokens that go through the encoder together; a longer row goes alone.
const CPU_TOKENS: usize = 2048;
/// Likewise on a GPU.
const GPU_TOKENS: usize = 16_384;
/// Bytes that keys and values of running sequences may take; what does not fit waits.
const CACHE_BYTES: usize = 1 << 30;
/// On a GPU whose memory is known: one part of so many.
const CACHE_PART: usize = 8;

/// Loads a T5 generator, or one rank's part of one.
///
/// # Errors
/// `BadModel` for a damaged or incomplete directory; `InvalidArgument` for a number of ranks that cannot share the
/// heads (before any is waited for), or ranks with different models; `PeerLost` for ranks that do not come.
pub fn load(
    request: &LoadRequest,
    device: Device,
    kind: Kind,
    seat: Option<Seat>,
) -> std::result::Result<Box<dyn Generator>, Failure> {
    Ok(Box::new(T5::open(request, device, kind, seat)?))
}

/// A loaded model with its encodings.
struct T5 {
    model: Model,
    encodings: HashMap<EncodingId, Encoding>,
    next_encoding: u64,
    encoder: Positions,
    decoder: Positions,
    cache_bytes: usize,
}

impl T5 {
    fn open(
        request: &LoadRequest,
        device: Device,
        kind: Kind,
        seat: Option<Seat>,
    ) -> std::result::Result<Self, Failure> {
        let config = Config::parse(&request.config_json)?;
        Shard::check(&config, seat.as_ref().map(Seat::group))?;
        let checkpoint = Checkpoint::open(Path::new(&request.model_dir))?;
        let shard = match seat {
            None => Shard::alone(),
            Some(seat) => Shard::of(seat.join(device)?),
        };
        shard.agree(&request.config_json, &checkpoint, kind)?;
        let _mode = InferenceMode::enter();
        let weights = Weights::load(&checkpoint, &config, &shard, device, kind)?;
        let heads = shard.heads(&config).len();
        let positions = |causal| Positions::new(&config, heads, causal, kind, device);
        Ok(Self {
            encodings: HashMap::new(),
            next_encoding: 0,
            encoder: positions(false)?,
            decoder: positions(true)?,
            cache_bytes: cache_bytes(device),
            model: Model { weights, shard, kind, device, config },
        })
    }

    fn cover(&mut self, encoder: usize, decoder: usize) -> Result<()> {
        self.encoder.cover(&self.model.weights.encoder.bias, encoder)?;
        self.decoder.cover(&self.model.weights.decoder.bias, decoder)
    }

    fn encoding(&self, id: EncodingId) -> std::result::Result<&Encoding, Failure> {
        self.encodings.get(&id).ok_or_else(|| {
            Failure::invalid_argument(format!("unknown encoding {}: it was never made or is forgotten", id.0))
        })
    }

    /// What the host hears of a computation; other ranks do not wait for one that failed alone.
    fn settled<T>(&mut self, result: Result<T>) -> std::result::Result<T, Failure> {
        result.map_err(Failure::from).inspect_err(|failure| self.model.shard.settle(failure))
    }

    fn encode_rows(&self, sources: RaggedTokens<'_>, control: &dyn Control) -> Result<Encoding> {
        let pass = Pass { model: &self.model, control };
        let mut order: Vec<usize> = (0..sources.rows()).collect();
        order.sort_by_key(|&row| sources.row(row).len());
        let lengths: Vec<usize> = order.iter().map(|&row| sources.row(row).len()).collect();
        let mut groups = Vec::new();
        let budget = if self.model.device == Device::Cpu { CPU_TOKENS } else { GPU_TOKENS };
        for block in blocks(&lengths, budget) {
            if control.cancelled() {
                return Err(Failure::cancelled("the call was cancelled").into());
            }
            let rows = &order[block.clone()];
            let tokens: Vec<u32> = rows.iter().flat_map(|&row| sources.row(row).to_vec()).collect();
            groups.extend(pass.encode(&tokens, &lengths[block.clone()], rows, &self.encoder)?);
            control.progress(block.end as u64, sources.rows() as u64);
        }
        Ok(Encoding::new(groups, sources.rows()))
    }
}

impl Generator for T5 {
    fn info(&self) -> ModelInfo {
        ModelInfo {
            architecture: ARCHITECTURE.into(),
            parameters: self.model.weights.parameters,
            weight_bytes: self.model.weights.bytes,
            dtype: if self.model.kind == Kind::Float { "f32".into() } else { "bf16".into() },
            max_tokens: 0,
            vocab_size: self.model.config.vocab_size as u32,
            labels: 0,
        }
    }

    fn encode(
        &mut self,
        sources: RaggedTokens<'_>,
        control: &dyn Control,
    ) -> std::result::Result<EncodingId, Failure> {
        sources.check(self.model.config.vocab_size as u32)?;
        self.cover(longest(sources), 0)?;
        let _mode = InferenceMode::enter();
        let encoding = self.encode_rows(sources, control);
        let encoding = self.settled(encoding)?;
        let id = EncodingId(self.next_encoding);
        self.next_encoding += 1;
        self.encodings.insert(id, encoding);
        Ok(id)
    }

    fn generate(
        &mut self,
        encoding: EncodingId,
        decodings: &[Decoding],
        seed: u64,
        row_keys: &[u64],
        control: &dyn Control,
    ) -> std::result::Result<Generated, Failure> {
        let rows = self.encoding(encoding)?.rows();
        search::check(decodings)?;
        search::check_keys(row_keys, rows)?;
        self.cover(0, decodings.iter().map(|d| d.max_length as usize).max().unwrap_or(0))?;
        let _mode = InferenceMode::enter();
        let batch = generate::Batch {
            pass: Pass { model: &self.model, control },
            encoding: self.encoding(encoding)?,
            positions: &self.decoder,
            decodings,
            cache_bytes: self.cache_bytes,
            seed,
            row_keys,
        };
        let generated = batch.run();
        self.settled(generated)
    }

    fn log_likelihood(
        &mut self,
        encoding: EncodingId,
        targets: RaggedTokens<'_>,
        rows: &[u32],
        control: &dyn Control,
    ) -> std::result::Result<Vec<f32>, Failure> {
        let encoded = self.encoding(encoding)?.rows();
        targets.check(self.model.config.vocab_size as u32)?;
        search::check_owners(rows, targets.rows(), encoded)?;
        self.cover(0, longest(targets))?;
        let _mode = InferenceMode::enter();
        let pass = Pass { model: &self.model, control };
        let likelihoods = likelihood::of(pass, self.encoding(encoding)?, &self.decoder, targets, rows);
        self.settled(likelihoods)
    }

    fn forget(&mut self, encoding: EncodingId) {
        self.encodings.remove(&encoding);
    }
}

fn cache_bytes(device: Device) -> usize {
    let Device::Cuda(index) = device else { return CACHE_BYTES };
    cuda::memory(index).map_or(CACHE_BYTES, |bytes| bytes as usize / CACHE_PART)
}

fn longest(batch: RaggedTokens<'_>) -> usize {
    (0..batch.rows()).map(|i| batch.row(i).len()).max().unwrap_or(0)
}
