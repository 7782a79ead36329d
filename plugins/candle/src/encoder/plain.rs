//! The classifier in candle's tensor operations: what the fast path and the trainer are tested against, and what
//! runs on CUDA.
//!
//! Only operations with a backward pass are used (candle's fused layer norm and softmax drop gradients silently).
//! Source: transformers' `modeling_roberta.py` and `modeling_bert.py`.

use std::collections::{BTreeMap, HashMap};

use candle_core::{D, Device, Result, Tensor};
use cappy_plugin_abi::{Control, Failure, RaggedTokens};

use super::config::{EncoderConfig, Family};
use super::layout::Layout;
use crate::weights::Checkpoint;

/// Tokens that go through the model together: rows of equal length, so without padding.
const BATCH_TOKENS: usize = 8192;

/// A loaded classifier.
pub struct PlainEncoder {
    config: EncoderConfig,
    device: Device,
    tensors: HashMap<String, Tensor>,
}

fn engine(error: candle_core::Error) -> Failure {
    let text = error.to_string();
    if text.to_lowercase().contains("out of memory") {
        return Failure::out_of_memory("the device's memory did not suffice; use a smaller batch");
    }
    Failure::internal(format!("candle: {}", text.lines().next().unwrap_or_default()))
}

impl PlainEncoder {
    /// Loads the weights onto a device, as f32.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or of another shape.
    pub fn load(
        config: EncoderConfig,
        checkpoint: &Checkpoint,
        device: Device,
    ) -> std::result::Result<Self, Failure> {
        let layout = Layout::new(&config);
        let mut tensors = HashMap::new();
        for slot in &layout.slots {
            let values = layout.read(checkpoint, &slot.range)?;
            let tensor = Tensor::from_vec(values, slot.shape.as_slice(), &device).map_err(engine)?;
            tensors.insert(slot.name.clone(), tensor);
        }
        Ok(Self { config, device, tensors })
    }

    /// A classifier over tensors of the caller, by transformers' names: variables to differentiate by.
    pub fn from_tensors(config: EncoderConfig, tensors: HashMap<String, Tensor>, device: Device) -> Self {
        Self { config, device, tensors }
    }

    /// What was loaded.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Raw logits, `(rows, labels)`. The batch must have been checked against the configuration.
    ///
    /// # Errors
    /// `Cancelled`, `OutOfMemory`, `Internal`.
    pub fn score(
        &self,
        batch: RaggedTokens<'_>,
        control: &dyn Control,
    ) -> std::result::Result<Vec<f32>, Failure> {
        let labels = self.config.labels;
        let mut logits = vec![0.0; batch.rows() * labels];
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        (0..batch.rows()).for_each(|row| by_length.entry(batch.row(row).len()).or_default().push(row));
        let mut done = 0;
        for (length, rows) in by_length {
            for rows in rows.chunks((BATCH_TOKENS / length).max(1)) {
                if control.cancelled() {
                    return Err(Failure::cancelled("scoring was cancelled"));
                }
                let scores = self
                    .forward(batch, rows)
                    .and_then(|t| t.flatten_all()?.to_vec1::<f32>())
                    .map_err(engine)?;
                for (&row, scores) in rows.iter().zip(scores.chunks_exact(labels)) {
                    logits[row * labels..][..labels].copy_from_slice(scores);
                }
                done += rows.len() as u64;
                control.progress(done, batch.rows() as u64);
            }
        }
        Ok(logits)
    }

    /// Raw logits `(rows.len(), labels)` of rows of one length, as a tensor with its graph.
    ///
    /// # Errors
    /// candle's.
    pub fn forward(&self, batch: RaggedTokens<'_>, rows: &[usize]) -> Result<Tensor> {
        let length = batch.row(rows[0]).len();
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        let mut types = Vec::new();
        for &row in rows {
            let tokens = batch.row(row);
            ids.extend_from_slice(tokens);
            positions.extend(self.config.positions(tokens).map(|p| p as u32));
            let start = batch.offsets[row] as usize;
            types.extend((start..start + length).map(|t| {
                let segment = batch.type_ids.get(t).copied().unwrap_or(0);
                if self.config.type_vocab_size > 1 { u32::from(segment) } else { 0 }
            }));
        }
        let base = if self.config.family == Family::Bert { "bert" } else { "roberta" };
        let shape = (rows.len(), length, self.config.hidden);
        let look_up = |part: &str, index: Vec<u32>| -> Result<Tensor> {
            let index = Tensor::from_vec(index, rows.len() * length, &self.device)?;
            self.at(&format!("{base}.embeddings.{part}_embeddings.weight"))?
                .index_select(&index, 0)?
                .reshape(shape)
        };
        let x = look_up("word", ids)?
            .add(&look_up("token_type", types)?)?
            .add(&look_up("position", positions)?)?;
        let mut x = self.layer_norm(&x, &format!("{base}.embeddings.LayerNorm"))?;
        for i in 0..self.config.layers {
            x = self.layer(&x, &format!("{base}.encoder.layer.{i}"))?;
        }
        let first = x.narrow(1, 0, 1)?.squeeze(1)?;
        let (dense, out) = match self.config.family {
            Family::Bert => ("bert.pooler.dense", "classifier"),
            Family::Roberta | Family::XlmRoberta => ("classifier.dense", "classifier.out_proj"),
        };
        self.linear(&self.linear(&first, dense)?.tanh()?, out)
    }

    fn at(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| candle_core::Error::Msg(format!("no tensor `{name}`")))
    }

    /// `x`: `(.., in)`.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let weight = self.at(&format!("{name}.weight"))?;
        let (mut shape, width) = (x.dims().to_vec(), weight.dim(0)?);
        let flat = x.reshape(((), weight.dim(1)?))?.matmul(&weight.t()?)?;
        *shape.last_mut().expect("x has a last dimension") = width;
        flat.broadcast_add(self.at(&format!("{name}.bias"))?)?.reshape(shape)
    }

    fn layer_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(variance + f64::from(self.config.layer_norm_eps))?.sqrt()?)?
            .broadcast_mul(self.at(&format!("{name}.weight"))?)?
            .broadcast_add(self.at(&format!("{name}.bias"))?)
    }

    /// `x`: `(rows, length, hidden)`.
    fn layer(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (rows, length, hidden) = x.dims3()?;
        let (heads, d) = (self.config.heads, self.config.head_dim());
        let split = |part: &str| -> Result<Tensor> {
            self.linear(x, &format!("{name}.attention.self.{part}"))?
                .reshape((rows, length, heads, d))?
                .transpose(1, 2)?
                .contiguous()
        };
        // (rows, heads, length, length)
        let scores = (split("query")?.matmul(&split("key")?.t()?.contiguous()?)? * (d as f64).powf(-0.5))?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let context = weights
            .matmul(&split("value")?)?
            .transpose(1, 2)?
            .contiguous()?
            .reshape((rows, length, hidden))?;
        let attended = self.linear(&context, &format!("{name}.attention.output.dense"))?;
        let x = self.layer_norm(&(attended + x)?, &format!("{name}.attention.output.LayerNorm"))?;
        let inner = self.linear(&x, &format!("{name}.intermediate.dense"))?.gelu_erf()?;
        let down = self.linear(&inner, &format!("{name}.output.dense"))?;
        self.layer_norm(&(down + x)?, &format!("{name}.output.LayerNorm"))
    }
}
