//! Inference in f32 on the CPU over packed weights and ragged rows.
//!
//! As in the BERT-like [fast path](crate::encoder::fast), all tokens of a piece go through each linear layer in one
//! product and attention runs row by row. Position embeddings are the same for every row, so their projections are
//! computed when the model is loaded. Behind the last layer's attention, only first tokens go on.

use std::ops::Range;

use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens};
use rayon::prelude::*;

use super::info;
use super::layout::{ConvolutionAt, LayerAt, Layout};
use crate::encoder::parts::{Linear, Norm, ROWS, Source, keep_firsts};
use crate::encoder::pieces::pieces;
use crate::encoder::scorer::Classifier;
use crate::encoder::slots::LinearAt;
use crate::kernels::attention::{Heads, Positions, attend_disentangled};
use crate::kernels::{Buffer, activation};
use crate::weights::Checkpoint;
use cappy_plugin_models::encoder::deberta::{Activation, DebertaConfig, Relative};

/// Tokens of a piece: enough that reading the weights costs nothing, few enough that activations stay near.
const PIECE_TOKENS: usize = 2048;

/// A loaded classifier.
pub struct Fast {
    config: DebertaConfig,
    embeddings: Embeddings,
    layers: Vec<Layer>,
    convolution: Option<Convolution>,
    dense: Linear,
    out: Linear,
    /// Position of each distance that a row can have.
    of_distance: Vec<u32>,
    scratch: Scratch,
}

struct Embeddings {
    word: Vec<f32>,
    /// Empty where there are none.
    position: Vec<f32>,
    token_type: Vec<f32>,
    projection: Option<Linear>,
    norm: Norm,
}

struct Layer {
    qkv: Linear,
    /// `(2 * span, hidden)` each.
    position_keys: Option<Vec<f32>>,
    position_queries: Option<Vec<f32>>,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    ffn_norm: Norm,
}

struct Convolution {
    /// Over the neighbours of a token side by side: `(hidden, width * hidden)`.
    linear: Linear,
    norm: Norm,
    width: usize,
    activation: Activation,
}

#[derive(Default)]
struct Scratch {
    /// `(tokens, hidden)`: the residual stream.
    hidden: Buffer,
    /// `(tokens, embedding)`; behind the first layer the convolution's input and result.
    embedded: Buffer,
    /// `(tokens, width * hidden)`.
    neighbours: Buffer,
    /// `(tokens, 3 * hidden)`.
    qkv: Buffer,
    /// `(tokens, hidden)`.
    context: Buffer,
    /// `(tokens, intermediate)`.
    inner: Buffer,
    /// `(rows, hidden)`.
    pooled: Buffer,
}

fn activate(x: &mut [f32], by: Activation) {
    match by {
        Activation::Gelu => activation::gelu(x),
        Activation::Tanh => activation::tanh(x),
    }
}

impl Layer {
    /// `positions`: `(2 * span, hidden)`, normalised as the model says; empty without relative attention.
    fn load(
        source: Source<'_>,
        at: &LayerAt,
        relative: Option<Relative>,
        positions: &[f32],
        hidden: usize,
    ) -> Result<Self, Failure> {
        let project = |own: &Option<LinearAt>, content: usize| -> Result<Vec<f32>, Failure> {
            let part = LinearAt {
                weight: at.qkv.weight.start + content * hidden * hidden
                    ..at.qkv.weight.start + (content + 1) * hidden * hidden,
                bias: at.qkv.bias.start + content * hidden..at.qkv.bias.start + (content + 1) * hidden,
                out: hidden,
                input: hidden,
            };
            let rows = positions.len() / hidden;
            let mut projected = vec![0.0; positions.len()];
            source.linear(own.as_ref().unwrap_or(&part))?.store(positions, rows, &mut projected);
            Ok(projected)
        };
        let keys = relative.filter(|relative| relative.c2p);
        let queries = relative.filter(|relative| relative.p2c);
        Ok(Self {
            qkv: source.linear(&at.qkv)?,
            position_keys: keys.map(|_| project(&at.position_key, 1)).transpose()?,
            position_queries: queries.map(|_| project(&at.position_query, 0)).transpose()?,
            output: source.linear(&at.output)?,
            attention_norm: source.norm(&at.attention_norm)?,
            up: source.linear(&at.up)?,
            down: source.linear(&at.down)?,
            ffn_norm: source.norm(&at.ffn_norm)?,
        })
    }

    fn bytes(&self) -> usize {
        let linear = [&self.qkv, &self.output, &self.up, &self.down].into_iter().map(Linear::bytes);
        let tables = [&self.position_keys, &self.position_queries].into_iter().flatten();
        linear.sum::<usize>()
            + 4 * tables.map(Vec::len).sum::<usize>()
            + self.attention_norm.bytes()
            + self.ffn_norm.bytes()
    }
}

