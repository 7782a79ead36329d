//! An encoder layer over all tokens.

use super::super::gradients::Gradients;
use super::linear::LinearBackward;
use super::tail::{Index, KeptTail, Tail, TailMemory};
use super::{Backward, Network, Piece, attention_dropout};
use crate::kernels::attention::{attend_backward, attend_kept};
use crate::kernels::dropout::Dropout;
use crate::kernels::{Buffer, Epilogue, Matrix, gemm};

/// Activations of a layer.
#[derive(Default)]
pub(super) struct KeptLayer {
    qkv: Buffer,
    probabilities: Buffer,
    tail: KeptTail,
}

impl Network {
    pub(super) fn layer_forward(
        &mut self,
        layer: usize,
        weights: &[f32],
        piece: &Piece<'_>,
        dropout: &Dropout,
    ) {
        let Self { config, layout, packs, streams, layers, .. } = self;
        let (at, packs, kept) = (&layout.layers[layer], &packs.layers[layer], &mut layers[layer]);
        let (before, after) = streams.split_at_mut(layer + 1);
        let (h, tokens) = (config.hidden, piece.tokens.len());
        let shape = piece.heads(config);
        let qkv = kept.qkv.resized(tokens * 3 * h);
        let bias = Epilogue::Bias(&weights[at.qkv.bias.clone()]);
        gemm(Matrix::new(&before[layer], tokens, h), &packs[0], qkv, 3 * h, bias);
        let probabilities = kept.probabilities.resized(shape.probabilities());
        let context = kept.tail.context.resized(tokens * h);
        attend_kept(qkv, shape, attention_dropout(dropout, piece, layer), probabilities, context);
        let index = Index::From(piece.first_token);
        let tail = Tail { config, weights, at, layer, tokens, index, dropout };
        tail.forward(packs, &before[layer], &mut kept.tail, &mut after[0]);
    }

    pub(super) fn layer_backward(
        &mut self,
        layer: usize,
        weights: &[f32],
        piece: &Piece<'_>,
        dropout: &Dropout,
        gradients: &mut Gradients,
    ) {
        let Self { config, layout, backward, streams, layers, .. } = self;
        let (at, kept) = (&layout.layers[layer], &layers[layer]);
        let (h, tokens) = (config.hidden, piece.tokens.len());
        let Backward { weight, input, stream, branch, context, qkv, inner, .. } = backward;
        let mut linear = LinearBackward { weights, layout, weight, input, gradients };
        let index = Index::From(piece.first_token);
        let tail = Tail { config, weights, at, layer, tokens, index, dropout };
        tail.backward(&kept.tail, &mut linear, stream, TailMemory { branch, inner, context });
        let d_qkv = qkv.resized(tokens * 3 * h);
        let drop = attention_dropout(dropout, piece, layer);
        attend_backward(&kept.qkv, &kept.probabilities, context, piece.heads(config), drop, d_qkv);
        linear.run(&at.qkv, &streams[layer], d_qkv, tokens, stream, Epilogue::Add);
    }
}
