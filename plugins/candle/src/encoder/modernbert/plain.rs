//! The classifier in candle's tensor operations: what the fast path is tested against, and what runs on CUDA.

use candle_core::{Result, Tensor};
use candle_nn::rotary_emb::rope;
use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens};

use super::info;
use super::layout::Layout;
use crate::encoder::attention::{Heads, Seen};
use crate::encoder::groups::Group;
use crate::encoder::scorer::Classifier;
use crate::encoder::tensors::{Tensors, engine};
use crate::place::Place;
use crate::weights::Checkpoint;
use cappy_plugin_models::encoder::family::Family;
use cappy_plugin_models::encoder::modernbert::{Attention, ModernBertConfig, Pooling};

/// A loaded classifier.
pub struct Plain {
    config: ModernBertConfig,
    tensors: Tensors,
    turns: Vec<Turns>,
}

/// Rotary positions of one base period: cosines and sines, `(max_tokens, head_dim / 2)` each.
struct Turns {
    theta: f64,
    cosines: Tensor,
    sines: Tensor,
}

impl Turns {
    fn new(theta: f64, tokens: usize, d: usize, place: &Place) -> Result<Self> {
        let angle = |position: usize, i: usize| {
            let frequency = theta.powf(-2.0 * i as f64 / d as f64) as f32;
            f64::from(position as f32 * frequency)
        };
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> =
                (0..tokens).flat_map(|p| (0..d / 2).map(move |i| f(angle(p, i)) as f32)).collect();
            Tensor::from_vec(values, (tokens, d / 2), &place.device)?.to_dtype(place.dtype)
        };
        Ok(Self { theta, cosines: table(f64::cos)?, sines: table(f64::sin)? })
    }

    /// `x`: `(rows, heads, length, d)`.
    fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let length = x.dim(2)?;
        rope(x, &self.cosines.narrow(0, 0, length)?, &self.sines.narrow(0, 0, length)?)
    }
}

impl Plain {
    /// Loads the weights onto a device.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or of another shape.
    pub fn load(
        config: ModernBertConfig,
        checkpoint: &Checkpoint,
        place: impl Into<Place>,
    ) -> std::result::Result<Self, Failure> {
        let slots = Layout::new(&config).slots;
        let tensors = Tensors::load(&slots, Family::ModernBert.base(), checkpoint, place.into())?;
        let mut turns: Vec<Turns> = Vec::new();
        for attention in &config.attention {
            if turns.iter().all(|known| known.theta != attention.theta) {
                let of = Turns::new(attention.theta, config.max_tokens, config.head_dim(), &tensors.place);
                turns.push(of.map_err(engine)?);
            }
        }
        Ok(Self { config, tensors, turns })
    }

    /// Raw logits `(rows.len(), labels)`.
    fn forward(&self, batch: RaggedTokens<'_>, rows: &[usize]) -> Result<Tensor> {
        let Self { config, tensors, .. } = self;
        let group = Group::new(batch, rows);
        let shape = group.shape(config.hidden);
        let x = tensors.look_up("model.embeddings.tok_embeddings.weight", group.ids(), shape)?;
        let mut x = self.norm(&x, "model.embeddings.norm")?;
        let views = Views::new(config, &group, tensors)?;
        for (i, attention) in config.attention.iter().enumerate() {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let input = if i == 0 { x.clone() } else { self.norm(&x, &name("attn_norm"))? };
            let qkv = tensors.linear(&input, &name("attn.Wqkv"))?;
            let context = self.attend(&qkv, attention, views.of(attention))?;
            x = (x + tensors.linear(&context, &name("attn.Wo"))?)?;
            let up = tensors.linear(&self.norm(&x, &name("mlp_norm"))?, &name("mlp.Wi"))?;
            x = (x + tensors.linear(&tensors.gated(&up)?, &name("mlp.Wo"))?)?;
        }
        let x = self.norm(&x, "model.final_norm")?;
        let pooled = match config.pooling {
            Pooling::First => x.narrow(1, 0, 1)?.squeeze(1)?,
            Pooling::Mean => group.mean(&x, &tensors.place)?,
        };
        let dense = tensors.linear(&pooled, "head.dense")?.gelu_erf()?;
        tensors.linear(&self.norm(&dense, "head.norm")?, "classifier")
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        self.tensors.layer_norm(x, name, self.config.norm_eps)
    }

    /// `qkv`: `(rows, length, 3 * hidden)`.
    fn attend(&self, qkv: &Tensor, attention: &Attention, seen: &Seen) -> Result<Tensor> {
        let heads = Heads { count: self.config.heads, width: self.config.head_dim() };
        let part = |which: usize, scale: f64| self.tensors.heads(qkv, which, heads, scale);
        let turns = self.turns.iter().find(|turns| turns.theta == attention.theta);
        let turns = turns.expect("there is a table for every layer");
        let query = turns.turn(&part(0, (heads.width as f64).powf(-0.5))?)?;
        // (rows, heads, length, length)
        let scores = query.matmul(&turns.turn(&part(1, 1.0)?)?.t()?)?;
        self.tensors.attend(scores, seen, &part(2, 1.0)?)
    }
}

/// What a group's layers see: by window, once for all layers that have it.
struct Views(Vec<(Option<usize>, Seen)>);

impl Views {
    fn new(config: &ModernBertConfig, group: &Group<'_>, tensors: &Tensors) -> Result<Self> {
        let mut views: Vec<(Option<usize>, Seen)> = Vec::new();
        for Attention { window, .. } in &config.attention {
            if views.iter().all(|(known, _)| known != window) {
                views.push((*window, Seen::new(group, *window, tensors)?));
            }
        }
        Ok(Self(views))
    }

    fn of(&self, attention: &Attention) -> &Seen {
        let view = self.0.iter().find(|(window, _)| *window == attention.window);
        &view.expect("there is one for every layer").1
    }
}

impl Classifier for Plain {
    fn info(&self) -> ModelInfo {
        let dtype = self.tensors.place.dtype.as_str().into();
        ModelInfo { dtype, ..info(&self.config, self.tensors.bytes()) }
    }

    fn segments(&self) -> usize {
        0
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
