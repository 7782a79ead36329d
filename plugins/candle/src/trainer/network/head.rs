//! The classification head over first tokens: dense, tanh (DistilBERT: ReLU), projection.

use super::super::gradients::Gradients;
use super::linear::LinearBackward;
use super::tail::Index;
use super::{Backward, Network, Piece, Site, drop_rows};
use crate::encoder::config::Family;
use crate::kernels::dropout::Dropout;
use crate::kernels::{Buffer, Epilogue, Matrix, activation, gemm};

/// Activations of the head, `(rows, hidden)` each.
#[derive(Default)]
pub(super) struct KeptHead {
    /// Input after dropout.
    input: Buffer,
    /// Output of tanh or ReLU.
    pooled: Buffer,
    /// The projection's input.
    dropped: Buffer,
    /// `(rows, labels)`.
    logits: Buffer,
}

/// Whether there is dropout before the dense layer: BERT's pooler and DistilBERT take the first token as it is.
fn drops_input(family: Family) -> bool {
    !matches!(family, Family::Bert | Family::DistilBert)
}

impl Network {
    pub(super) fn head_forward(&mut self, weights: &[f32], piece: &Piece<'_>, dropout: &Dropout) -> &[f32] {
        let Self { config, layout, packs, last, head: kept, .. } = self;
        let (h, rows) = (config.hidden, piece.rows());
        let index = Index::From(piece.first_row);
        let x = kept.input.resized(rows * h);
        x.copy_from_slice(&last.output);
        if drops_input(config.family) {
            drop_rows(x, h, index, dropout, Site::HeadInput);
        }
        let pooled = kept.pooled.resized(rows * h);
        let bias = Epilogue::Bias(&weights[layout.dense.bias.clone()]);
        gemm(Matrix::new(x, rows, h), &packs.dense, pooled, h, bias);
        match config.family {
            Family::DistilBert => activation::relu(pooled),
            _ => activation::tanh(pooled),
        }
        let dropped = kept.dropped.resized(rows * h);
        dropped.copy_from_slice(pooled);
        drop_rows(dropped, h, index, dropout, Site::HeadInner);
        let logits = kept.logits.resized(rows * config.labels);
        let bias = Epilogue::Bias(&weights[layout.out.bias.clone()]);
        gemm(Matrix::new(dropped, rows, h), &packs.out, logits, config.labels, bias);
        logits
    }

    /// From the logits' gradient to that of the last layer's output, in `backward.first`.
    pub(super) fn head_backward(
        &mut self,
        weights: &[f32],
        piece: &Piece<'_>,
        dropout: &Dropout,
        d_logits: &[f32],
        gradients: &mut Gradients,
    ) {
        let Self { config, layout, backward, head: kept, .. } = self;
        let Backward { weight, input, first, query, .. } = backward;
        let (h, rows) = (config.hidden, piece.rows());
        let index = Index::From(piece.first_row);
        let mut linear = LinearBackward { weights, layout, weight, input, gradients };
        let d_pooled = query.resized(rows * h);
        linear.run(&layout.out, &kept.dropped, d_logits, rows, d_pooled, Epilogue::Store);
        drop_rows(d_pooled, h, index, dropout, Site::HeadInner);
        for (d, &y) in d_pooled.iter_mut().zip(kept.pooled.iter()) {
            *d *= match config.family {
                Family::DistilBert => f32::from(y > 0.0),
                _ => 1.0 - y * y,
            };
        }
        let d_x = first.resized(rows * h);
        linear.run(&layout.dense, &kept.input, d_pooled, rows, d_x, Epilogue::Store);
        if drops_input(config.family) {
            drop_rows(d_x, h, index, dropout, Site::HeadInput);
        }
    }
}