impl Convolution {
    fn load(source: Source<'_>, at: &ConvolutionAt, config: &DebertaConfig) -> Result<Option<Self>, Failure> {
        let Some(convolution) = config.convolution else { return Ok(None) };
        let (h, width) = (config.hidden, convolution.width);
        let stored = source.read(&at.weight)?;
        let mut weight = vec![0.0; stored.len()];
        for (to, from) in weight.chunks_exact_mut(width * h).zip(stored.chunks_exact(h * width)) {
            for (input, taps) in from.chunks_exact(width).enumerate() {
                taps.iter().enumerate().for_each(|(tap, &value)| to[tap * h + input] = value);
            }
        }
        let linear = Linear::new(&weight, h, width * h, Some(source.read(&at.bias)?));
        Ok(Some(Self { linear, norm: source.norm(&at.norm)?, width, activation: convolution.activation }))
    }

    /// `states = layer_norm(states + activation(convolution(embedded)))`; `embedded` is used up.
    fn apply(
        &self,
        embedded: &mut Buffer,
        states: &mut Buffer,
        neighbours: &mut Buffer,
        offsets: &[usize],
        eps: f32,
    ) {
        let (h, width) = (self.linear.weight.n(), self.width);
        let tokens = offsets.last().copied().unwrap_or(0);
        let neighbours = neighbours.zeroed(tokens * width * h);
        for row in offsets.windows(2) {
            for t in row[0]..row[1] {
                for tap in 0..width {
                    let from =
                        (t + tap).checked_sub(width / 2).filter(|from| (row[0]..row[1]).contains(from));
                    if let Some(from) = from {
                        neighbours[(t * width + tap) * h..][..h].copy_from_slice(&embedded[from * h..][..h]);
                    }
                }
            }
        }
        self.linear.store(neighbours, tokens, embedded);
        states.par_chunks_mut(ROWS * h).zip(embedded.par_chunks_mut(ROWS * h)).for_each(|(states, x)| {
            activate(x, self.activation);
            activation::add(states, x);
            self.norm.apply_here(states, eps);
        });
    }
}

impl Fast {
    /// Loads and packs the weights, and projects the position embeddings.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or of another shape.
    pub fn load(config: DebertaConfig, checkpoint: &Checkpoint) -> Result<Self, Failure> {
        let layout = Layout::new(&config);
        let source = Source { slots: &layout.slots, checkpoint };
        let mut positions = source.read(&layout.relative)?;
        if let Some(at) = &layout.relative_norm {
            source.norm(at)?.apply(&mut positions, config.layer_norm_eps);
        }
        let layers = layout
            .layers
            .iter()
            .map(|at| Layer::load(source, at, config.relative, &positions, config.hidden))
            .collect::<Result<_, _>>()?;
        let convolution = layout.convolution.as_ref().map(|at| Convolution::load(source, at, &config));
        let farthest = config.max_positions as i64 - 1;
        let index = |distance| config.relative.map_or(0, |relative| relative.index(distance) as u32);
        Ok(Self {
            embeddings: Embeddings {
                word: source.read(&layout.word)?,
                position: source.read(&layout.position)?,
                token_type: source.read(&layout.token_type)?,
                projection: layout.projection.as_ref().map(|at| source.linear(at)).transpose()?,
                norm: source.norm(&layout.embedding_norm)?,
            },
            layers,
            convolution: convolution.transpose()?.flatten(),
            dense: source.linear(&layout.dense)?,
            out: source.linear(&layout.out)?,
            of_distance: (-farthest..=farthest).map(index).collect(),
            scratch: Scratch::default(),
            config,
        })
    }

