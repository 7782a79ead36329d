//! Forward and backward passes of a classifier over ragged rows, written out by hand.
//!
//! Activations that the backward pass needs are kept in buffers that are reused from call to call. Sums run in a
//! fixed order, so gradients do not depend on the number of threads. Tested against PyTorch (fixtures) and against
//! candle's autograd over the plain model.

use cappy_plugin_abi::random::fold;
use rayon::prelude::*;

use super::gradients::Gradients;
use crate::encoder::config::{EncoderConfig, Family};
use crate::encoder::layout::{Layout, LinearAt, NormAt};
use crate::kernels::attention::{Heads, attend_backward, attend_kept};
use crate::kernels::dropout::Dropout;
use crate::kernels::{Buffer, Epilogue, Matrix, Packed, activation, gemm, rowwise};

/// Rows of hidden states handled by one task.
const ROWS: usize = 32;

/// Whole rows of a micro-batch.
pub(super) struct Piece<'a> {
    /// Ids of these rows.
    pub tokens: &'a [u32],
    /// Segments of these rows, or empty.
    pub type_ids: &'a [u8],
    /// `[rows + 1]`, starting at 0.
    pub offsets: Vec<usize>,
    /// Index of the first row, and of its first token, in the micro-batch: dropout is keyed by these.
    pub first_row: usize,
    /// See `first_row`.
    pub first_token: usize,
}

impl Piece<'_> {
    fn rows(&self) -> usize {
        self.offsets.len() - 1
    }
}

/// Places of dropout, as transformers has them.
#[derive(Clone, Copy)]
enum Site {
    Embeddings,
    Attention(usize),
    AttentionOutput(usize),
    FeedForward(usize),
    /// RoBERTa's head, before its dense layer.
    HeadInput,
    /// Before the last projection.
    HeadInner,
}

impl Site {
    fn number(self) -> u64 {
        match self {
            Self::HeadInput => 0,
            Self::HeadInner => 1,
            Self::Embeddings => 2,
            Self::Attention(layer) => 3 + 3 * layer as u64,
            Self::AttentionOutput(layer) => 4 + 3 * layer as u64,
            Self::FeedForward(layer) => 5 + 3 * layer as u64,
        }
    }
}

#[derive(Default)]
struct KeptNorm {
    normalised: Buffer,
    inverse: Buffer,
}

#[derive(Default)]
struct KeptLayer {
    qkv: Buffer,
    probabilities: Buffer,
    context: Buffer,
    attention_norm: KeptNorm,
    /// Output of the attention block.
    attended: Buffer,
    /// gelu(up), and its derivative.
    inner: Buffer,
    slope: Buffer,
    ffn_norm: KeptNorm,
}

/// Weights packed for the forward pass; valid until the next update.
#[derive(Default)]
struct Packs {
    layers: Vec<[Packed; 4]>,
    dense: Packed,
    out: Packed,
    fresh: bool,
}

/// Memory of the backward pass.
#[derive(Default)]
struct Backward {
    weight: Packed,
    input: Packed,
    /// `(tokens, hidden)`: gradient of the residual stream.
    stream: Buffer,
    /// `(tokens, hidden)`: gradient of a block's output.
    branch: Buffer,
    context: Buffer,
    qkv: Buffer,
    inner: Buffer,
    pooled: Buffer,
    first: Buffer,
}

/// The passes and their memory.
pub(super) struct Network {
    config: EncoderConfig,
    layout: Layout,
    packs: Packs,
    embedding_norm: KeptNorm,
    /// Input of each layer, and the output of the last.
    streams: Vec<Buffer>,
    layers: Vec<KeptLayer>,
    /// `(rows, hidden)`: the head's input after dropout.
    first: Buffer,
    /// `(rows, hidden)`: tanh output.
    pooled: Buffer,
    /// `(rows, hidden)`: the last projection's input.
    pooled_dropped: Buffer,
    logits: Buffer,
    backward: Backward,
}

