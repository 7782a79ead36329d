//! Inference of BERT-like classifiers in f32 on the CPU over packed weights and ragged rows.
//!
//! A batch is cut into pieces of whole rows. All tokens of a piece go through each linear layer in one product;
//! attention runs row by row. The last layer computes keys and values of all tokens but everything else only for
//! each row's first token, which is all that the head reads. Buffers are kept between calls.
//!
//! Source: RoBERTa, arXiv 1907.11692; BERT, arXiv 1810.04805; DistilBERT, arXiv 1910.01108; transformers'
//! `modeling_roberta.py`, `modeling_distilbert.py`.

use cappy_plugin_abi::{Control, Failure, RaggedTokens};
use rayon::prelude::*;

use super::config::{EncoderConfig, Family};
use super::layout::Layout;
use super::parts::{Linear, Norm, ROWS, Source};
use super::pieces::pieces;
use crate::kernels::attention::{Heads, attend, attend_first};
use crate::kernels::{Buffer, activation};
use crate::weights::Checkpoint;

/// Tokens of a piece: enough that reading the weights costs nothing, few enough that activations stay near.
const PIECE_TOKENS: usize = 2048;

/// A loaded classifier.
pub struct FastEncoder {
    config: EncoderConfig,
    word: Vec<f32>,
    position: Vec<f32>,
    token_type: Vec<f32>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    /// The last layer's queries apart from its keys and values.
    last_query: Linear,
    last_kv: Linear,
    dense: Linear,
    out: Linear,
    scratch: Scratch,
}

struct Layer {
    /// None in the last layer.
    qkv: Option<Linear>,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    ffn_norm: Norm,
}

#[derive(Default)]
struct Scratch {
    /// `(tokens, hidden)`: the residual stream.
    hidden: Buffer,
    /// `(tokens, 3 * hidden)`.
    qkv: Buffer,
    /// `(tokens, hidden)`.
    context: Buffer,
    /// `(tokens, intermediate)`.
    inner: Buffer,
    /// `(rows, hidden)`: first tokens.
    first: Buffer,
    /// `(rows, hidden)`.
    query: Buffer,
}

impl FastEncoder {
    /// Loads and packs the weights.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or of another shape.
    pub fn load(config: EncoderConfig, checkpoint: &Checkpoint) -> Result<Self, Failure> {
        let layout = Layout::new(&config);
        let source = Source { slots: &layout.slots, checkpoint };
        let h = config.hidden;
        let last = config.layers - 1;
        let layers = layout
            .layers
            .iter()
            .enumerate()
            .map(|(i, at)| {
                Ok(Layer {
                    qkv: if i < last { Some(source.linear(&at.qkv)?) } else { None },
                    output: source.linear(&at.output)?,
                    attention_norm: source.norm(&at.attention_norm)?,
                    up: source.linear(&at.up)?,
                    down: source.linear(&at.down)?,
                    ffn_norm: source.norm(&at.ffn_norm)?,
                })
            })
            .collect::<Result<_, Failure>>()?;
        let qkv = &layout.layers[last].qkv;
        let (weight, bias) = (source.read(&qkv.weight)?, source.read(&qkv.bias)?);
        let part = |rows: std::ops::Range<usize>| {
            let weight = &weight[rows.start * h..rows.end * h];
            Linear::new(weight, rows.len(), h, Some(bias[rows].to_vec()))
        };
        Ok(Self {
            word: source.read(&layout.word)?,
            position: source.read(&layout.position)?,
            token_type: source.read(&layout.token_type)?,
            embedding_norm: source.norm(&layout.embedding_norm)?,
            layers,
            last_query: part(0..h),
            last_kv: part(h..3 * h),
            dense: source.linear(&layout.dense)?,
            out: source.linear(&layout.out)?,
            scratch: Scratch::default(),
            config,
        })
    }

    /// What was loaded.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Bytes of weights in memory.
    pub fn weight_bytes(&self) -> usize {
        let layer = |l: &Layer| {
            let linear: usize = [&l.output, &l.up, &l.down].into_iter().map(Linear::bytes).sum();
            let norms = l.attention_norm.bytes() + l.ffn_norm.bytes();
            l.qkv.as_ref().map_or(0, Linear::bytes) + linear + norms
        };
        let rest = [&self.last_query, &self.last_kv, &self.dense, &self.out];
        self.layers.iter().map(layer).sum::<usize>()
            + rest.into_iter().map(Linear::bytes).sum::<usize>()
            + 4 * (self.word.len() + self.position.len() + self.token_type.len())
            + self.embedding_norm.bytes()
    }

