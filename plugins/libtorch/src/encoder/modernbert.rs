//! ModernBERT: rotary positions, attention within a window in most layers, gated feed-forward networks, normalisation
//! before each block.
//!
//! Source: Warner et al., arXiv 2412.13663; transformers' `modeling_modernbert.py`.

use cappy_plugin_models::dropout::Site;
use cappy_plugin_models::encoder::modernbert::layout::{LayerAt, Layout};
use cappy_plugin_models::encoder::modernbert::{ModernBertConfig, Pooling};
use tch::{Kind, Tensor};

use super::architecture::Network;
use super::attention::Attention;
use super::parts::{Linear, Norm, Parameters};
use super::pass::{Of, Pass};
use crate::engine::Result;

/// The network of a classifier.
pub struct ModernBert {
    config: ModernBertConfig,
    /// Gets no gradient.
    pad_token: i64,
    /// `(vocab_size, hidden)`.
    word: Tensor,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    final_norm: Norm,
    dense: Linear,
    head_norm: Norm,
    out: Linear,
}

struct Layer {
    attention_norm: Option<Norm>,
    qkv: Linear,
    output: Linear,
    mlp_norm: Norm,
    up: Linear,
    down: Linear,
}

/// Cosines and sines of a batch's tokens, `(tokens, 1, head_dim)` each.
struct Rotary {
    theta: f64,
    cosines: Tensor,
    sines: Tensor,
}

impl Rotary {
    fn new(pass: &Pass<'_>, theta: f64, head_dim: usize) -> Result<Self> {
        let (batch, half) = (pass.batch, head_dim / 2);
        // In f32, as the reference computes them.
        let frequencies: Vec<f32> =
            (0..half).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64) as f32).collect();
        let longest = (0..batch.rows.len()).map(|i| batch.row(i).len()).max().unwrap_or(0);
        let angles: Vec<f32> = (0..longest)
            .flat_map(|p| frequencies.iter().map(move |frequency| p as f32 * frequency))
            .collect();
        let positions = batch.indices((0..batch.rows.len()).flat_map(|i| 0..batch.row(i).len()))?;
        let table = |f: fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = angles.iter().map(|&angle| f(f64::from(angle)) as f32).collect();
            let table = Tensor::f_from_slice(&values)?.f_view([-1, 1, half as i64])?;
            let table = table.f_repeat([1, 1, 2])?.f_to_kind(batch.kind)?.f_to_device(batch.device)?;
            Ok(table.f_index_select(0, &positions)?)
        };
        Ok(Self { theta, cosines: table(f64::cos)?, sines: table(f64::sin)? })
    }

    /// `x`: `(tokens, heads, head_dim)`.
    fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.size()[2] / 2;
        let swapped = Tensor::f_cat(&[x.f_narrow(2, half, half)?.f_neg()?, x.f_narrow(2, 0, half)?], 2)?;
        Ok(x.f_mul(&self.cosines)?.f_add(&swapped.f_mul(&self.sines)?)?)
    }
}

impl Layer {
    fn new(at: &LayerAt, eps: f32, from: &mut dyn Parameters) -> Result<Self> {
        Ok(Self {
            attention_norm: at.attention_norm.as_ref().map(|at| from.norm(at, eps)).transpose()?,
            qkv: from.linear(&at.qkv)?,
            output: from.linear(&at.output)?,
            mlp_norm: from.norm(&at.mlp_norm, eps)?,
            up: from.linear(&at.up)?,
            down: from.linear(&at.down)?,
        })
    }
}

impl ModernBert {
    /// Takes its tensors.
    ///
    /// # Errors
    /// Those of `from`.
    pub fn new(
        config: ModernBertConfig,
        pad_token: i64,
        layout: &Layout,
        from: &mut dyn Parameters,
    ) -> Result<Self> {
        let eps = config.norm_eps;
        Ok(Self {
            pad_token,
            word: from.tensor(&layout.word, &[config.vocab_size, config.hidden])?,
            embedding_norm: from.norm(&layout.embedding_norm, eps)?,
            layers: layout.layers.iter().map(|at| Layer::new(at, eps, from)).collect::<Result<_>>()?,
            final_norm: from.norm(&layout.final_norm, eps)?,
            dense: from.linear(&layout.dense)?,
            head_norm: from.norm(&layout.head_norm, eps)?,
            out: from.linear(&layout.out)?,
            config,
        })
    }

