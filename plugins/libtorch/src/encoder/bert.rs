//! RoBERTa, XLM-R, BERT and DistilBERT.
//!
//! Source: transformers' `modeling_roberta.py`, `modeling_bert.py` and `modeling_distilbert.py`.

use cappy_plugin_models::dropout::Site;
use cappy_plugin_models::encoder::config::{EncoderConfig, Family};
use cappy_plugin_models::encoder::layout::{LayerAt, Layout};
use tch::Tensor;

use super::architecture::Network;
use super::attention::Attention;
use super::parts::{Linear, Norm, Parameters};
use super::pass::{Of, Pass};
use crate::engine::Result;

/// The network of a classifier.
pub struct Bert {
    config: EncoderConfig,
    /// `(vocab_size, hidden)`.
    word: Tensor,
    /// `(max_positions, hidden)`.
    position: Tensor,
    /// `(type_vocab_size, hidden)`.
    token_type: Option<Tensor>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    dense: Linear,
    out: Linear,
}

struct Layer {
    qkv: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    ffn_norm: Norm,
}

impl Layer {
    fn new(at: &LayerAt, eps: f32, from: &mut dyn Parameters) -> Result<Self> {
        Ok(Self {
            qkv: from.linear(&at.qkv)?,
            output: from.linear(&at.output)?,
            attention_norm: from.norm(&at.attention_norm, eps)?,
            up: from.linear(&at.up)?,
            down: from.linear(&at.down)?,
            ffn_norm: from.norm(&at.ffn_norm, eps)?,
        })
    }
}

impl Bert {
    /// Takes its tensors.
    ///
    /// # Errors
    /// Those of `from`.
    pub fn new(config: EncoderConfig, layout: &Layout, from: &mut dyn Parameters) -> Result<Self> {
        let eps = config.layer_norm_eps;
        Ok(Self {
            word: from.tensor(&layout.word, &[config.vocab_size, config.hidden])?,
            position: from.tensor(&layout.position, &[config.max_positions, config.hidden])?,
            token_type: from.table(&layout.token_type, config.type_vocab_size)?,
            embedding_norm: from.norm(&layout.embedding_norm, eps)?,
            layers: layout.layers.iter().map(|at| Layer::new(at, eps, from)).collect::<Result<_>>()?,
            dense: from.linear(&layout.dense)?,
            out: from.linear(&layout.out)?,
            config,
        })
    }

    fn embed(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let Self { config, .. } = self;
        let batch = pass.batch;
        let ids = batch.indices(batch.tokens().map(|id| id as usize))?;
        let positions = (0..batch.rows.len()).flat_map(|i| config.positions(batch.row(i)));
        let positions = batch.indices(positions)?;
        // As transformers' `padding_idx`: the pad entries get no gradient.
        let no_position = config.first_position() as i64 - 1;
        let mut x = Tensor::f_embedding(&self.word, &ids, config.pad_token_id.into(), false, false)?;
        if let Some(table) = &self.token_type {
            let segments = batch.indices(batch.segments(config.type_vocab_size > 1))?;
            x = x.f_add(&Tensor::f_embedding(table, &segments, -1, false, false)?)?;
        }
        x = x.f_add(&Tensor::f_embedding(&self.position, &positions, no_position, false, false)?)?;
        pass.drop(self.embedding_norm.apply(&x)?, Site::Embeddings, Of::Tokens)
    }

    /// `x`: `(tokens, hidden)`. The last layer makes first tokens only, which is all that the head reads.
    fn layer(&self, pass: &Pass<'_>, i: usize, x: &Tensor) -> Result<Tensor> {
        let (config, layer, hidden) = (&self.config, &self.layers[i], self.config.hidden);
        let attention = Attention {
            layer: i,
            heads: config.heads,
            scale: (config.head_dim() as f64).powf(-0.5),
            window: None,
            bias: None,
        };
        let (x, context, of) = if i + 1 < self.layers.len() {
            (x.shallow_clone(), attention.all(pass, &layer.qkv.apply(x)?)?, Of::Tokens)
        } else {
            let firsts = pass.batch.firsts(x)?;
            let query = layer.qkv.part(0..hidden)?.apply(&firsts)?;
            let key_value = layer.qkv.part(hidden..3 * hidden)?.apply(x)?;
            let context = attention.firsts(pass, &query, &key_value)?;
            (firsts, context, Of::FirstTokens)
        };
        let mut attended = layer.output.apply(&context)?;
        // DistilBERT has no dropout behind attention's projection.
        if config.family != Family::DistilBert {
            attended = pass.drop(attended, Site::AttentionOutput(i), of)?;
        }
        let x = layer.attention_norm.apply(&attended.f_add(&x)?)?;
        let inner = layer.up.apply(&x)?.f_gelu("none")?;
        let down = pass.drop(layer.down.apply(&inner)?, Site::FeedForward(i), of)?;
        layer.ffn_norm.apply(&down.f_add(&x)?)
    }
}

impl Network for Bert {
    fn forward(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let mut x = self.embed(pass)?;
        for i in 0..self.layers.len() {
            pass.go_on()?;
            x = self.layer(pass, i, &x)?;
        }
        // BERT's pooler and DistilBERT take the first token as it is.
        if !matches!(self.config.family, Family::Bert | Family::DistilBert) {
            x = pass.drop(x, Site::HeadInput, Of::Rows)?;
        }
        let dense = self.dense.apply(&x)?;
        let pooled = match self.config.family {
            Family::DistilBert => dense.f_relu()?,
            _ => dense.f_tanh()?,
        };
        self.out.apply(&pass.drop(pooled, Site::HeadInner, Of::Rows)?)
    }
}