/// Applies dropout to `(tokens, hidden)` states, token by token.
fn drop_rows(x: &mut [f32], hidden: usize, first: usize, dropout: &Dropout, site: Site) {
    let key = dropout.site(site.number());
    x.par_chunks_mut(ROWS * hidden).enumerate().for_each(|(chunk, x)| {
        for (i, x) in x.chunks_exact_mut(hidden).enumerate() {
            dropout.apply(x, fold(key, (first + chunk * ROWS + i) as u64));
        }
    });
}

/// `x = layer_norm(dropout(x) + residual)`, kept.
fn close_block(
    x: &mut [f32],
    residual: &[f32],
    first_token: usize,
    (dropout, site): (&Dropout, Site),
    (weight, bias, eps): (&[f32], &[f32], f32),
    kept: &mut KeptNorm,
) {
    let hidden = weight.len();
    let key = dropout.site(site.number());
    let normalised = kept.normalised.resized(x.len());
    let inverse = kept.inverse.resized(x.len() / hidden);
    x.par_chunks_mut(ROWS * hidden)
        .zip(residual.par_chunks(ROWS * hidden))
        .zip(normalised.par_chunks_mut(ROWS * hidden))
        .zip(inverse.par_chunks_mut(ROWS))
        .enumerate()
        .for_each(|(chunk, (((x, residual), normalised), inverse))| {
            for (i, (x, residual)) in
                x.chunks_exact_mut(hidden).zip(residual.chunks_exact(hidden)).enumerate()
            {
                dropout.apply(x, fold(key, (first_token + chunk * ROWS + i) as u64));
                activation::add(x, residual);
            }
            rowwise::layer_norm_kept(x, weight, bias, eps, normalised, inverse);
        });
}

impl Network {
    /// Memory grows with the first batches.
    pub fn new(config: EncoderConfig, layout: Layout) -> Self {
        let layers = config.layers;
        Self {
            config,
            layout,
            packs: Packs { layers: (0..layers).map(|_| Default::default()).collect(), ..Packs::default() },
            embedding_norm: KeptNorm::default(),
            streams: (0..=layers).map(|_| Buffer::new()).collect(),
            layers: (0..layers).map(|_| KeptLayer::default()).collect(),
            first: Buffer::new(),
            pooled: Buffer::new(),
            pooled_dropped: Buffer::new(),
            logits: Buffer::new(),
            backward: Backward::default(),
        }
    }

    /// Where the parameters lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// To be called whenever weights were changed.
    pub fn weights_changed(&mut self) {
        self.packs.fresh = false;
    }

    fn pack(&mut self, weights: &[f32]) {
        if self.packs.fresh {
            return;
        }
        let fill = |pack: &mut Packed, at: &LinearAt| {
            pack.fill(Matrix::new(&weights[at.weight.clone()], at.out, at.input).t());
        };
        for (packs, at) in self.packs.layers.iter_mut().zip(&self.layout.layers) {
            for (pack, at) in packs.iter_mut().zip([&at.qkv, &at.output, &at.up, &at.down]) {
                fill(pack, at);
            }
        }
        fill(&mut self.packs.dense, &self.layout.dense);
        fill(&mut self.packs.out, &self.layout.out);
        self.packs.fresh = true;
    }

    /// Logits `(rows, labels)` of a piece, with everything kept that [`Network::backward`] needs.
    pub fn forward(&mut self, weights: &[f32], piece: &Piece<'_>, dropout: &Dropout) -> &[f32] {
        self.pack(weights);
        self.embed(weights, piece, dropout);
        for layer in 0..self.config.layers {
            self.layer_forward(layer, weights, piece, dropout);
        }
        self.head_forward(weights, piece, dropout);
        &self.logits
    }

    fn embed(&mut self, weights: &[f32], piece: &Piece<'_>, dropout: &Dropout) {
        let Self { config, layout, .. } = self;
        let h = config.hidden;
        let tables = (&weights[layout.word.clone()], &weights[layout.position.clone()]);
        let types = &weights[layout.token_type.clone()];
        let stream = self.streams[0].resized(piece.tokens.len() * h);
        for w in piece.offsets.windows(2) {
            let row = &piece.tokens[w[0]..w[1]];
            for ((t, &id), position) in (w[0]..).zip(row).zip(config.positions(row)) {
                let x = &mut stream[t * h..][..h];
                x.copy_from_slice(&tables.0[id as usize * h..][..h]);
                activation::add(x, &types[segment(config, piece, t) * h..][..h]);
                activation::add(x, &tables.1[position * h..][..h]);
            }
        }
        let (weight, bias) = norm_weights(weights, &layout.embedding_norm);
        let normalised = self.embedding_norm.normalised.resized(stream.len());
        let inverse = self.embedding_norm.inverse.resized(piece.tokens.len());
        rowwise::layer_norm_kept(stream, weight, bias, config.layer_norm_eps, normalised, inverse);
        drop_rows(stream, h, piece.first_token, dropout, Site::Embeddings);
    }