    /// `x`: `(tokens, hidden)`.
    fn layer(&self, pass: &Pass<'_>, i: usize, x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        let (config, layer) = (&self.config, &self.layers[i]);
        let (hidden, heads, d) = (config.hidden as i64, config.heads as i64, config.head_dim());
        let attention = Attention {
            layer: i,
            heads: config.heads,
            scale: (d as f64).powf(-0.5),
            window: config.attention[i].window,
            bias: None,
        };
        let normed = layer.attention_norm.as_ref().map(|norm| norm.apply(x)).transpose()?;
        let qkv = layer.qkv.apply(normed.as_ref().unwrap_or(x))?;
        let turned = rotary.turn(&qkv.f_narrow(1, 0, 2 * hidden)?.f_reshape([-1, 2 * heads, d as i64])?)?;
        let turned = turned.f_view([-1, 2, hidden])?;
        let part = |which: i64| turned.f_select(1, which);
        let value = qkv.f_narrow(1, 2 * hidden, hidden)?;
        let (x, context, of) = if i + 1 < self.layers.len() || config.pooling == Pooling::Mean {
            let qkv = Tensor::f_cat(&[part(0)?, part(1)?, value], 1)?;
            (x.shallow_clone(), attention.all(pass, &qkv)?, Of::Tokens)
        } else {
            let key_value = Tensor::f_cat(&[part(1)?, value], 1)?;
            let query = pass.batch.firsts(&part(0)?)?;
            (pass.batch.firsts(x)?, attention.firsts(pass, &query, &key_value)?, Of::FirstTokens)
        };
        let attended = pass.drop(layer.output.apply(&context)?, Site::AttentionOutput(i), of)?;
        let x = attended.f_add(&x)?;
        let up = layer.up.apply(&layer.mlp_norm.apply(&x)?)?;
        let width = config.intermediate as i64;
        let inner = up.f_narrow(1, 0, width)?.f_gelu("none")?.f_mul(&up.f_narrow(1, width, width)?)?;
        let inner = pass.drop(inner, Site::FeedForward(i), of)?;
        Ok(layer.down.apply(&inner)?.f_add(&x)?)
    }

    /// Means over the tokens of each row of `x`, `(tokens, hidden)`: `(rows, hidden)`.
    fn means(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let padded = pass.batch.padded()?;
        let mut means = Vec::with_capacity(padded.ragged.groups.len());
        for (g, group) in padded.ragged.groups.iter().enumerate() {
            // Products with 1 / length, and with 0 for padding; in f32, which holds the one exactly enough.
            let shares: Vec<f32> = group
                .lengths
                .iter()
                .flat_map(|&length| {
                    (0..group.longest).map(move |i| if i < length { 1.0 / length as f32 } else { 0.0 })
                })
                .collect();
            let shares = Tensor::f_from_slice(&shares)?.f_to_device(x.device())?;
            let shares = shares.f_view([group.rows.len() as i64, 1, group.longest as i64])?;
            let rows = padded.ragged.padded(g, x)?.f_to_kind(Kind::Float)?;
            means.push(shares.f_bmm(&rows)?.f_to_kind(x.kind())?);
        }
        padded.joined(&means)
    }
}

impl Network for ModernBert {
    fn forward(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let (batch, config) = (pass.batch, &self.config);
        let ids = batch.indices(batch.tokens().map(|id| id as usize))?;
        let x = Tensor::f_embedding(&self.word, &ids, self.pad_token, false, false)?;
        let mut x = pass.drop(self.embedding_norm.apply(&x)?, Site::Embeddings, Of::Tokens)?;
        let mut rotaries: Vec<Rotary> = Vec::new();
        for (i, attention) in config.attention.iter().enumerate() {
            pass.go_on()?;
            if rotaries.iter().all(|rotary| rotary.theta != attention.theta) {
                rotaries.push(Rotary::new(pass, attention.theta, config.head_dim())?);
            }
            let rotary = rotaries.iter().find(|rotary| rotary.theta == attention.theta);
            x = self.layer(pass, i, &x, rotary.expect("it was made"))?;
        }
        let x = self.final_norm.apply(&x)?;
        let pooled = match config.pooling {
            Pooling::First => x,
            Pooling::Mean => self.means(pass, &x)?,
        };
        let dense = self.head_norm.apply(&self.dense.apply(&pooled)?.f_gelu("none")?)?;
        self.out.apply(&pass.drop(dense, Site::HeadInner, Of::Rows)?)
    }
}
