//! The classifier in candle's tensor operations: what the fast path is tested against, and what runs on CUDA.

use candle_core::{D, Result, Tensor};
use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens};

use super::info;
use super::layout::Layout;
use crate::encoder::attention::{Heads, Seen};
use crate::encoder::groups::Group;
use crate::encoder::scorer::Classifier;
use crate::encoder::tensors::Tensors;
use crate::place::Place;
use crate::weights::Checkpoint;
use cappy_plugin_models::encoder::deberta::{Activation, Convolution, DebertaConfig, Relative};
use cappy_plugin_models::encoder::family::Family;

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

/// Relative positions of a group.
struct Positions {
    relative: Relative,
    /// `(1, 2 * span, hidden)`.
    embeddings: Tensor,
    /// Which embedding belongs to each query and key, `(rows, heads, length, length)`.
    of_queries: Tensor,
    /// Likewise to each key and query.
    of_keys: Tensor,
}

impl Plain {
    /// Loads the weights onto a device.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or of another shape.
    pub fn load(
        config: DebertaConfig,
        checkpoint: &Checkpoint,
        place: impl Into<Place>,
    ) -> std::result::Result<Self, Failure> {
        let slots = Layout::new(&config).slots;
        let tensors = Tensors::load(&slots, Family::DebertaV2.base(), checkpoint, place.into())?;
        Ok(Self { config, tensors })
    }

    /// Raw logits `(rows.len(), labels)`.
    fn forward(&self, batch: RaggedTokens<'_>, rows: &[usize]) -> Result<Tensor> {
        let Self { config, tensors } = self;
        let group = Group::new(batch, rows);
        let embedded = self.embed(&group)?;
        let positions = match config.relative {
            Some(relative) => Some(self.positions(relative, &group)?),
            None => None,
        };
        let seen = Seen::new(&group, None, tensors)?;
        let mut x = embedded.clone();
        for i in 0..config.layers {
            let name = format!("deberta.encoder.layer.{i}");
            x = self.layer(&x, &name, positions.as_ref(), &seen)?;
            if let (0, Some(convolution)) = (i, config.convolution) {
                // Beyond a row's ends there are zeros.
                let embedded = group.without_padding(&embedded, &tensors.place)?;
                x = self.convolve(&embedded, &x, convolution)?;
            }
        }
        let first = x.narrow(1, 0, 1)?.squeeze(1)?;
        let pooled = activate(&tensors.linear(&first, "pooler.dense")?, config.pooler_activation)?;
        tensors.linear(&pooled, "classifier")
    }

    fn embed(&self, group: &Group<'_>) -> Result<Tensor> {
        let Self { config, tensors } = self;
        let shape = group.shape(config.embedding);
        let look_up = |part: &str, index: Vec<u32>| {
            tensors.look_up(&format!("deberta.embeddings.{part}_embeddings.weight"), index, shape)
        };
        let mut x = look_up("word", group.ids())?;
        if config.absolute_positions {
            x = (x + look_up("position", group.numbers(|tokens| 0..tokens.len() as u32))?)?;
        }
        if config.type_vocab_size > 0 {
            x = (x + look_up("token_type", group.segments(config.type_vocab_size))?)?;
        }
        if config.embedding != config.hidden {
            x = tensors.linear(&x, "deberta.embeddings.embed_proj")?;
        }
        tensors.layer_norm(&x, "deberta.embeddings.LayerNorm", config.layer_norm_eps)
    }

    fn positions(&self, relative: Relative, group: &Group<'_>) -> Result<Positions> {
        let Self { config, tensors } = self;
        let mut embeddings = tensors.at("deberta.encoder.rel_embeddings.weight")?.unsqueeze(0)?;
        if relative.normalised {
            let eps = config.layer_norm_eps;
            embeddings = tensors.layer_norm(&embeddings, "deberta.encoder.LayerNorm", eps)?;
        }
        let (rows, length, _) = group.shape(0);
        let distances = -(length as i64 - 1)..length as i64;
        let of_distance: Vec<u32> = distances.map(|distance| relative.index(distance) as u32).collect();
        let index: Vec<u32> = (0..length)
            .flat_map(|i| (0..length).map(move |j| length - 1 + i - j))
            .map(|at| of_distance[at])
            .collect();
        let index = Tensor::from_vec(index, (length, length), &tensors.place.device)?;
        let of_all = |index: &Tensor| index.broadcast_as((rows, config.heads, length, length))?.contiguous();
        let of_queries = of_all(&index)?;
        let of_keys = if relative.p2c { of_all(&index.t()?)? } else { of_queries.clone() };
        Ok(Positions { relative, embeddings, of_queries, of_keys })
    }

    /// `x`: `(rows, length, hidden)`.
    fn layer(&self, x: &Tensor, name: &str, positions: Option<&Positions>, seen: &Seen) -> Result<Tensor> {
        let Self { config, tensors } = self;
        // Every term is scaled with its query, or with its position's.
        let scale = f64::from(config.scale());
        let heads = Heads { count: config.heads, width: config.head_dim() };
        let split = |x: &Tensor, part: &str, scale: f64| {
            let x = tensors.linear(x, &format!("{name}.attention.self.{part}"))?;
            tensors.heads(&x, 0, heads, scale)
        };
        let (query, key) = (split(x, "query_proj", scale)?, split(x, "key_proj", 1.0)?);
        // (rows, heads, length, length)
        let mut scores = query.matmul(&key.t()?)?;
        if let Some(Positions { relative, embeddings, of_queries, of_keys }) = positions {
            let projections = match relative.shared {
                true => ["key_proj", "query_proj"],
                false => ["pos_key_proj", "pos_query_proj"],
            };
            // Every state with every position, then those that belong to each pair of tokens.
            let terms = |states: &Tensor, positions: Tensor, index: &Tensor| {
                states.broadcast_matmul(&positions.t()?)?.gather(index, D::Minus1)
            };
            if relative.c2p {
                scores = (scores + terms(&query, split(embeddings, projections[0], 1.0)?, of_queries)?)?;
            }
            if relative.p2c {
                let positions = split(embeddings, projections[1], scale)?;
                scores = (scores + terms(&key, positions, of_keys)?.t()?)?;
            }
        }
        let context = tensors.attend(scores, seen, &split(x, "value_proj", 1.0)?)?;
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
        let dtype = self.tensors.place.dtype.as_str().into();
        ModelInfo { dtype, ..info(&self.config, self.tensors.bytes()) }
    }

    fn segments(&self) -> usize {
        self.config.type_vocab_size
    }

    fn score(
        &mut self,
        batch: RaggedTokens<'_>,
        control: &dyn Control,
    ) -> std::result::Result<Vec<f32>, Failure> {
        let sizes = (self.config.labels, self.config.heads);
        Tensors::score_by_groups(batch, sizes, control, |rows| self.forward(batch, rows))
    }
}