    fn layer_forward(&mut self, index: usize, weights: &[f32], piece: &Piece<'_>, dropout: &Dropout) {
        let Self { config, layout, packs, streams, layers, .. } = self;
        let (at, packs, kept) = (&layout.layers[index], &packs.layers[index], &mut layers[index]);
        let (before, after) = streams.split_at_mut(index + 1);
        let (x, y) = (&before[index], &mut after[0]);
        let (h, f, m) = (config.hidden, config.intermediate, piece.tokens.len());
        let eps = config.layer_norm_eps;
        let bias = |at: &LinearAt| &weights[at.bias.clone()];
        let shape = Heads { offsets: &piece.offsets, heads: config.heads, head_dim: config.head_dim() };

        let qkv = kept.qkv.resized(m * 3 * h);
        gemm(Matrix::new(x, m, h), &packs[0], qkv, 3 * h, Epilogue::Bias(bias(&at.qkv)));
        let probabilities = kept.probabilities.resized(shape.probabilities());
        let context = kept.context.resized(m * h);
        attend_kept(qkv, shape, attention_dropout(dropout, piece, index), probabilities, context);
        let attended = kept.attended.resized(m * h);
        gemm(Matrix::new(context, m, h), &packs[1], attended, h, Epilogue::Bias(bias(&at.output)));
        let (weight, shift) = norm_weights(weights, &at.attention_norm);
        let site = (dropout, Site::AttentionOutput(index));
        close_block(attended, x, piece.first_token, site, (weight, shift, eps), &mut kept.attention_norm);

        let inner = kept.inner.resized(m * f);
        gemm(Matrix::new(attended, m, h), &packs[2], inner, f, Epilogue::Bias(bias(&at.up)));
        let slope = kept.slope.resized(m * f);
        inner
            .par_chunks_mut(ROWS * f)
            .zip(slope.par_chunks_mut(ROWS * f))
            .for_each(|(inner, slope)| activation::gelu_with_slope(inner, slope));
        let y = y.resized(m * h);
        gemm(Matrix::new(inner, m, f), &packs[3], y, h, Epilogue::Bias(bias(&at.down)));
        let (weight, shift) = norm_weights(weights, &at.ffn_norm);
        let site = (dropout, Site::FeedForward(index));
        close_block(y, attended, piece.first_token, site, (weight, shift, eps), &mut kept.ffn_norm);
    }

    fn head_forward(&mut self, weights: &[f32], piece: &Piece<'_>, dropout: &Dropout) {
        let Self { config, layout, packs, .. } = self;
        let (h, rows) = (config.hidden, piece.rows());
        let first = self.first.resized(rows * h);
        let last = &self.streams[config.layers];
        for (to, &t) in first.chunks_exact_mut(h).zip(&piece.offsets) {
            to.copy_from_slice(&last[t * h..][..h]);
        }
        if config.family != Family::Bert {
            drop_rows(first, h, piece.first_row, dropout, Site::HeadInput);
        }
        let pooled = self.pooled.resized(rows * h);
        let bias = &weights[layout.dense.bias.clone()];
        gemm(Matrix::new(first, rows, h), &packs.dense, pooled, h, Epilogue::Bias(bias));
        activation::tanh(pooled);
        let dropped = self.pooled_dropped.resized(rows * h);
        dropped.copy_from_slice(pooled);
        drop_rows(dropped, h, piece.first_row, dropout, Site::HeadInner);
        let logits = self.logits.resized(rows * config.labels);
        let bias = &weights[layout.out.bias.clone()];
        gemm(Matrix::new(dropped, rows, h), &packs.out, logits, config.labels, Epilogue::Bias(bias));
    }