    /// Raw logits, `(rows, labels)`. The batch must have been checked against the configuration.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        let labels = self.config.labels;
        let mut logits = vec![0.0; batch.rows() * labels];
        for rows in pieces(batch.offsets, PIECE_TOKENS) {
            let to = &mut logits[rows.start * labels..rows.end * labels];
            let end = rows.end as u64;
            self.score_piece(batch, rows, to, control)?;
            control.progress(end, batch.rows() as u64);
        }
        Ok(logits)
    }

    fn score_piece(
        &mut self,
        batch: RaggedTokens<'_>,
        rows: std::ops::Range<usize>,
        logits: &mut [f32],
        control: &dyn Control,
    ) -> Result<(), Failure> {
        let Self { config, scratch, .. } = self;
        let (h, f, eps) = (config.hidden, config.intermediate, config.layer_norm_eps);
        let start = batch.offsets[rows.start] as usize;
        let offsets: Vec<usize> =
            batch.offsets[rows.start..=rows.end].iter().map(|&o| o as usize - start).collect();
        let tokens = offsets[rows.len()];
        let shape = Heads { offsets: &offsets, heads: config.heads, head_dim: config.head_dim() };

        let several_segments = config.type_vocab_size > 1;
        let hidden = scratch.hidden.resized(tokens * h);
        let mut positions = Vec::with_capacity(tokens);
        rows.clone().for_each(|row| positions.extend(config.positions(batch.row(row))));
        hidden.par_chunks_mut(ROWS * h).enumerate().for_each(|(chunk, out)| {
            for (i, out) in out.chunks_exact_mut(h).enumerate() {
                let t = chunk * ROWS + i;
                let id = batch.tokens[start + t];
                let segment = if several_segments { batch.type_ids.get(start + t).copied() } else { None };
                out.copy_from_slice(&self.word[id as usize * h..][..h]);
                if !self.token_type.is_empty() {
                    activation::add(out, &self.token_type[usize::from(segment.unwrap_or(0)) * h..][..h]);
                }
                activation::add(out, &self.position[positions[t] * h..][..h]);
            }
            self.embedding_norm.apply_here(out, eps);
        });

        for layer in &self.layers {
            if control.cancelled() {
                return Err(Failure::cancelled("scoring was cancelled"));
            }
            let (m, stream, context) = if let Some(linear) = &layer.qkv {
                let qkv = scratch.qkv.resized(tokens * 3 * h);
                linear.store(&scratch.hidden, tokens, qkv);
                let context = scratch.context.resized(tokens * h);
                attend(qkv, shape, context);
                (tokens, &mut scratch.hidden, &scratch.context)
            } else {
                let m = rows.len();
                let kv = scratch.qkv.resized(tokens * 2 * h);
                self.last_kv.store(&scratch.hidden, tokens, kv);
                let first = scratch.first.resized(m * h);
                for (to, &t) in first.chunks_exact_mut(h).zip(&offsets) {
                    to.copy_from_slice(&scratch.hidden[t * h..][..h]);
                }
                let query = scratch.query.resized(m * h);
                self.last_query.store(first, m, query);
                let context = scratch.context.resized(m * h);
                attend_first(query, kv, shape, context);
                (m, &mut scratch.first, &scratch.context)
            };
            layer.output.add(context, m, stream);
            layer.attention_norm.apply(stream, eps);
            let inner = scratch.inner.resized(m * f);
            layer.up.gelu(stream, m, inner);
            layer.down.add(inner, m, stream);
            layer.ffn_norm.apply(stream, eps);
        }

        // BERT's pooler and RoBERTa's head are both dense, tanh, projection; DistilBERT's has another activation.
        let pooled = scratch.query.resized(rows.len() * h);
        self.dense.store(&scratch.first, rows.len(), pooled);
        match config.family {
            Family::DistilBert => activation::relu(pooled),
            _ => activation::tanh(pooled),
        }
        self.out.store(pooled, rows.len(), logits);
        Ok(())
    }
}
