//! The classifier in candle's tensor operations: what the fast path is tested against, and what runs on CUDA.

use candle_core::{D, Device, Result, Tensor};
use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens};

use super::info;
use super::layout::Layout;
use crate::encoder::scorer::Classifier;
use crate::encoder::tensors::{Tensors, join_heads, softmax, split_heads};
use crate::weights::Checkpoint;
use cappy_plugin_models::encoder::deberta::{Activation, Convolution, DebertaConfig, Relative};

/// A loaded classifier.
pub struct Plain {
    config: DebertaConfig,
    tensors: Tensors,
}

fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Gelu => x.gelu_erf(),
        Activation::Tanh => x.tanh(),
    }
}

impl Plain {
    /// Loads the weights onto a device, as f32.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or of another shape.
    pub fn load(
        config: DebertaConfig,
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
        let embedded = self.embed(batch, rows, length)?;
        let positions = match config.relative {
            Some(relative) => Some(self.positions(relative, length)?),
            None => None,
        };
        let mut x = embedded.clone();
        for i in 0..config.layers {
            x = self.layer(&x, &format!("deberta.encoder.layer.{i}"), positions.as_ref())?;
            if let (0, Some(convolution)) = (i, config.convolution) {
                x = self.convolve(&embedded, &x, convolution)?;
            }
        }
        let first = x.narrow(1, 0, 1)?.squeeze(1)?;
        let pooled = activate(&tensors.linear(&first, "pooler.dense")?, config.pooler_activation)?;
        tensors.linear(&pooled, "classifier")
    }

    fn embed(&self, batch: RaggedTokens<'_>, rows: &[usize], length: usize) -> Result<Tensor> {
        let Self { config, tensors } = self;
        let shape = (rows.len(), length, config.embedding);
        let look_up = |part: &str, index: Vec<u32>| {
            tensors.look_up(&format!("deberta.embeddings.{part}_embeddings.weight"), index, shape)
        };
        let mut x = look_up("word", rows.iter().flat_map(|&row| batch.row(row)).copied().collect())?;
        if config.absolute_positions {
            x = (x + look_up("position", rows.iter().flat_map(|_| 0..length as u32).collect())?)?;
        }
        if config.type_vocab_size > 0 {
            let segment = |t: usize| match config.type_vocab_size {
                1 => 0,
                _ => batch.type_ids.get(t).copied().unwrap_or(0).into(),
            };
            let tokens = rows.iter().flat_map(|&row| (batch.offsets[row] as usize..).take(length));
            x = (x + look_up("token_type", tokens.map(segment).collect())?)?;
        }
        if config.embedding != config.hidden {
            x = tensors.linear(&x, "deberta.embeddings.embed_proj")?;
        }
        tensors.layer_norm(&x, "deberta.embeddings.LayerNorm", config.layer_norm_eps)
    }

    /// Position embeddings `(1, 2 * span, hidden)`, and which of them belongs to each query and key,
    /// `(length, length)`.
    fn positions(&self, relative: Relative, length: usize) -> Result<(Tensor, Tensor, Relative)> {
        let Self { config, tensors } = self;
        let mut embeddings = tensors.at("deberta.encoder.rel_embeddings.weight")?.unsqueeze(0)?;
        if relative.normalised {
            let eps = config.layer_norm_eps;
            embeddings = tensors.layer_norm(&embeddings, "deberta.encoder.LayerNorm", eps)?;
        }
        let index = (0..length as i64)
            .flat_map(|i| (0..length as i64).map(move |j| relative.index(i - j) as u32))
            .collect();
        let index = Tensor::from_vec(index, (length, length), &tensors.device)?;
        Ok((embeddings, index, relative))
    }

    /// `x`: `(rows, length, hidden)`.
    fn layer(
        &self,
        x: &Tensor,
        name: &str,
        positions: Option<&(Tensor, Tensor, Relative)>,
    ) -> Result<Tensor> {
        let Self { config, tensors } = self;
        let (rows, length, _) = x.dims3()?;
        let heads = config.heads;
        let split = |x: &Tensor, part: &str| {
            split_heads(&tensors.linear(x, &format!("{name}.attention.self.{part}"))?, heads)
        };
        let (query, key) = (split(x, "query_proj")?, split(x, "key_proj")?);
        // (rows, heads, length, length)
        let mut scores = query.matmul(&key.t()?.contiguous()?)?;
        if let Some((embeddings, index, relative)) = positions {
            let index = index.broadcast_as((rows, heads, length, length))?.contiguous()?;
            let projections = match relative.shared {
                true => ["key_proj", "query_proj"],
                false => ["pos_key_proj", "pos_query_proj"],
            };
            // Every state with every position, then those that belong to each pair of tokens.
            let terms = |states: &Tensor, part: &str, index: &Tensor| {
                let positions = split(embeddings, part)?.t()?.contiguous()?;
                states.broadcast_matmul(&positions)?.contiguous()?.gather(index, D::Minus1)
            };
            if relative.c2p {
                scores = (scores + terms(&query, projections[0], &index)?)?;
            }
            if relative.p2c {
                let of_keys = index.t()?.contiguous()?;
                scores = (scores + terms(&key, projections[1], &of_keys)?.t()?)?;
            }
        }
        let scores = (scores * f64::from(config.scale()))?;
        let context = join_heads(&softmax(&scores)?.matmul(&split(x, "value_proj")?)?)?;
        let part = |x: &Tensor, part: &str| tensors.linear(x, &format!("{name}.{part}"));
        let norm = |x: &Tensor, part: &str| {
            tensors.layer_norm(x, &format!("{name}.{part}.LayerNorm"), config.layer_norm_eps)
        };
        let x = norm(&(part(&context, "attention.output.dense")? + x)?, "attention.output")?;
        let inner = part(&x, "intermediate.dense")?.gelu_erf()?;
        norm(&(part(&inner, "output.dense")? + x)?, "output")
    }

    /// `layer_norm(states + activation(convolution(embedded)))`, `(rows, length, hidden)` each.
    fn convolve(&self, embedded: &Tensor, states: &Tensor, convolution: Convolution) -> Result<Tensor> {
        let Self { config, tensors } = self;
        let input = embedded.transpose(1, 2)?.contiguous()?;
        let weight = tensors.at("deberta.encoder.conv.conv.weight")?;
        let x = input.conv1d(weight, convolution.width / 2, 1, 1, 1)?.transpose(1, 2)?.contiguous()?;
        let x = x.broadcast_add(tensors.at("deberta.encoder.conv.conv.bias")?)?;
        let x = (activate(&x, convolution.activation)? + states)?;
        tensors.layer_norm(&x, "deberta.encoder.conv.LayerNorm", config.layer_norm_eps)
    }
}

impl Classifier for Plain {
    fn info(&self) -> ModelInfo {
        info(&self.config, 4 * Layout::new(&self.config).slots.len())
    }

    fn segments(&self) -> usize {
        self.config.type_vocab_size
    }

    fn score(
        &mut self,
        batch: RaggedTokens<'_>,
        control: &dyn Control,
    ) -> std::result::Result<Vec<f32>, Failure> {
        Tensors::score_by_length(batch, self.config.labels, control, |rows| self.forward(batch, rows))
    }
}