    /// Adds the gradients of the piece that was last given to [`Network::forward`], with the same dropout.
    pub fn backward(
        &mut self,
        weights: &[f32],
        piece: &Piece<'_>,
        dropout: &Dropout,
        d_logits: &[f32],
        gradients: &mut Gradients,
    ) {
        self.head_backward(weights, piece, dropout, d_logits, gradients);
        for layer in (0..self.config.layers).rev() {
            self.layer_backward(layer, weights, piece, dropout, gradients);
        }
        self.embed_backward(weights, piece, dropout, gradients);
    }

    fn head_backward(
        &mut self,
        weights: &[f32],
        piece: &Piece<'_>,
        dropout: &Dropout,
        d_logits: &[f32],
        gradients: &mut Gradients,
    ) {
        let Self { config, layout, backward, .. } = self;
        let Backward { weight, input, stream, pooled, first, .. } = backward;
        let (h, rows) = (config.hidden, piece.rows());
        let d_pooled = pooled.resized(rows * h);
        let mut linear = LinearBackward { weights, layout, weight, input, gradients };
        linear.run(&layout.out, &self.pooled_dropped, d_logits, rows, d_pooled, Epilogue::Store);
        drop_rows(d_pooled, h, piece.first_row, dropout, Site::HeadInner);
        for (d, &y) in d_pooled.iter_mut().zip(self.pooled.iter()) {
            *d *= 1.0 - y * y;
        }
        let d_first = first.resized(rows * h);
        linear.run(&layout.dense, &self.first, d_pooled, rows, d_first, Epilogue::Store);
        if config.family != Family::Bert {
            drop_rows(d_first, h, piece.first_row, dropout, Site::HeadInput);
        }
        let stream = stream.zeroed(piece.tokens.len() * h);
        for (from, &t) in d_first.chunks_exact(h).zip(&piece.offsets) {
            stream[t * h..][..h].copy_from_slice(from);
        }
    }

    fn layer_backward(
        &mut self,
        index: usize,
        weights: &[f32],
        piece: &Piece<'_>,
        dropout: &Dropout,
        gradients: &mut Gradients,
    ) {
        let Self { config, layout, backward, streams, layers, .. } = self;
        let (at, kept, x) = (&layout.layers[index], &layers[index], &streams[index]);
        let (h, f, m) = (config.hidden, config.intermediate, piece.tokens.len());
        let shape = Heads { offsets: &piece.offsets, heads: config.heads, head_dim: config.head_dim() };
        let Backward { weight, input, stream, branch, context, qkv, inner, .. } = backward;
        let branch = branch.resized(m * h);

        norm_backward(stream, weights, layout, &at.ffn_norm, &kept.ffn_norm, gradients);
        open_block(stream, branch, piece.first_token, dropout, Site::FeedForward(index), h);
        let mut linear = LinearBackward { weights, layout, weight, input, gradients };
        let d_inner = inner.resized(m * f);
        linear.run(&at.down, &kept.inner, branch, m, d_inner, Epilogue::Store);
        d_inner
            .par_chunks_mut(ROWS * f)
            .zip(kept.slope.par_chunks(ROWS * f))
            .for_each(|(d, slope)| activation::multiply(d, slope));
        linear.run(&at.up, &kept.attended, d_inner, m, stream, Epilogue::Add);

        norm_backward(stream, weights, layout, &at.attention_norm, &kept.attention_norm, linear.gradients);
        open_block(stream, branch, piece.first_token, dropout, Site::AttentionOutput(index), h);
        let d_context = context.resized(m * h);
        linear.run(&at.output, &kept.context, branch, m, d_context, Epilogue::Store);
        let d_qkv = qkv.resized(m * 3 * h);
        let drop = attention_dropout(dropout, piece, index);
        attend_backward(&kept.qkv, &kept.probabilities, d_context, shape, drop, d_qkv);
        linear.run(&at.qkv, x, d_qkv, m, stream, Epilogue::Add);
    }

