//! One block of rows through a stack, on one thread: its activations stay in that core's cache.
//!
//! Threads share a batch by taking blocks; only a batch of a single block splits its products instead.

use super::bias::Bias;
use super::cached;
use super::config::{Activation, Config};
use super::weights::{CrossAttention, FeedForward, SelfAttention, Weights};
use crate::kernels::{Buffer, Epilogue, Matrix, Packed, activation, gemm, gemm_here, rowwise};

/// What the decoder needs of one source.
pub struct Source {
    /// Tokens.
    pub length: usize,
    /// For each decoder layer and head the keys `[d_kv, length]` and the values `[length, d_kv]`.
    pub layers: Vec<Vec<(Packed, Packed)>>,
}

/// Buffers of one block, kept for the next.
#[derive(Default)]
pub struct Scratch {
    /// All threads share each product, instead of each having a block.
    pub alone: bool,
    /// `(rows, d_model)`: the residual stream.
    stream: Buffer,
    /// `(rows, d_model)`: the stream's norm; at a stack's end its output.
    normed: Buffer,
    /// `(some rows, vocab)`.
    logits: Buffer,
    /// `(rows, 3 * inner)`, or the queries `(rows, inner)` of a cross-attention.
    projected: Buffer,
    attended: Buffer,
    hidden: Buffer,
    scores: Buffer,
    weights: Vec<f32>,
    keys: Packed,
    values: Packed,
}

/// Consecutive rows of a block that attend to the same source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First row.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
    /// The source's index.
    pub source: usize,
}

/// What decoder positions attend to besides their own sequence, and how they see that.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Which rows attend to which source; all rows of the block, in order.
    pub runs: &'a [Run],
    /// The encoded sources.
    pub sources: &'a [Source],
    /// The decoder's, covering the longest sequence.
    pub bias: &'a Bias,
}

/// How a position sees its own sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// All of it.
    Whole,
    /// Up to itself.
    Causal,
}

/// A model and its shape.
#[derive(Clone, Copy)]
pub struct Model<'a> {
    /// Shape.
    pub config: &'a Config,
    /// Tensors.
    pub weights: &'a Weights,
}

fn product(alone: bool, a: Matrix<'_>, b: &Packed, c: &mut [f32], epilogue: Epilogue<'_>) {
    if alone { gemm(a, b, c, b.n(), epilogue) } else { gemm_here(a, b, c, b.n(), epilogue) }
}

