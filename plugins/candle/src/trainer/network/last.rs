//! The last encoder layer. The head reads first tokens only, so everything but keys and values is made of them alone;
//! their dropout masks are those of the whole layer.

use super::super::gradients::Gradients;
use super::linear::LinearBackward;
use super::tail::{Index, KeptTail, Tail, TailMemory};
use super::{Backward, Network, Piece, attention_dropout};
use crate::kernels::attention::{attend_first_backward, attend_first_kept};
use crate::kernels::dropout::Dropout;
use crate::kernels::{Buffer, Epilogue, Matrix, activation, gemm};

/// Activations of the last layer.
#[derive(Default)]
pub(super) struct KeptLast {
    /// `(rows, hidden)`: the layer's input.
    x: Buffer,
    query: Buffer,
    kv: Buffer,
    probabilities: Buffer,
    tail: KeptTail,
    /// `(rows, hidden)`.
    pub output: Buffer,
}

impl Network {
    pub(super) fn last_forward(&mut self, weights: &[f32], piece: &Piece<'_>, dropout: &Dropout) {
        let Self { config, layout, packs, streams, last: kept, last_query, last_kv, .. } = self;
        let (layer, h) = (config.layers - 1, config.hidden);
        let (rows, tokens) = (piece.rows(), piece.tokens.len());
        let shape = piece.heads(config);
        let x = kept.x.resized(rows * h);
        for (to, &t) in x.chunks_exact_mut(h).zip(&piece.offsets) {
            to.copy_from_slice(&streams[layer][t * h..][..h]);
        }
        let query = kept.query.resized(rows * h);
        let bias = Epilogue::Bias(&weights[last_query.bias.clone()]);
        gemm(Matrix::new(x, rows, h), &packs.last_query, query, h, bias);
        let kv = kept.kv.resized(tokens * 2 * h);
        let bias = Epilogue::Bias(&weights[last_kv.bias.clone()]);
        gemm(Matrix::new(&streams[layer], tokens, h), &packs.last_kv, kv, 2 * h, bias);
        let probabilities = kept.probabilities.resized(config.heads * tokens);
        let context = kept.tail.context.resized(rows * h);
        let drop = attention_dropout(dropout, piece, layer);
        attend_first_kept(query, kv, shape, |row, head, w| drop(row, head, 0, w), probabilities, context);
        let index = Index::Firsts(piece.first_token, &piece.offsets);
        let tail = Tail { config, weights, at: &layout.layers[layer], layer, tokens: rows, index, dropout };
        tail.forward(&packs.layers[layer], x, &mut kept.tail, &mut kept.output);
    }

    /// From the gradient of the layer's output in `backward.first` to that of its input in `backward.stream`.
    pub(super) fn last_backward(
        &mut self,
        weights: &[f32],
        piece: &Piece<'_>,
        dropout: &Dropout,
        gradients: &mut Gradients,
    ) {
        let Self { config, layout, backward, streams, last: kept, last_query, last_kv, .. } = self;
        let (layer, h) = (config.layers - 1, config.hidden);
        let (rows, tokens) = (piece.rows(), piece.tokens.len());
        let Backward { weight, input, stream, first, query, branch, context, qkv, inner } = backward;
        let mut linear = LinearBackward { weights, layout, weight, input, gradients };
        let index = Index::Firsts(piece.first_token, &piece.offsets);
        let tail = Tail { config, weights, at: &layout.layers[layer], layer, tokens: rows, index, dropout };
        tail.backward(&kept.tail, &mut linear, first, TailMemory { branch, inner, context });
        let (d_query, d_kv) = (query.resized(rows * h), qkv.resized(tokens * 2 * h));
        let drop = attention_dropout(dropout, piece, layer);
        let drop = |row: usize, head: usize, w: &mut [f32]| drop(row, head, 0, w);
        let states = (&*kept.query, &*kept.kv, &*kept.probabilities);
        attend_first_backward(states, context, piece.heads(config), drop, d_query, d_kv);
        let stream = stream.resized(tokens * h);
        linear.run(last_kv, &streams[layer], d_kv, tokens, stream, Epilogue::Store);
        linear.run(last_query, &kept.x, d_query, rows, first, Epilogue::Add);
        for (from, &t) in first.chunks_exact(h).zip(&piece.offsets) {
            activation::add(&mut stream[t * h..][..h], from);
        }
    }
}
