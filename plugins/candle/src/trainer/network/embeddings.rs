//! Word, position and (where there are any) segment embeddings.

use super::super::gradients::Gradients;
use super::tail::{Index, norm_backward};
use super::{Network, Piece, Site, drop_rows, norm_weights};
use crate::encoder::config::EncoderConfig;
use crate::kernels::dropout::Dropout;
use crate::kernels::{activation, rowwise};

impl Network {
    pub(super) fn embed(&mut self, weights: &[f32], piece: &Piece<'_>, dropout: &Dropout) {
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
                if !types.is_empty() {
                    activation::add(x, &types[segment(config, piece, t) * h..][..h]);
                }
                activation::add(x, &tables.1[position * h..][..h]);
            }
        }
        let (weight, bias) = norm_weights(weights, &layout.embedding_norm);
        let normalised = self.embedding_norm.normalised.resized(stream.len());
        let inverse = self.embedding_norm.inverse.resized(piece.tokens.len());
        rowwise::layer_norm_kept(stream, weight, bias, config.layer_norm_eps, normalised, inverse);
        drop_rows(stream, h, Index::From(piece.first_token), dropout, Site::Embeddings);
    }

    pub(super) fn embed_backward(
        &mut self,
        weights: &[f32],
        piece: &Piece<'_>,
        dropout: &Dropout,
        gradients: &mut Gradients,
    ) {
        let Self { config, layout, backward, .. } = self;
        let h = config.hidden;
        let stream = &mut backward.stream;
        drop_rows(stream, h, Index::From(piece.first_token), dropout, Site::Embeddings);
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
                if !layout.token_type.is_empty() {
                    let segment = segment(config, piece, t);
                    activation::add(&mut gradients.at(layout, &layout.token_type)[segment * h..][..h], d);
                }
            }
        }
    }
}

fn segment(config: &EncoderConfig, piece: &Piece<'_>, token: usize) -> usize {
    if config.type_vocab_size > 1 { piece.type_ids.get(token).copied().unwrap_or(0).into() } else { 0 }
}
