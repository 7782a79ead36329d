//! What follows attention in every layer: projection, residual, normalisation, feed-forward network.
//!
//! It works on any set of tokens: on all of them, and in the last layer on first tokens only.

use cappy_plugin_abi::random::fold;
use rayon::prelude::*;

use super::super::gradients::Gradients;
use super::linear::{LinearBackward, add_columns};
use super::{ROWS, Site, drop_rows, norm_weights};
use crate::encoder::config::{EncoderConfig, Family};
use crate::encoder::layout::{LayerAt, Layout, NormAt};
use crate::kernels::dropout::Dropout;
use crate::kernels::{Buffer, Epilogue, Matrix, Packed, activation, gemm, rowwise};

/// Which token (or row) of the micro-batch a row of states is: the key of its dropout.
#[derive(Clone, Copy)]
pub(super) enum Index<'a> {
    /// Consecutive ones.
    From(usize),
    /// The first tokens of rows: first token of the piece, offsets in it.
    Firsts(usize, &'a [usize]),
}

impl Index<'_> {
    pub fn of(self, i: usize) -> u64 {
        match self {
            Self::From(first) => (first + i) as u64,
            Self::Firsts(first, offsets) => (first + offsets[i]) as u64,
        }
    }
}

/// What a layer normalisation keeps.
#[derive(Default)]
pub(super) struct KeptNorm {
    pub normalised: Buffer,
    pub inverse: Buffer,
}

/// Activations of a tail.
#[derive(Default)]
pub(super) struct KeptTail {
    /// Attention's result, written by the layer.
    pub context: Buffer,
    attention_norm: KeptNorm,
    /// Output of the attention block.
    attended: Buffer,
    /// gelu(up), and its derivative.
    inner: Buffer,
    slope: Buffer,
    ffn_norm: KeptNorm,
}

/// What a tail needs to know, forward and backward.
#[derive(Clone, Copy)]
pub(super) struct Tail<'a> {
    pub config: &'a EncoderConfig,
    pub weights: &'a [f32],
    pub at: &'a LayerAt,
    pub layer: usize,
    /// Number of tokens that it works on.
    pub tokens: usize,
    pub index: Index<'a>,
    pub dropout: &'a Dropout,
}

/// Memory of [`Tail::backward`].
pub(super) struct TailMemory<'a> {
    pub branch: &'a mut Buffer,
    pub inner: &'a mut Buffer,
    pub context: &'a mut Buffer,
}