impl Model<'_> {
    /// Fills the residual stream with the embeddings of `tokens`.
    pub fn embed(&self, tokens: impl ExactSizeIterator<Item = u32>, s: &mut Scratch) {
        let width = self.config.d_model;
        let stream = s.stream.resized(tokens.len() * width);
        for (row, token) in stream.chunks_exact_mut(width).zip(tokens) {
            row.copy_from_slice(&self.weights.embedding[token as usize * width..][..width]);
        }
    }

    /// Encodes the sequences that lie one after the other in the stream; returns what the decoder needs of each.
    pub fn encode(&self, lengths: &[usize], bias: &Bias, s: &mut Scratch) -> Vec<Source> {
        let (width, inner, size) = (self.config.d_model, self.config.inner(), self.config.d_kv);
        let rows = lengths.iter().sum();
        for layer in &self.weights.encoder.layers {
            self.attend_whole(&layer.attention, lengths, bias, Sight::Whole, s);
            self.feed_forward(&layer.forward, rows, s);
        }
        self.norm(&self.weights.encoder.final_norm, s);
        let mut sources: Vec<Source> =
            lengths.iter().map(|&length| Source { length, layers: Vec::new() }).collect();
        for layer in &self.weights.decoder.layers {
            let cross = layer.cross.as_ref().expect("decoder layers attend to the source");
            let projected = s.projected.resized(rows * 2 * inner);
            product(
                s.alone,
                Matrix::new(&s.normed, rows, width),
                &cross.key_value,
                projected,
                Epilogue::Store,
            );
            let mut own = &projected[..];
            for source in &mut sources {
                let part = |at: usize| Matrix::strided(&own[at..], source.length, size, 2 * inner);
                let heads = (0..self.config.num_heads).map(|head| {
                    let (mut keys, mut values) = (Packed::new(), Packed::new());
                    keys.fill(part(head * size).t());
                    values.fill(part(inner + head * size));
                    (keys, values)
                });
                source.layers.push(heads.collect());
                own = &own[source.length * 2 * inner..];
            }
        }
        sources
    }

    /// Whole target sequences through the decoder, ready for [`Self::logits`].
    pub fn decode_whole(&self, lengths: &[usize], around: Surroundings<'_>, s: &mut Scratch) {
        let rows = lengths.iter().sum();
        for (i, layer) in self.weights.decoder.layers.iter().enumerate() {
            self.attend_whole(&layer.attention, lengths, around.bias, Sight::Causal, s);
            let cross = layer.cross.as_ref().expect("decoder layers attend to the source");
            self.attend_source(cross, i, rows, around, s);
            self.feed_forward(&layer.forward, rows, s);
        }
        self.norm(&self.weights.decoder.final_norm, s);
    }

    /// One new position of each row through the decoder, ready for [`Self::logits`].
    ///
    /// `earlier(row, layer)` appends the keys and values of the row's earlier positions; `now` receives those of
    /// this one, `(rows, layers, 2, inner)`.
    pub fn decode_step<'h>(
        &self,
        rows: usize,
        around: Surroundings<'_>,
        earlier: impl Fn(usize, usize, &mut Vec<&'h [f32]>),
        now: &mut [f32],
        s: &mut Scratch,
    ) {
        let (width, inner, layers) =
            (self.config.d_model, self.config.inner(), self.weights.decoder.layers.len());
        let mut stored = Vec::new();
        for (i, layer) in self.weights.decoder.layers.iter().enumerate() {
            let SelfAttention { norm, query_key_value, output } = &layer.attention;
            self.norm(norm, s);
            let projected = s.projected.resized(rows * 3 * inner);
            product(
                s.alone,
                Matrix::new(&s.normed, rows, width),
                query_key_value,
                projected,
                Epilogue::Store,
            );
            let attended = s.attended.resized(rows * inner);
            for (row, (own, out)) in
                projected.chunks_exact(3 * inner).zip(attended.chunks_exact_mut(inner)).enumerate()
            {
                let (query, key_value) = own.split_at(inner);
                now[(row * layers + i) * 2 * inner..][..2 * inner].copy_from_slice(key_value);
                stored.clear();
                earlier(row, i, &mut stored);
                let bias = around.bias.row(0, stored.len());
                let mut positions: Vec<&[f32]> = Vec::with_capacity(stored.len() + 1);
                positions.extend_from_slice(&stored);
                positions.push(key_value);
                let size = self.config.d_kv;
                cached::attend(query, &positions, bias, around.bias.stride(), size, &mut s.weights, out);
            }
            product(s.alone, Matrix::new(attended, rows, inner), output, &mut s.stream, Epilogue::Add);
            let cross = layer.cross.as_ref().expect("decoder layers attend to the source");
            self.attend_source(cross, i, rows, around, s);
            self.feed_forward(&layer.forward, rows, s);
        }
        self.norm(&self.weights.decoder.final_norm, s);
    }

    /// Logits of `rows` rows from `first` on after the decoder, `(rows, vocab)`.
    pub fn logits<'s>(&self, first: usize, rows: usize, s: &'s mut Scratch) -> &'s [f32] {
        let (width, vocab) = (self.config.d_model, self.config.vocab_size);
        let logits = s.logits.resized(rows * vocab);
        let outputs = Matrix::new(&s.normed[first * width..], rows, width);
        product(s.alone, outputs, &self.weights.head, logits, Epilogue::Store);
        logits
    }

    fn norm(&self, weight: &[f32], s: &mut Scratch) {
        rowwise::rms_norm(&s.stream, s.normed.resized(s.stream.len()), weight, self.config.epsilon);
    }

    fn attend_whole(
        &self,
        attention: &SelfAttention,
        lengths: &[usize],
        bias: &Bias,
        sight: Sight,
        s: &mut Scratch,
    ) {
        let (width, inner, size) = (self.config.d_model, self.config.inner(), self.config.d_kv);
        let rows = lengths.iter().sum();
        self.norm(&attention.norm, s);
        let projected = s.projected.resized(rows * 3 * inner);
        let normed = Matrix::new(&s.normed, rows, width);
        product(s.alone, normed, &attention.query_key_value, projected, Epilogue::Store);
        let attended = s.attended.resized(rows * inner);
        let mut first = 0;
        for &length in lengths {
            let scores = s.scores.resized(length * length);
            for head in 0..self.config.num_heads {
                let part = |which: usize| {
                    let at = first * 3 * inner + which * inner + head * size;
                    Matrix::strided(&projected[at..], length, size, 3 * inner)
                };
                s.keys.fill(part(1).t());
                s.values.fill(part(2));
                gemm_here(part(0), &s.keys, scores, length, Epilogue::Store);
                for (position, row) in scores.chunks_exact_mut(length).enumerate() {
                    let (seen, unseen) = row.split_at_mut(match sight {
                        Sight::Whole => length,
                        Sight::Causal => position + 1,
                    });
                    activation::add(seen, bias.row(head, position));
                    rowwise::softmax(seen, seen.len(), 1.0);
                    unseen.fill(0.0);
                }
                let out = &mut attended[first * inner + head * size..];
                gemm_here(Matrix::new(scores, length, length), &s.values, out, inner, Epilogue::Store);
            }
            first += length;
        }
        product(s.alone, Matrix::new(attended, rows, inner), &attention.output, &mut s.stream, Epilogue::Add);
    }

    fn attend_source(
        &self,
        cross: &CrossAttention,
        layer: usize,
        rows: usize,
        around: Surroundings<'_>,
        s: &mut Scratch,
    ) {
        let (width, inner, size) = (self.config.d_model, self.config.inner(), self.config.d_kv);
        self.norm(&cross.norm, s);
        let query = s.projected.resized(rows * inner);
        product(s.alone, Matrix::new(&s.normed, rows, width), &cross.query, query, Epilogue::Store);
        let attended = s.attended.resized(rows * inner);
        for run in around.runs {
            let source = &around.sources[run.source];
            let scores = s.scores.resized(run.rows * source.length);
            for (head, (keys, values)) in source.layers[layer].iter().enumerate() {
                let at = run.first * inner + head * size;
                let query = Matrix::strided(&query[at..], run.rows, size, inner);
                gemm_here(query, keys, scores, source.length, Epilogue::Store);
                rowwise::softmax(scores, source.length, 1.0);
                let weights = Matrix::new(scores, run.rows, source.length);
                gemm_here(weights, values, &mut attended[at..], inner, Epilogue::Store);
            }
        }
        product(s.alone, Matrix::new(attended, rows, inner), &cross.output, &mut s.stream, Epilogue::Add);
    }

    fn feed_forward(&self, forward: &FeedForward, rows: usize, s: &mut Scratch) {
        let (width, ff) = (self.config.d_model, self.config.d_ff);
        self.norm(&forward.norm, s);
        let up = forward.up.n();
        let hidden = s.hidden.resized(rows * up);
        product(s.alone, Matrix::new(&s.normed, rows, width), &forward.up, hidden, Epilogue::Store);
        for row in hidden.chunks_exact_mut(up) {
            let (gate, linear) = row.split_at_mut(ff);
            match (self.config.activation, self.config.gated) {
                (Activation::GeluNew, true) => activation::gelu_tanh_gate(gate, linear),
                (Activation::GeluNew, false) => activation::gelu_tanh(gate),
                (Activation::Relu, false) => activation::relu(gate),
                (Activation::Relu, true) => {
                    activation::relu(gate);
                    gate.iter_mut().zip(linear).for_each(|(gate, linear)| *gate *= *linear);
                }
            }
        }
        let hidden = Matrix::strided(hidden, rows, ff, up);
        product(s.alone, hidden, &forward.down, &mut s.stream, Epilogue::Add);
    }
}