    fn embed_backward(
        &mut self,
        weights: &[f32],
        piece: &Piece<'_>,
        dropout: &Dropout,
        gradients: &mut Gradients,
    ) {
        let Self { config, layout, backward, .. } = self;
        let h = config.hidden;
        let stream = &mut backward.stream;
        drop_rows(stream, h, piece.first_token, dropout, Site::Embeddings);
        norm_backward(stream, weights, layout, &layout.embedding_norm, &self.embedding_norm, gradients);
        for w in piece.offsets.windows(2) {
            let row = &piece.tokens[w[0]..w[1]];
            for ((t, &id), position) in (w[0]..).zip(row).zip(config.positions(row)) {
                let d = &stream[t * h..][..h];
                // As PyTorch's `padding_idx`: the pad entries get no gradient.
                if id != config.pad_token_id {
                    activation::add(&mut gradients.at(layout, &layout.word)[id as usize * h..][..h], d);
                }
                if position >= config.first_position() {
                    activation::add(&mut gradients.at(layout, &layout.position)[position * h..][..h], d);
                }
                let segment = segment(config, piece, t);
                activation::add(&mut gradients.at(layout, &layout.token_type)[segment * h..][..h], d);
            }
        }
    }
}

fn segment(config: &EncoderConfig, piece: &Piece<'_>, token: usize) -> usize {
    if config.type_vocab_size > 1 { piece.type_ids.get(token).copied().unwrap_or(0).into() } else { 0 }
}

fn norm_weights<'a>(weights: &'a [f32], at: &NormAt) -> (&'a [f32], &'a [f32]) {
    (&weights[at.weight.clone()], &weights[at.bias.clone()])
}

/// Dropout of a layer's attention matrices.
fn attention_dropout<'a>(
    dropout: &'a Dropout,
    piece: &Piece<'_>,
    layer: usize,
) -> impl Fn(usize, usize, usize, &mut [f32]) + Sync + use<'a> {
    let (key, first) = (dropout.site(Site::Attention(layer).number()), piece.first_row);
    move |row, head, query, weights| {
        if dropout.active() {
            let key = fold(fold(fold(key, (first + row) as u64), head as u64), query as u64);
            dropout.apply(weights, key);
        }
    }
}

/// `stream` becomes the gradient of a normalisation's input.
fn norm_backward(
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

/// `branch = dropout(stream)`: the gradient that goes into the block, `stream` being what goes past it.
fn open_block(
    stream: &[f32],
    branch: &mut [f32],
    first: usize,
    dropout: &Dropout,
    site: Site,
    hidden: usize,
) {
    branch.copy_from_slice(stream);
    drop_rows(branch, hidden, first, dropout, site);
}

/// Adds the column sums of `d` (times `by`, elementwise) to `sums`, rows in order.
fn add_columns(d: &[f32], by: Option<&[f32]>, sums: &mut [f32]) {
    const COLUMNS: usize = 256;
    let width = sums.len();
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sums)| {
        let first = chunk * COLUMNS;
        match by {
            None => rowwise::add_columns(d, width, first, sums),
            Some(by) => rowwise::add_columns_of_product(d, by, width, first, sums),
        }
    });
}

/// Gradients of a linear layer.
struct LinearBackward<'a> {
    weights: &'a [f32],
    layout: &'a Layout,
    weight: &'a mut Packed,
    input: &'a mut Packed,
    gradients: &'a mut Gradients,
}

impl LinearBackward<'_> {
    /// Adds the gradients of weight and bias; `dx` gets (or, with `Add`, gains) the input's gradient.
    /// `x`: `(m, in)`, `dy`: `(m, out)`, `dx`: `(m, in)`.
    fn run(&mut self, at: &LinearAt, x: &[f32], dy: &[f32], m: usize, dx: &mut [f32], how: Epilogue<'_>) {
        self.input.fill(Matrix::new(x, m, at.input));
        let d_weight = self.gradients.at(self.layout, &at.weight);
        gemm(Matrix::new(dy, m, at.out).t(), self.input, d_weight, at.input, Epilogue::Add);
        add_columns(&dy[..m * at.out], None, self.gradients.at(self.layout, &at.bias));
        self.weight.fill(Matrix::new(&self.weights[at.weight.clone()], at.out, at.input));
        gemm(Matrix::new(dy, m, at.out), self.weight, dx, at.input, how);
    }
}
