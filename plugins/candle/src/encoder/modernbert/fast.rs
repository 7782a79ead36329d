//! Inference in f32 on the CPU over packed weights and ragged rows.
//!
//! As in the BERT-like [fast path](crate::encoder::fast), all tokens of a piece go through each linear layer in one
//! product and attention runs row by row. Where the head reads first tokens only, everything behind the last layer's
//! attention is computed for those alone.

use std::ops::Range;

use cappy_plugin_abi::{Control, Failure, ModelInfo, RaggedTokens};
use rayon::prelude::*;

use super::info;
use super::layout::{LayerAt, Layout};
use crate::encoder::parts::{Linear, Norm, ROWS, Source, keep_firsts};
use crate::encoder::pieces::pieces;
use crate::encoder::scorer::Classifier;
use crate::kernels::attention::{Heads, attend_banded};
use crate::kernels::rotary::Rotary;
use crate::kernels::{Buffer, activation};
use crate::weights::Checkpoint;
use cappy_plugin_models::encoder::modernbert::{Attention, ModernBertConfig, Pooling};

/// Tokens of a piece: enough that reading the weights costs nothing, few enough that activations stay near.
const PIECE_TOKENS: usize = 2048;

/// A loaded classifier.
pub struct Fast {
    config: ModernBertConfig,
    word: Vec<f32>,
    embedding_norm: Norm,
    layers: Vec<Layer>,
    final_norm: Norm,
    dense: Linear,
    head_norm: Norm,
    out: Linear,
    /// Of each base period that occurs.
    rotary: Vec<(f64, Rotary)>,
    scratch: Scratch,
}

struct Layer {
    attention: Attention,
    /// Index into the rotary tables.
    rotary: usize,
    attention_norm: Option<Norm>,
    qkv: Linear,
    output: Linear,
    mlp_norm: Norm,
    up: Linear,
    gate: Linear,
    down: Linear,
}

#[derive(Default)]
struct Scratch {
    /// `(tokens, hidden)`: the residual stream.
    hidden: Buffer,
    /// `(tokens, hidden)`: its normalisation, then attention's result.
    normed: Buffer,
    /// `(tokens, 3 * hidden)`.
    qkv: Buffer,
    /// `(tokens, intermediate)` each.
    inner: Buffer,
    gate: Buffer,
    /// `(rows, hidden)` each: what the head reads, and its inner states.
    pooled: Buffer,
    dense: Buffer,
}

impl Layer {
    fn load(
        source: Source<'_>,
        at: &LayerAt,
        attention: Attention,
        rotary: usize,
        config: &ModernBertConfig,
    ) -> Result<Self, Failure> {
        let (h, f) = (config.hidden, config.intermediate);
        // One weight in the checkpoint, two here: each result then lies in memory of its own.
        let weight = source.read(&at.up.weight)?;
        let bias = if at.up.bias.is_empty() { None } else { Some(source.read(&at.up.bias)?) };
        let half = |rows: Range<usize>| {
            let bias = bias.as_ref().map(|bias| bias[rows.clone()].to_vec());
            Linear::new(&weight[rows.start * h..rows.end * h], f, h, bias)
        };
        Ok(Self {
            attention,
            rotary,
            attention_norm: at.attention_norm.as_ref().map(|at| source.norm(at)).transpose()?,
            qkv: source.linear(&at.qkv)?,
            output: source.linear(&at.output)?,
            mlp_norm: source.norm(&at.mlp_norm)?,
            up: half(0..f),
            gate: half(f..2 * f),
            down: source.linear(&at.down)?,
        })
    }

    fn bytes(&self) -> usize {
        let linear = [&self.qkv, &self.output, &self.up, &self.gate, &self.down];
        linear.into_iter().map(Linear::bytes).sum::<usize>()
            + self.mlp_norm.bytes()
            + self.attention_norm.as_ref().map_or(0, Norm::bytes)
    }
}

