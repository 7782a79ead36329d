//! The forward pass as the paper states it: one row at a time, whole sequences, plain loops in f64.
//!
//! Slow on purpose: what the fast path is tested against. Shares only the configuration, the checkpoint reader and
//! the buckets with it.

use super::bias::bucket;
use super::config::{Activation, Config};
use crate::weights::Checkpoint;

/// Rows of a sequence, `(positions, width)`.
type Matrix = Vec<Vec<f64>>;

/// Reads tensors when they are needed.
pub struct Plain<'a> {
    /// Shape.
    pub config: &'a Config,
    /// Tensors.
    pub checkpoint: &'a Checkpoint,
}

impl Plain<'_> {
    /// Encoder output, `(source, d_model)`.
    pub fn encode(&self, source: &[u32]) -> Matrix {
        let mut x = self.embed(source);
        let table = self.bias_table("encoder");
        for layer in 0..self.config.num_layers {
            let at = format!("encoder.block.{layer}.layer");
            let normed = self.norm(&x, &format!("{at}.0.layer_norm"));
            let bias = |head, query, key| Some(self.bias(&table, true, head, query, key));
            add(&mut x, &self.attend(&normed, &normed, &format!("{at}.0.SelfAttention"), bias));
            let hidden = self.feed_forward(&x, &format!("{at}.1"));
            add(&mut x, &hidden);
        }
        self.norm(&x, "encoder.final_layer_norm")
    }

    /// Logits after each decoder input, `(inputs, vocab)`.
    pub fn decode(&self, inputs: &[u32], encoded: &Matrix) -> Matrix {
        let mut x = self.embed(inputs);
        let table = self.bias_table("decoder");
        for layer in 0..self.config.num_decoder_layers {
            let at = format!("decoder.block.{layer}.layer");
            let normed = self.norm(&x, &format!("{at}.0.layer_norm"));
            let bias = |head, query, key| (key <= query).then(|| self.bias(&table, false, head, query, key));
            add(&mut x, &self.attend(&normed, &normed, &format!("{at}.0.SelfAttention"), bias));
            let normed = self.norm(&x, &format!("{at}.1.layer_norm"));
            add(
                &mut x,
                &self.attend(&normed, encoded, &format!("{at}.1.EncDecAttention"), |_, _, _| Some(0.0)),
            );
            let hidden = self.feed_forward(&x, &format!("{at}.2"));
            add(&mut x, &hidden);
        }
        let x = self.norm(&x, "decoder.final_layer_norm");
        if self.config.tied {
            let scale = (self.config.d_model as f64).powf(-0.5);
            let scaled: Matrix = x.iter().map(|row| row.iter().map(|v| v * scale).collect()).collect();
            return self.linear(&scaled, "shared", self.config.vocab_size);
        }
        self.linear(&x, "lm_head", self.config.vocab_size)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Vec<f64> {
        let values = self.checkpoint.read(name, shape).expect("the fixture is complete");
        values.into_iter().map(f64::from).collect()
    }

    fn embed(&self, tokens: &[u32]) -> Matrix {
        let width = self.config.d_model;
        let table = self.tensor("shared.weight", &[self.config.vocab_size, width]);
        tokens.iter().map(|&t| table[t as usize * width..][..width].to_vec()).collect()
    }

    fn bias_table(&self, stack: &str) -> Vec<f64> {
        let name = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        self.tensor(&name, &[self.config.buckets, self.config.num_heads])
    }

    fn bias(&self, table: &[f64], bidirectional: bool, head: usize, query: usize, key: usize) -> f64 {
        let Config { buckets, num_heads, max_distance, .. } = *self.config;
        table[bucket(key as i64 - query as i64, bidirectional, buckets, max_distance) * num_heads + head]
    }

    fn norm(&self, x: &Matrix, name: &str) -> Matrix {
        let weight = self.tensor(&format!("{name}.weight"), &[self.config.d_model]);
        x.iter()
            .map(|row| {
                let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
                let scale = 1.0 / (mean + f64::from(self.config.epsilon)).sqrt();
                row.iter().zip(&weight).map(|(v, w)| v * scale * w).collect()
            })
            .collect()
    }

    fn linear(&self, x: &Matrix, name: &str, outputs: usize) -> Matrix {
        let inputs = x[0].len();
        let weight = self.tensor(&format!("{name}.weight"), &[outputs, inputs]);
        let dot = |row: &[f64], w: &[f64]| row.iter().zip(w).map(|(a, b)| a * b).sum();
        x.iter().map(|row| weight.chunks_exact(inputs).map(|w| dot(row, w)).collect()).collect()
    }

    fn attend(
        &self,
        from: &Matrix,
        to: &Matrix,
        name: &str,
        bias: impl Fn(usize, usize, usize) -> Option<f64>,
    ) -> Matrix {
        let (inner, size) = (self.config.inner(), self.config.d_kv);
        let [q, k, v] = [("q", from), ("k", to), ("v", to)]
            .map(|(part, x)| self.linear(x, &format!("{name}.{part}"), inner));
        let mut out = vec![vec![0.0; inner]; from.len()];
        for head in 0..self.config.num_heads {
            let slice = head * size..(head + 1) * size;
            for (i, out) in out.iter_mut().enumerate() {
                let scores: Vec<Option<f64>> = (0..to.len())
                    .map(|j| {
                        let dot: f64 = slice.clone().map(|d| q[i][d] * k[j][d]).sum();
                        bias(head, i, j).map(|b| dot + b)
                    })
                    .collect();
                let most = scores.iter().flatten().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| s.map_or(0.0, |s| (s - most).exp())).collect();
                let total: f64 = weights.iter().sum();
                for d in slice.clone() {
                    out[d] = weights.iter().zip(&v).map(|(w, v)| w / total * v[d]).sum();
                }
            }
        }
        self.linear(&out, &format!("{name}.o"), self.config.d_model)
    }

    fn feed_forward(&self, x: &Matrix, name: &str) -> Matrix {
        let normed = self.norm(x, &format!("{name}.layer_norm"));
        let dense = format!("{name}.DenseReluDense");
        let first = if self.config.gated { "wi_0" } else { "wi" };
        let mut hidden = self.linear(&normed, &format!("{dense}.{first}"), self.config.d_ff);
        for v in hidden.iter_mut().flatten() {
            *v = match self.config.activation {
                Activation::Relu => v.max(0.0),
                Activation::GeluNew => {
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (*v + 0.044715 * v.powi(3));
                    0.5 * *v * (1.0 + inner.tanh())
                }
            };
        }
        if self.config.gated {
            let linear = self.linear(&normed, &format!("{dense}.wi_1"), self.config.d_ff);
            for (h, l) in hidden.iter_mut().flatten().zip(linear.iter().flatten()) {
                *h *= l;
            }
        }
        self.linear(&hidden, &format!("{dense}.wo"), self.config.d_model)
    }
}

fn add(x: &mut Matrix, y: &Matrix) {
    for (a, b) in x.iter_mut().flatten().zip(y.iter().flatten()) {
        *a += b;
    }
}