impl Tail<'_> {
    /// From `kept.context` and the layer's input `x` to its output `y`, `(tokens, hidden)` each.
    pub fn forward(self, packs: &[Packed; 4], x: &[f32], kept: &mut KeptTail, y: &mut Buffer) {
        let (h, f, m) = (self.config.hidden, self.config.intermediate, self.tokens);
        let bias = |range: &std::ops::Range<usize>| Epilogue::Bias(&self.weights[range.clone()]);
        let attended = kept.attended.resized(m * h);
        gemm(Matrix::new(&kept.context, m, h), &packs[1], attended, h, bias(&self.at.output.bias));
        self.close_block(
            attended,
            x,
            self.attention_site(),
            &self.at.attention_norm,
            &mut kept.attention_norm,
        );

        let inner = kept.inner.resized(m * f);
        gemm(Matrix::new(attended, m, h), &packs[2], inner, f, bias(&self.at.up.bias));
        let slope = kept.slope.resized(m * f);
        inner
            .par_chunks_mut(ROWS * f)
            .zip(slope.par_chunks_mut(ROWS * f))
            .for_each(|(inner, slope)| activation::gelu_with_slope(inner, slope));
        let y = y.resized(m * h);
        gemm(Matrix::new(inner, m, f), &packs[3], y, h, bias(&self.at.down.bias));
        let site = Some(Site::FeedForward(self.layer));
        self.close_block(y, attended, site, &self.at.ffn_norm, &mut kept.ffn_norm);
    }

    /// DistilBERT has no dropout behind attention's projection.
    fn attention_site(&self) -> Option<Site> {
        (self.config.family != Family::DistilBert).then_some(Site::AttentionOutput(self.layer))
    }

    /// `x = layer_norm(dropout(x) + residual)`, kept.
    fn close_block(
        &self,
        x: &mut [f32],
        residual: &[f32],
        site: Option<Site>,
        at: &NormAt,
        kept: &mut KeptNorm,
    ) {
        let (weight, bias) = norm_weights(self.weights, at);
        let hidden = weight.len();
        let key = site.map(|site| self.dropout.site(site));
        let normalised = kept.normalised.resized(x.len());
        let inverse = kept.inverse.resized(x.len() / hidden);
        x.par_chunks_mut(ROWS * hidden)
            .zip(residual.par_chunks(ROWS * hidden))
            .zip(normalised.par_chunks_mut(ROWS * hidden))
            .zip(inverse.par_chunks_mut(ROWS))
            .enumerate()
            .for_each(|(chunk, (((x, residual), normalised), inverse))| {
                for (i, x) in x.chunks_exact_mut(hidden).enumerate() {
                    let Some(key) = key else { break };
                    self.dropout.apply(x, fold(key, self.index.of(chunk * ROWS + i)));
                }
                activation::add(x, residual);
                rowwise::layer_norm_kept(x, weight, bias, self.config.layer_norm_eps, normalised, inverse);
            });
    }

    /// `stream`, the gradient of the output, becomes that of the layer's input as it goes past attention;
    /// `memory.context` gets that of attention's result.
    pub fn backward(
        self,
        kept: &KeptTail,
        linear: &mut LinearBackward<'_>,
        stream: &mut [f32],
        memory: TailMemory<'_>,
    ) {
        let (h, f, m) = (self.config.hidden, self.config.intermediate, self.tokens);
        let branch = memory.branch.resized(m * h);
        let norm = |stream: &mut [f32], at: &NormAt, kept: &KeptNorm, linear: &mut LinearBackward<'_>| {
            norm_backward(stream, self.weights, linear.layout, at, kept, linear.gradients);
        };
        norm(stream, &self.at.ffn_norm, &kept.ffn_norm, linear);
        self.open_block(stream, branch, Some(Site::FeedForward(self.layer)));
        let d_inner = memory.inner.resized(m * f);
        linear.run(&self.at.down, &kept.inner, branch, m, d_inner, Epilogue::Store);
        d_inner
            .par_chunks_mut(ROWS * f)
            .zip(kept.slope.par_chunks(ROWS * f))
            .for_each(|(d, slope)| activation::multiply(d, slope));
        linear.run(&self.at.up, &kept.attended, d_inner, m, stream, Epilogue::Add);

        norm(stream, &self.at.attention_norm, &kept.attention_norm, linear);
        self.open_block(stream, branch, self.attention_site());
        let d_context = memory.context.resized(m * h);
        linear.run(&self.at.output, &kept.context, branch, m, d_context, Epilogue::Store);
    }

    /// `branch = dropout(stream)`: the gradient that goes into the block, `stream` being what goes past it.
    fn open_block(&self, stream: &[f32], branch: &mut [f32], site: Option<Site>) {
        branch.copy_from_slice(stream);
        if let Some(site) = site {
            drop_rows(branch, self.config.hidden, self.index, self.dropout, site);
        }
    }
}

/// `stream` becomes the gradient of a normalisation's input.
pub(super) fn norm_backward(
    stream: &mut [f32],
    weights: &[f32],
    layout: &Layout,
    at: &NormAt,
    kept: &KeptNorm,
    gradients: &mut Gradients,
) {
    let weight = &weights[at.weight.clone()];
    let h = weight.len();
    add_columns(stream, Some(&kept.normalised), gradients.at(layout, &at.weight));
    add_columns(stream, None, gradients.at(layout, &at.bias));
    stream
        .par_chunks_mut(ROWS * h)
        .zip(kept.normalised.par_chunks(ROWS * h))
        .zip(kept.inverse.par_chunks(ROWS))
        .for_each(|((d, normalised), inverse)| rowwise::layer_norm_backward(d, weight, normalised, inverse));
}