    /// Writes the embeddings of a piece, `(tokens, hidden)`, to the residual stream.
    fn embed(&mut self, batch: RaggedTokens<'_>, start: usize, offsets: &[usize]) {
        let Self { config, embeddings, scratch, .. } = self;
        let (e, h) = (config.embedding, config.hidden);
        let tokens = offsets.last().copied().unwrap_or(0);
        let mut positions = Vec::with_capacity(tokens);
        offsets.windows(2).for_each(|w| positions.extend(0..w[1] - w[0]));
        let embedded = scratch.embedded.resized(tokens * e);
        embedded.par_chunks_mut(ROWS * e).enumerate().for_each(|(chunk, out)| {
            for (i, out) in out.chunks_exact_mut(e).enumerate() {
                let t = chunk * ROWS + i;
                out.copy_from_slice(&embeddings.word[batch.tokens[start + t] as usize * e..][..e]);
                if !embeddings.position.is_empty() {
                    activation::add(out, &embeddings.position[positions[t] * e..][..e]);
                }
                if !embeddings.token_type.is_empty() {
                    let segment = match config.type_vocab_size {
                        1 => 0,
                        _ => batch.type_ids.get(start + t).copied().unwrap_or(0).into(),
                    };
                    activation::add(out, &embeddings.token_type[segment * e..][..e]);
                }
            }
        });
        let hidden = scratch.hidden.resized(tokens * h);
        match &embeddings.projection {
            Some(projection) => projection.store(embedded, tokens, hidden),
            None => hidden.copy_from_slice(embedded),
        }
        embeddings.norm.apply(hidden, config.layer_norm_eps);
    }

    fn score_piece(
        &mut self,
        batch: RaggedTokens<'_>,
        rows: Range<usize>,
        logits: &mut [f32],
        control: &dyn Control,
    ) -> Result<(), Failure> {
        let start = batch.offsets[rows.start] as usize;
        let offsets: Vec<usize> =
            batch.offsets[rows.start..=rows.end].iter().map(|&o| o as usize - start).collect();
        let tokens = offsets[rows.len()];
        self.embed(batch, start, &offsets);

        let Self { config, scratch, .. } = self;
        let (h, f, eps) = (config.hidden, config.intermediate, config.layer_norm_eps);
        let shape = Heads { offsets: &offsets, heads: config.heads, head_dim: config.head_dim() };
        if self.convolution.is_some() {
            scratch.embedded.resized(tokens * h).copy_from_slice(&scratch.hidden);
        }
        let mut m = tokens;
        for (i, layer) in self.layers.iter().enumerate() {
            if control.cancelled() {
                return Err(Failure::cancelled("scoring was cancelled"));
            }
            let qkv = scratch.qkv.resized(tokens * 3 * h);
            layer.qkv.store(&scratch.hidden, tokens, qkv);
            let context = scratch.context.resized(tokens * h);
            let positions = Positions {
                keys: layer.position_keys.as_deref(),
                queries: layer.position_queries.as_deref(),
                of_distance: &self.of_distance,
            };
            attend_disentangled(qkv, shape, positions, config.scale(), context);
            let convolution = if i == 0 { self.convolution.as_ref() } else { None };
            if i + 1 == self.layers.len() && convolution.is_none() {
                m = rows.len();
                keep_firsts(&mut scratch.hidden, &offsets, h);
                keep_firsts(&mut scratch.context, &offsets, h);
            }
            let stream = &mut scratch.hidden;
            layer.output.add(&scratch.context, m, stream);
            layer.attention_norm.apply(stream, eps);
            let inner = scratch.inner.resized(m * f);
            layer.up.gelu(stream, m, inner);
            layer.down.add(inner, m, stream);
            layer.ffn_norm.apply(stream, eps);
            if let Some(convolution) = convolution {
                convolution.apply(&mut scratch.embedded, stream, &mut scratch.neighbours, &offsets, eps);
            }
        }
        if m != rows.len() {
            keep_firsts(&mut scratch.hidden, &offsets, h);
        }
        let pooled = scratch.pooled.resized(rows.len() * h);
        self.dense.store(&scratch.hidden, rows.len(), pooled);
        activate(pooled, config.pooler_activation);
        self.out.store(pooled, rows.len(), logits);
        Ok(())
    }
}

impl Classifier for Fast {
    fn info(&self) -> ModelInfo {
        let Embeddings { word, position, token_type, projection, norm } = &self.embeddings;
        let tables = 4 * (word.len() + position.len() + token_type.len()) + norm.bytes();
        let linear = self.dense.bytes() + self.out.bytes() + projection.as_ref().map_or(0, Linear::bytes);
        let convolution = self.convolution.as_ref().map_or(0, |c| c.linear.bytes() + c.norm.bytes());
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        info(&self.config, tables + linear + convolution + layers)
    }

    fn segments(&self) -> usize {
        self.config.type_vocab_size
    }

    fn score(&mut self, batch: RaggedTokens<'_>, control: &dyn Control) -> Result<Vec<f32>, Failure> {
        let labels = self.config.labels;
        let mut logits = vec![0.0; batch.rows() * labels];
        for rows in pieces(batch.offsets, PIECE_TOKENS) {
            let (to, end) = (&mut logits[rows.start * labels..rows.end * labels], rows.end as u64);
            self.score_piece(batch, rows, to, control)?;
            control.progress(end, batch.rows() as u64);
        }
        Ok(logits)
    }
}
