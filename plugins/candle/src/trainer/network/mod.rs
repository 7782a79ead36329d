//! Forward and backward passes of a classifier over ragged rows, written out by hand.
//!
//! A piece of a micro-batch goes through `embeddings.rs`, every layer but the last (`layer.rs`), the last (`last.rs`:
//! only first tokens go on from there), and `head.rs`, then back. `tail.rs` is what follows attention in every layer,
//! `linear.rs` a linear layer's gradients. Activations that the backward pass needs are kept in buffers that are
//! reused from call to call. Sums run in a fixed order, so gradients do not depend on the number of threads. Tested
//! against PyTorch (fixtures) and against candle's autograd over the plain model.

mod embeddings;
mod head;
mod last;
mod layer;
mod linear;
mod tail;

use cappy_plugin_abi::random::fold;
use rayon::prelude::*;

use super::gradients::Gradients;
use crate::encoder::config::EncoderConfig;
use crate::encoder::layout::{Layout, LinearAt, NormAt};
use crate::kernels::attention::Heads;
use crate::kernels::dropout::{Dropout, Site};
use crate::kernels::{Buffer, Matrix, Packed};
use head::KeptHead;
use last::KeptLast;
use layer::KeptLayer;
use tail::{Index, KeptNorm};

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

    fn heads(&self, config: &EncoderConfig) -> Heads<'_> {
        Heads { offsets: &self.offsets, heads: config.heads, head_dim: config.head_dim() }
    }
}

/// Weights packed for the forward pass; valid until the next update.
#[derive(Default)]
struct Packs {
    /// Queries, keys and values (unused in the last layer); attention output; up; down.
    layers: Vec<[Packed; 4]>,
    last_query: Packed,
    last_kv: Packed,
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
    /// `(rows, hidden)`: the same of first tokens.
    first: Buffer,
    /// `(rows, hidden)`: gradient of the head's inner states, then of the last layer's queries.
    query: Buffer,
    /// `(tokens, hidden)`: gradient of a block's output.
    branch: Buffer,
    context: Buffer,
    qkv: Buffer,
    inner: Buffer,
}

/// The passes and their memory.
pub(super) struct Network {
    config: EncoderConfig,
    layout: Layout,
    /// The last layer's projections: queries are made of first tokens only.
    last_query: LinearAt,
    last_kv: LinearAt,
    packs: Packs,
    embedding_norm: KeptNorm,
    /// `(tokens, hidden)`: input of each layer.
    streams: Vec<Buffer>,
    /// All but the last.
    layers: Vec<KeptLayer>,
    last: KeptLast,
    head: KeptHead,
    backward: Backward,
}

impl Network {
    /// Memory grows with the first batches.
    pub fn new(config: EncoderConfig, layout: Layout) -> Self {
        let (layers, h) = (config.layers, config.hidden);
        let qkv = &layout.layers[layers - 1].qkv;
        let rows = |from: usize, to: usize| LinearAt {
            weight: qkv.weight.start + from * h..qkv.weight.start + to * h,
            bias: qkv.bias.start + from..qkv.bias.start + to,
            out: to - from,
            input: h,
        };
        Self {
            last_query: rows(0, h),
            last_kv: rows(h, 3 * h),
            config,
            layout,
            packs: Packs { layers: (0..layers).map(|_| Default::default()).collect(), ..Packs::default() },
            embedding_norm: KeptNorm::default(),
            streams: (0..layers).map(|_| Buffer::new()).collect(),
            layers: (1..layers).map(|_| KeptLayer::default()).collect(),
            last: KeptLast::default(),
            head: KeptHead::default(),
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
        let last = self.config.layers - 1;
        for (i, (packs, at)) in self.packs.layers.iter_mut().zip(&self.layout.layers).enumerate() {
            let [qkv, output, up, down] = packs;
            if i < last {
                fill(qkv, &at.qkv);
            }
            fill(output, &at.output);
            fill(up, &at.up);
            fill(down, &at.down);
        }
        fill(&mut self.packs.last_query, &self.last_query);
        fill(&mut self.packs.last_kv, &self.last_kv);
        fill(&mut self.packs.dense, &self.layout.dense);
        fill(&mut self.packs.out, &self.layout.out);
        self.packs.fresh = true;
    }

    /// Logits `(rows, labels)` of a piece, with everything kept that [`Network::backward`] needs.
    pub fn forward(&mut self, weights: &[f32], piece: &Piece<'_>, dropout: &Dropout) -> &[f32] {
        self.pack(weights);
        self.embed(weights, piece, dropout);
        for layer in 0..self.config.layers - 1 {
            self.layer_forward(layer, weights, piece, dropout);
        }
        self.last_forward(weights, piece, dropout);
        self.head_forward(weights, piece, dropout)
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
        self.last_backward(weights, piece, dropout, gradients);
        for layer in (0..self.config.layers - 1).rev() {
            self.layer_backward(layer, weights, piece, dropout, gradients);
        }
        self.embed_backward(weights, piece, dropout, gradients);
    }
}

/// Weight and bias of a layer normalisation.
fn norm_weights<'a>(weights: &'a [f32], at: &NormAt) -> (&'a [f32], &'a [f32]) {
    (&weights[at.weight.clone()], &weights[at.bias.clone()])
}

/// Applies dropout to hidden states, row by row; `index` says which token a row is.
fn drop_rows(x: &mut [f32], hidden: usize, index: Index<'_>, dropout: &Dropout, site: Site) {
    if !dropout.active() {
        return;
    }
    let key = dropout.site(site);
    x.par_chunks_mut(ROWS * hidden).enumerate().for_each(|(chunk, x)| {
        for (i, x) in x.chunks_exact_mut(hidden).enumerate() {
            dropout.apply(x, fold(key, index.of(chunk * ROWS + i)));
        }
    });
}

/// Dropout of a layer's attention weights: `(row, head, query, weights)`.
fn attention_dropout<'a>(
    dropout: &'a Dropout,
    piece: &Piece<'_>,
    layer: usize,
) -> impl Fn(usize, usize, usize, &mut [f32]) + Sync + use<'a> {
    let (key, first) = (dropout.site(Site::Attention(layer)), piece.first_row);
    move |row, head, query, weights| {
        if dropout.active() {
            let key = fold(fold(fold(key, (first + row) as u64), head as u64), query as u64);
            dropout.apply(weights, key);
        }
    }
}
