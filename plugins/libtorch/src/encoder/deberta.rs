//! DeBERTa versions 2 and 3: a BERT whose attention has, beside content, terms of content with relative position
//! (disentangled attention), with the distances in logarithmic buckets.
//!
//! Source: He et al., arXiv 2006.03654 and 2111.09543; transformers' `modeling_deberta_v2.py`.

use cappy_plugin_models::dropout::Site;
use cappy_plugin_models::encoder::deberta::layout::{ConvolutionAt, LayerAt, Layout};
use cappy_plugin_models::encoder::deberta::{Activation, Convolution, DebertaConfig, Relative};
use tch::Tensor;

use super::architecture::Network;
use super::attention::Attention;
use super::parts::{Linear, Norm, Parameters};
use super::pass::{Of, Pass};
use crate::engine::{Error, Result};
use crate::ragged::Group;

/// The network of a classifier.
pub struct Deberta {
    config: DebertaConfig,
    /// Gets no gradient.
    pad_token: i64,
    /// `(vocab_size, embedding)`.
    word: Tensor,
    /// `(max_positions, embedding)`.
    position: Option<Tensor>,
    /// `(type_vocab_size, embedding)`.
    token_type: Option<Tensor>,
    projection: Option<Linear>,
    embedding_norm: Norm,
    /// `(2 * span, hidden)`.
    relative: Option<Tensor>,
    relative_norm: Option<Norm>,
    convolution: Option<Convolve>,
    layers: Vec<Layer>,
    dense: Linear,
    out: Linear,
}

struct Layer {
    qkv: Linear,
    position_key: Option<Linear>,
    position_query: Option<Linear>,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    ffn_norm: Norm,
}

/// The convolution behind the first layer.
struct Convolve {
    of: Convolution,
    /// `(hidden, hidden, width)`.
    weight: Tensor,
    bias: Tensor,
    norm: Norm,
}

/// Relative positions that occur in rows of up to some number of tokens.
struct Positions {
    /// Number of the first that occurs.
    first: usize,
    /// Number of each distance (query minus key), from `-(longest - 1)` on.
    of_distance: Vec<usize>,
    /// Those that occur, `(positions, hidden)`.
    embeddings: Tensor,
}

fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(match activation {
        Activation::Gelu => x.f_gelu("none")?,
        Activation::Tanh => x.f_tanh()?,
    })
}

impl Layer {
    fn new(at: &LayerAt, eps: f32, from: &mut dyn Parameters) -> Result<Self> {
        Ok(Self {
            qkv: from.linear(&at.qkv)?,
            position_key: at.position_key.as_ref().map(|at| from.linear(at)).transpose()?,
            position_query: at.position_query.as_ref().map(|at| from.linear(at)).transpose()?,
            output: from.linear(&at.output)?,
            attention_norm: from.norm(&at.attention_norm, eps)?,
            up: from.linear(&at.up)?,
            down: from.linear(&at.down)?,
            ffn_norm: from.norm(&at.ffn_norm, eps)?,
        })
    }

    /// Position embeddings as keys, `which` 1, or queries, 0: by weights of their own, or those of content.
    fn project(&self, x: &Tensor, which: usize, hidden: usize) -> Result<Tensor> {
        match if which == 1 { &self.position_key } else { &self.position_query } {
            Some(own) => own.apply(x),
            None => self.qkv.part(which * hidden..(which + 1) * hidden)?.apply(x),
        }
    }
}

impl Convolve {
    fn new(
        of: Convolution,
        at: &ConvolutionAt,
        config: &DebertaConfig,
        from: &mut dyn Parameters,
    ) -> Result<Self> {
        let h = config.hidden;
        Ok(Self {
            of,
            weight: from.tensor(&at.weight, &[h, h, of.width])?,
            bias: from.tensor(&at.bias, &[h])?,
            norm: from.norm(&at.norm, config.layer_norm_eps)?,
        })
    }

    /// `layer_norm(states + activation(dropout(convolution(embedded))))`, `(tokens, hidden)` each; rows apart.
    fn apply(&self, pass: &Pass<'_>, embedded: &Tensor, states: &Tensor) -> Result<Tensor> {
        let (batch, half) = (pass.batch, self.of.width as i64 / 2);
        let mut parts = Vec::new();
        let ragged = &batch.padded()?.ragged;
        for (g, group) in ragged.groups.iter().enumerate() {
            let mut input = ragged.padded(g, embedded)?;
            if let Some(mask) = group.mask(batch.kind, batch.device)? {
                // Padding repeats a token, which its neighbours would see: (rows, longest, 1).
                input = input.f_mul(&mask.f_exp()?.f_view([group.rows.len() as i64, -1, 1])?)?;
            }
            let x = input.f_transpose(1, 2)?.f_conv1d(&self.weight, Some(&self.bias), 1, half, 1, 1)?;
            parts.push(x.f_transpose(1, 2)?.f_contiguous()?);
        }
        let x = pass.drop(ragged.packed(&parts)?, Site::Convolution, Of::Tokens)?;
        self.norm.apply(&activate(&x, self.of.activation)?.f_add(states)?)
    }
}