impl Fast {
    /// Loads and packs the weights.
    ///
    /// # Errors
    /// `BadModel` naming the tensor that is missing or of another shape.
    pub fn load(config: ModernBertConfig, checkpoint: &Checkpoint) -> Result<Self, Failure> {
        let layout = Layout::new(&config);
        let source = Source { slots: &layout.slots, checkpoint };
        let mut rotary: Vec<(f64, Rotary)> = Vec::new();
        let mut table = |theta: f64| match rotary.iter().position(|(known, _)| *known == theta) {
            Some(known) => known,
            None => {
                rotary.push((theta, Rotary::new(config.head_dim(), theta)));
                rotary.len() - 1
            }
        };
        let layers = layout.layers.iter().zip(&config.attention);
        let layers = layers
            .map(|(at, &attention)| Layer::load(source, at, attention, table(attention.theta), &config))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            word: source.read(&layout.word)?,
            embedding_norm: source.norm(&layout.embedding_norm)?,
            layers,
            final_norm: source.norm(&layout.final_norm)?,
            dense: source.linear(&layout.dense)?,
            head_norm: source.norm(&layout.head_norm)?,
            out: source.linear(&layout.out)?,
            rotary,
            scratch: Scratch::default(),
            config,
        })
    }

    fn score_piece(
        &mut self,
        batch: RaggedTokens<'_>,
        rows: Range<usize>,
        logits: &mut [f32],
        control: &dyn Control,
    ) -> Result<(), Failure> {
        let Self { config, scratch, rotary, .. } = self;
        let (h, f, eps) = (config.hidden, config.intermediate, config.norm_eps);
        let start = batch.offsets[rows.start] as usize;
        let offsets: Vec<usize> =
            batch.offsets[rows.start..=rows.end].iter().map(|&o| o as usize - start).collect();
        let tokens = offsets[rows.len()];
        let longest = offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        rotary.iter_mut().for_each(|(_, rotary)| rotary.reserve(longest));
        let shape = Heads { offsets: &offsets, heads: config.heads, head_dim: config.head_dim() };

        let hidden = scratch.hidden.resized(tokens * h);
        let ids = &batch.tokens[start..start + tokens];
        hidden.par_chunks_mut(ROWS * h).zip(ids.par_chunks(ROWS)).for_each(|(out, ids)| {
            for (out, &id) in out.chunks_exact_mut(h).zip(ids) {
                out.copy_from_slice(&self.word[id as usize * h..][..h]);
            }
            self.embedding_norm.apply_here(out, eps);
        });

        let mut firsts_only = false;
        for (i, layer) in self.layers.iter().enumerate() {
            if control.cancelled() {
                return Err(Failure::cancelled("scoring was cancelled"));
            }
            let qkv = scratch.qkv.resized(tokens * 3 * h);
            let normed = scratch.normed.resized(tokens * h);
            match &layer.attention_norm {
                Some(norm) => {
                    normed.copy_from_slice(&scratch.hidden);
                    norm.apply(normed, eps);
                    layer.qkv.store(normed, tokens, qkv);
                }
                None => layer.qkv.store(&scratch.hidden, tokens, qkv),
            }
            rotary[layer.rotary].1.turn(qkv, shape);
            attend_banded(qkv, shape, layer.attention.window, normed);

            let mut m = tokens;
            if i + 1 == self.layers.len() && config.pooling == Pooling::First {
                firsts_only = true;
                m = rows.len();
                keep_firsts(&mut scratch.hidden, &offsets, h);
                keep_firsts(&mut scratch.normed, &offsets, h);
            }
            let (stream, normed) = (&mut scratch.hidden, &mut scratch.normed);
            layer.output.add(normed, m, stream);
            normed.copy_from_slice(stream);
            layer.mlp_norm.apply(normed, eps);
            let (inner, gate) = (scratch.inner.resized(m * f), scratch.gate.resized(m * f));
            layer.up.store(normed, m, inner);
            layer.gate.store(normed, m, gate);
            inner
                .par_chunks_mut(ROWS * f)
                .zip(gate.par_chunks(ROWS * f))
                .for_each(|(inner, gate)| activation::gelu_gate(inner, gate));
            layer.down.add(inner, m, stream);
        }

        self.final_norm.apply(&mut scratch.hidden, eps);
        let pooled = scratch.pooled.resized(rows.len() * h);
        if firsts_only {
            pooled.copy_from_slice(&scratch.hidden);
        } else {
            for (pooled, row) in pooled.chunks_exact_mut(h).zip(offsets.windows(2)) {
                pooled.fill(0.0);
                let states = &scratch.hidden[row[0] * h..row[1] * h];
                states.chunks_exact(h).for_each(|state| activation::add(pooled, state));
                activation::scale(pooled, 1.0 / (row[1] - row[0]) as f32);
            }
        }
        let dense = scratch.dense.resized(rows.len() * h);
        self.dense.gelu(pooled, rows.len(), dense);
        self.head_norm.apply(dense, eps);
        self.out.store(dense, rows.len(), logits);
        Ok(())
    }
}

impl Classifier for Fast {
    fn info(&self) -> ModelInfo {
        let linear = self.dense.bytes() + self.out.bytes();
        let norms = self.embedding_norm.bytes() + self.final_norm.bytes() + self.head_norm.bytes();
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        info(&self.config, 4 * self.word.len() + linear + norms + layers)
    }

    fn segments(&self) -> usize {
        0
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
