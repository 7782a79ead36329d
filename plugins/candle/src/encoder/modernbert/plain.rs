//! The classifier in candle's tensor operations: what the fast path is tested against, and what runs on CUDA.

use candle_core::{Device, Result, Tensor};
use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens};

use super::info;
use super::layout::Layout;
use crate::encoder::scorer::Classifier;
use crate::encoder::tensors::{Tensors, join_heads, softmax, split_heads};
use crate::weights::Checkpoint;
use cappy_plugin_models::encoder::modernbert::{Attention, ModernBertConfig, Pooling};

/// A loaded classifier.
pub struct Plain {
    config: ModernBertConfig,
    tensors: Tensors,
}

impl Plain {
    /// Loads the weights onto a device, as f32.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or of another shape.
    pub fn load(
        config: ModernBertConfig,
        checkpoint: &Checkpoint,
        device: Device,
    ) -> std::result::Result<Self, Failure> {
        let tensors = Tensors::load(&Layout::new(&config).slots, checkpoint, device)?;
        Ok(Self { config, tensors })
    }

    /// Raw logits `(rows.len(), labels)` of rows of one length.
    fn forward(&self, batch: RaggedTokens<'_>, rows: &[usize]) -> Result<Tensor> {
        let Self { config, tensors } = self;
        let length = batch.row(rows[0]).len();
        let ids = rows.iter().flat_map(|&row| batch.row(row)).copied().collect();
        let shape = (rows.len(), length, config.hidden);
        let x = tensors.look_up("model.embeddings.tok_embeddings.weight", ids, shape)?;
        let mut x = self.norm(&x, "model.embeddings.norm")?;
        for (i, attention) in config.attention.iter().enumerate() {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let input = if i == 0 { x.clone() } else { self.norm(&x, &name("attn_norm"))? };
            let context = self.attend(&tensors.linear(&input, &name("attn.Wqkv"))?, attention)?;
            x = (x + tensors.linear(&context, &name("attn.Wo"))?)?;
            let up = tensors.linear(&self.norm(&x, &name("mlp_norm"))?, &name("mlp.Wi"))?;
            let (inner, gate) = halves(&up)?;
            let inner = (inner.gelu_erf()? * gate)?;
            x = (x + tensors.linear(&inner, &name("mlp.Wo"))?)?;
        }
        let x = self.norm(&x, "model.final_norm")?;
        let pooled = match config.pooling {
            Pooling::First => x.narrow(1, 0, 1)?.squeeze(1)?,
            Pooling::Mean => x.mean(1)?,
        };
        let dense = tensors.linear(&pooled, "head.dense")?.gelu_erf()?;
        tensors.linear(&self.norm(&dense, "head.norm")?, "classifier")
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        self.tensors.layer_norm(x, name, self.config.norm_eps)
    }

    /// `qkv`: `(rows, length, 3 * hidden)`.
    fn attend(&self, qkv: &Tensor, attention: &Attention) -> Result<Tensor> {
        let (h, heads, d) = (self.config.hidden, self.config.heads, self.config.head_dim());
        let length = qkv.dim(1)?;
        let part = |which: usize| split_heads(&qkv.narrow(2, which * h, h)?.contiguous()?, heads);
        let (query, key) = (self.turn(&part(0)?, attention.theta)?, self.turn(&part(1)?, attention.theta)?);
        // (rows, heads, length, length)
        let mut scores = (query.matmul(&key.t()?.contiguous()?)? * (d as f64).powf(-0.5))?;
        if let Some(window) = attention.window {
            let seen = |i: usize, j: usize| if i.abs_diff(j) <= window { 0.0_f32 } else { f32::NEG_INFINITY };
            let mask: Vec<f32> = (0..length).flat_map(|i| (0..length).map(move |j| seen(i, j))).collect();
            scores = scores.broadcast_add(&Tensor::from_vec(mask, (length, length), qkv.device())?)?;
        }
        join_heads(&softmax(&scores)?.matmul(&part(2)?)?)
    }

    /// Rotary positions. `x`: `(rows, heads, length, d)`.
    fn turn(&self, x: &Tensor, theta: f64) -> Result<Tensor> {
        let (length, d) = (x.dim(2)?, x.dim(3)?);
        let angle = |position: usize, i: usize| {
            let frequency = theta.powf(-2.0 * i as f64 / d as f64) as f32;
            f64::from(position as f32 * frequency)
        };
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> =
                (0..length).flat_map(|p| (0..d / 2).map(move |i| f(angle(p, i)) as f32)).collect();
            Tensor::from_vec(values, (length, d / 2), x.device())
        };
        let (cosines, sines) = (table(f64::cos)?, table(f64::sin)?);
        let (left, right) = halves(x)?;
        let turned_left = (left.broadcast_mul(&cosines)? - right.broadcast_mul(&sines)?)?;
        let turned_right = (right.broadcast_mul(&cosines)? + left.broadcast_mul(&sines)?)?;
        Tensor::cat(&[turned_left, turned_right], 3)
    }
}

/// The halves of the last dimension.
fn halves(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let last = x.rank() - 1;
    let half = x.dim(last)? / 2;
    Ok((x.narrow(last, 0, half)?.contiguous()?, x.narrow(last, half, half)?.contiguous()?))
}

impl Classifier for Plain {
    fn info(&self) -> ModelInfo {
        info(&self.config, 4 * Layout::new(&self.config).slots.len())
    }

    fn segments(&self) -> usize {
        0
    }

    fn score(
        &mut self,
        batch: RaggedTokens<'_>,
        control: &dyn Control,
    ) -> std::result::Result<Vec<f32>, Failure> {
        Tensors::score_by_length(batch, self.config.labels, control, |rows| self.forward(batch, rows))
    }
}