impl Positions {
    fn new(relative: Relative, longest: usize, embeddings: &Tensor) -> Result<Self> {
        let farthest = longest as i64 - 1;
        let of_distance: Vec<usize> = (-farthest..=farthest).map(|d| relative.index(d)).collect();
        // Numbers grow with the distance.
        let (first, last) = (of_distance[0], of_distance[of_distance.len() - 1]);
        let embeddings = embeddings.f_narrow(0, first as i64, (last - first) as i64 + 1)?;
        Ok(Self { first, of_distance, embeddings })
    }

    /// These positions, with other embeddings for them.
    fn with(&self, embeddings: Tensor) -> Self {
        Self { first: self.first, of_distance: self.of_distance.clone(), embeddings }
    }

    /// Those that occur within rows of up to `longest` tokens, and the number of the first of them among these.
    fn within(&self, longest: usize) -> Result<(i64, Tensor)> {
        let middle = self.of_distance.len() / 2;
        let of = &self.of_distance[middle + 1 - longest..middle + longest];
        let (first, last) = (of[0], of[of.len() - 1]);
        let start = (first - self.first) as i64;
        Ok((start, self.embeddings.f_narrow(0, start, (last - first) as i64 + 1)?))
    }

    /// Which position, of those from number `first` among these on, belongs to each query and key,
    /// `(queries, keys)`; `turned`: `(keys, queries)`.
    fn index(&self, queries: i64, keys: i64, first: i64, turned: bool, pass: &Pass<'_>) -> Result<Tensor> {
        let (middle, skipped) = (self.of_distance.len() as i64 / 2, self.first + first as usize);
        let at = |i: i64, j: i64| self.of_distance[(middle + i - j) as usize] - skipped;
        let (lines, columns) = if turned { (keys, queries) } else { (queries, keys) };
        let pairs = (0..lines).flat_map(|a| (0..columns).map(move |b| (a, b)));
        let of = pairs.map(|(a, b)| if turned { at(b, a) } else { at(a, b) });
        Ok(pass.batch.indices(of)?.f_view([lines, columns])?)
    }
}

impl Deberta {
    /// Takes its tensors.
    ///
    /// # Errors
    /// Those of `from`.
    pub fn new(
        config: DebertaConfig,
        pad_token: i64,
        layout: &Layout,
        from: &mut dyn Parameters,
    ) -> Result<Self> {
        let eps = config.layer_norm_eps;
        let span = config.relative.map_or(0, |relative| relative.span());
        let convolution = match (config.convolution, &layout.convolution) {
            (Some(of), Some(at)) => Some(Convolve::new(of, at, &config, from)?),
            _ => None,
        };
        Ok(Self {
            pad_token,
            word: from.tensor(&layout.word, &[config.vocab_size, config.embedding])?,
            position: from.table(&layout.position, config.max_positions)?,
            token_type: from.table(&layout.token_type, config.type_vocab_size)?,
            projection: layout.projection.as_ref().map(|at| from.linear(at)).transpose()?,
            embedding_norm: from.norm(&layout.embedding_norm, eps)?,
            relative: from.table(&layout.relative, 2 * span)?,
            relative_norm: layout.relative_norm.as_ref().map(|at| from.norm(at, eps)).transpose()?,
            convolution,
            layers: layout.layers.iter().map(|at| Layer::new(at, eps, from)).collect::<Result<_>>()?,
            dense: from.linear(&layout.dense)?,
            out: from.linear(&layout.out)?,
            config,
        })
    }

    fn embed(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let (batch, config) = (pass.batch, &self.config);
        let look_up =
            |table: &Tensor, index: &Tensor, pad: i64| Tensor::f_embedding(table, index, pad, false, false);
        let ids = batch.indices(batch.tokens().map(|id| id as usize))?;
        let mut x = look_up(&self.word, &ids, self.pad_token)?;
        if let Some(table) = &self.position {
            let positions = (0..batch.rows.len()).flat_map(|i| 0..batch.row(i).len());
            x = x.f_add(&look_up(table, &batch.indices(positions)?, -1)?)?;
        }
        if let Some(table) = &self.token_type {
            let segments = batch.indices(batch.segments(config.type_vocab_size > 1))?;
            x = x.f_add(&look_up(table, &segments, -1)?)?;
        }
        if let Some(projection) = &self.projection {
            x = projection.apply(&x)?;
        }
        pass.drop(self.embedding_norm.apply(&x)?, Site::Embeddings, Of::Tokens)
    }

    /// What the longest row needs of the position embeddings.
    fn positions(&self, pass: &Pass<'_>) -> Result<Option<Positions>> {
        let relative = self.config.relative.filter(|relative| relative.c2p || relative.p2c);
        let (Some(relative), Some(table)) = (relative, &self.relative) else { return Ok(None) };
        let longest = pass.batch.padded()?.ragged.groups.iter().map(|group| group.longest).max().unwrap_or(1);
        let mut positions = Positions::new(relative, longest, table)?;
        if let Some(norm) = &self.relative_norm {
            positions.embeddings = norm.apply(&positions.embeddings)?;
        }
        Ok(Some(positions))
    }

