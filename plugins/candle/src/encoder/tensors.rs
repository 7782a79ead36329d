//! What the plain paths are made of: a model's tensors by transformers' names, in candle's operations.
//!
//! Only operations with a backward pass are used (candle's fused layer norm and softmax drop gradients silently).

use std::collections::{BTreeMap, HashMap};

use candle_core::{D, Device, Result, Tensor};
use cappy_plugin_abi::{Control, Failure, RaggedTokens};

use super::slots::Slots;
use crate::weights::Checkpoint;

/// Tokens that go through the model together: rows of equal length, so without padding.
const BATCH_TOKENS: usize = 8192;

/// A model's tensors.
pub(super) struct Tensors {
    named: HashMap<String, Tensor>,
    pub device: Device,
}

fn engine(error: candle_core::Error) -> Failure {
    let text = error.to_string();
    if text.to_lowercase().contains("out of memory") {
        return Failure::out_of_memory("the device's memory did not suffice; use a smaller batch");
    }
    Failure::internal(format!("candle: {}", text.lines().next().unwrap_or_default()))
}

impl Tensors {
    /// Loads all slots onto a device, as f32.
    pub fn load(
        slots: &Slots,
        checkpoint: &Checkpoint,
        device: Device,
    ) -> std::result::Result<Self, Failure> {
        let mut named = HashMap::new();
        for slot in slots.list() {
            let values = slots.read(checkpoint, &slot.range)?;
            let tensor = Tensor::from_vec(values, slot.shape.as_slice(), &device).map_err(engine)?;
            named.insert(slot.name.clone(), tensor);
        }
        Ok(Self { named, device })
    }

    pub fn new(named: HashMap<String, Tensor>, device: Device) -> Self {
        Self { named, device }
    }

    pub fn at(&self, name: &str) -> Result<&Tensor> {
        self.named.get(name).ok_or_else(|| candle_core::Error::Msg(format!("no tensor `{name}`")))
    }

    /// Rows `index` of an embedding, as `shape`.
    pub fn look_up(&self, name: &str, index: Vec<u32>, shape: (usize, usize, usize)) -> Result<Tensor> {
        let index = Tensor::from_vec(index, shape.0 * shape.1, &self.device)?;
        self.at(name)?.index_select(&index, 0)?.reshape(shape)
    }

    /// `x`: `(.., in)`.
    pub fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let weight = self.at(&format!("{name}.weight"))?;
        let (mut shape, width) = (x.dims().to_vec(), weight.dim(0)?);
        let mut flat = x.reshape(((), weight.dim(1)?))?.matmul(&weight.t()?)?;
        if let Some(bias) = self.named.get(&format!("{name}.bias")) {
            flat = flat.broadcast_add(bias)?;
        }
        *shape.last_mut().expect("x has a last dimension") = width;
        flat.reshape(shape)
    }

    pub fn layer_norm(&self, x: &Tensor, name: &str, eps: f32) -> Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x
            .broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?
            .broadcast_mul(self.at(&format!("{name}.weight"))?)?;
        match self.named.get(&format!("{name}.bias")) {
            Some(bias) => x.broadcast_add(bias),
            None => Ok(x),
        }
    }

    /// Raw logits, `(rows, labels)`, from those of rows of equal length: `forward(rows)`.
    pub fn score_by_length(
        batch: RaggedTokens<'_>,
        labels: usize,
        control: &dyn Control,
        forward: impl Fn(&[usize]) -> Result<Tensor>,
    ) -> std::result::Result<Vec<f32>, Failure> {
        let mut logits = vec![0.0; batch.rows() * labels];
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        (0..batch.rows()).for_each(|row| by_length.entry(batch.row(row).len()).or_default().push(row));
        let mut done = 0;
        for (length, rows) in by_length {
            for rows in rows.chunks((BATCH_TOKENS / length).max(1)) {
                if control.cancelled() {
                    return Err(Failure::cancelled("scoring was cancelled"));
                }
                let scores = forward(rows).and_then(|t| t.flatten_all()?.to_vec1::<f32>()).map_err(engine)?;
                for (&row, scores) in rows.iter().zip(scores.chunks_exact(labels)) {
                    logits[row * labels..][..labels].copy_from_slice(scores);
                }
                done += rows.len() as u64;
                control.progress(done, batch.rows() as u64);
            }
        }
        Ok(logits)
    }
}

/// `(rows, length, heads * d)` as `(rows, heads, length, d)`.
pub(super) fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, length, width) = x.dims3()?;
    x.reshape((rows, length, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// `(rows, heads, length, d)` as `(rows, length, heads * d)`.
pub(super) fn join_heads(x: &Tensor) -> Result<Tensor> {
    let (rows, heads, length, d) = x.dims4()?;
    x.transpose(1, 2)?.contiguous()?.reshape((rows, length, heads * d))
}

/// Over the last dimension.
pub(super) fn softmax(scores: &Tensor) -> Result<Tensor> {
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}