    /// `x`: `(tokens, hidden)`; `firsts`: only first tokens of the result are wanted.
    fn layer(
        &self,
        pass: &Pass<'_>,
        i: usize,
        x: &Tensor,
        positions: Option<&Positions>,
        firsts: bool,
    ) -> Result<Tensor> {
        let (config, layer, hidden) = (&self.config, &self.layers[i], self.config.hidden);
        let scale = f64::from(config.scale());
        let dropped = positions.map(|positions| {
            let embeddings = positions.embeddings.shallow_clone();
            let embeddings = pass.drop_table(embeddings, Site::Positions(i), positions.first)?;
            Ok::<_, Error>(positions.with(embeddings))
        });
        let dropped = dropped.transpose()?;
        let bias = |group: &Group, query: &Tensor, key: &Tensor| {
            let positions = dropped.as_ref().expect("asked for with positions only");
            Ok(self.terms(pass, layer, positions, group, query, key)?.f_mul_scalar(scale)?)
        };
        let attention = Attention {
            layer: i,
            heads: config.heads,
            scale,
            window: None,
            bias: if dropped.is_some() { Some(&bias) } else { None },
        };
        let (x, context, of) = if firsts {
            let first = pass.batch.firsts(x)?;
            let query = layer.qkv.part(0..hidden)?.apply(&first)?;
            let key_value = layer.qkv.part(hidden..3 * hidden)?.apply(x)?;
            let context = attention.firsts(pass, &query, &key_value)?;
            (first, context, Of::FirstTokens)
        } else {
            (x.shallow_clone(), attention.all(pass, &layer.qkv.apply(x)?)?, Of::Tokens)
        };
        let attended = pass.drop(layer.output.apply(&context)?, Site::AttentionOutput(i), of)?;
        let x = layer.attention_norm.apply(&attended.f_add(&x)?)?;
        let inner = layer.up.apply(&x)?.f_gelu("none")?;
        let down = pass.drop(layer.down.apply(&inner)?, Site::FeedForward(i), of)?;
        layer.ffn_norm.apply(&down.f_add(&x)?)
    }

    /// Unscaled terms of relative position of a group, `(rows, heads, queries, keys)`: every state with every position,
    /// of which those are taken that belong to each pair of tokens. `query`, `key`: `(rows, heads, .., head_dim)`.
    fn terms(
        &self,
        pass: &Pass<'_>,
        layer: &Layer,
        positions: &Positions,
        group: &Group,
        query: &Tensor,
        key: &Tensor,
    ) -> Result<Tensor> {
        let relative = self.config.relative.expect("there are positions");
        let (rows, heads, queries, d) = query.size4()?;
        let keys = key.size()[2];
        let (first, embeddings) = positions.within(group.longest)?;
        let of = |states: &Tensor, which: usize, turned: bool| -> Result<Tensor> {
            let table = layer.project(&embeddings, which, self.config.hidden)?;
            // (heads, head_dim, positions)
            let table = table.f_view([-1, heads, d])?.f_permute([1, 2, 0])?;
            let index = positions.index(queries, keys, first, turned, pass)?;
            let shape = [rows, heads, index.size()[0], index.size()[1]];
            Ok(states.f_matmul(&table)?.f_gather(3, &index.f_expand(shape, false)?, false)?)
        };
        let of_queries = if relative.c2p { Some(of(query, 1, false)?) } else { None };
        let of_keys = if relative.p2c { Some(of(key, 0, true)?.f_transpose(2, 3)?) } else { None };
        Ok(match (of_queries, of_keys) {
            (Some(one), Some(other)) => one.f_add(&other)?,
            (one, other) => one.or(other).expect("there are positions for one of them"),
        })
    }
}

impl Network for Deberta {
    fn forward(&self, pass: &Pass<'_>) -> Result<Tensor> {
        let embedded = self.embed(pass)?;
        let positions = self.positions(pass)?;
        let mut x = embedded.shallow_clone();
        let mut firsts = false;
        for i in 0..self.layers.len() {
            pass.go_on()?;
            let convolution = self.convolution.as_ref().filter(|_| i == 0);
            firsts = i + 1 == self.layers.len() && convolution.is_none();
            x = self.layer(pass, i, &x, positions.as_ref(), firsts)?;
            if let Some(convolution) = convolution {
                x = convolution.apply(pass, &embedded, &x)?;
            }
        }
        let first = if firsts { x } else { pass.batch.firsts(&x)? };
        let first = pass.drop(first, Site::HeadInput, Of::Rows)?;
        let pooled = activate(&self.dense.apply(&first)?, self.config.pooler_activation)?;
        self.out.apply(&pass.drop(pooled, Site::HeadInner, Of::Rows)?)
    }
}
