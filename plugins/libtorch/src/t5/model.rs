//! The forward pass. Linear layers see all tokens of all rows at once; attention goes by groups of rows.
//!
//! The residual stream and norms are f32; products are in the model's number format, but for those that
//! `weights.rs` says. A rank of several adds up what each computed of a block before it adds it to the stream.

use cappy_plugin_abi::Control;
use cappy_plugin_models::t5::config::{Activation, Config};
use tch::{Device, Kind, Tensor};

use super::cross::{Asking, Encoding, SourceGroup};
use super::positions::Positions;
use super::shard::Shard;
use super::weights::{Layer, Stack, Weights};
use crate::engine::Result;
use crate::ragged::{Group, Ragged};

/// Biases that are held at once for a group of rows: 128 MB.
const MASK_VALUES: usize = 1 << 25;

/// A loaded model, or a rank's slices of one.
pub struct Model {
    /// Shape.
    pub config: Config,
    /// Tensors.
    pub weights: Weights,
    /// Which part it is.
    pub shard: Shard,
    /// Of the products.
    pub kind: Kind,
    /// Where it runs.
    pub device: Device,
}

/// A model at work for one call.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The model.
    pub model: &'a Model,
    /// The call's.
    pub control: &'a dyn Control,
}

/// A self-attention: of a layer, over its queries, keys and values, `(tokens, 3 * inner)`; gives `(tokens, inner)`.
pub type Attend<'a> = dyn FnMut(usize, &Tensor) -> Result<Tensor> + 'a;

/// An attention to the source: of a layer, over its queries, `(tokens, inner)`; gives `(tokens, inner)`.
type AttendSource<'a> = dyn Fn(usize, &Tensor) -> Result<Tensor> + 'a;

/// softmax(queries x keys + mask) x values, without a scale.
///
/// `queries`: `(rows, heads, some, size)`; `keys`, `values`: `(rows, heads, others, size)`; result:
/// `(rows, some, heads * size)`.
pub fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let out =
        Tensor::f_scaled_dot_product_attention(queries, keys, values, mask, 0.0, false, Some(1.0), false)?;
    let (rows, heads, some, size) = out.size4()?;
    Ok(out.f_transpose(1, 2)?.f_reshape([rows, some, heads * size])?)
}

/// `(rows, some, heads * size)` as `(rows, heads, some, size)`.
pub fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, some, _) = x.size3()?;
    Ok(x.f_view([rows, some, heads as i64, -1])?.f_transpose(1, 2)?)
}

impl Model {
    /// Heads of this rank.
    pub fn heads(&self) -> usize {
        self.shard.heads(&self.config).len()
    }

    /// Positions as `(rows, heads, some, size)` each: queries, keys and values of `(rows, some, 3 * inner)`.
    pub fn split_three(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let (rows, some, _) = x.size3()?;
        let x = x.f_view([rows, some, 3, self.heads() as i64, -1])?.f_permute([2, 0, 3, 1, 4])?;
        Ok([x.f_select(0, 0)?, x.f_select(0, 1)?, x.f_select(0, 2)?])
    }

    fn linear(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(x.f_to_kind(weight.kind())?.f_linear(weight, None::<Tensor>)?)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let width = self.config.d_model as i64;
        Ok(x.f_rms_norm([width], Some(weight), f64::from(self.config.epsilon))?)
    }
}

impl Pass<'_> {
    /// Embeddings of `tokens`, `(tokens, d_model)`.
    ///
    /// # Errors
    /// `Cancelled`, or what the ranks or the engine say.
    pub fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let Model { config, weights, shard, device, .. } = self.model;
        let own = shard.tokens(config);
        let ids: Vec<i64> = tokens
            .iter()
            .map(|&token| if own.contains(&(token as usize)) { token as i64 - own.start as i64 } else { -1 })
            .collect();
        let ids = Tensor::f_from_slice(&ids)?.f_to_device(*device)?;
        if own.len() == config.vocab_size {
            return Ok(weights.embedding.f_index_select(0, &ids)?);
        }
        // The others have those of the remaining tokens.
        let mine = ids.f_ge(0)?.f_to_kind(Kind::Float)?.f_unsqueeze(1)?;
        let rows = weights.embedding.f_index_select(0, &ids.f_clamp_min(0)?)?;
        shard.sum(rows.f_mul(&mine)?, self.control)
    }

    /// Encodes rows that lie one after the other; `rows` are their numbers in the encoding.
    ///
    /// # Errors
    /// As [`Pass::embed`].
    pub fn encode(
        &self,
        tokens: &[u32],
        lengths: &[usize],
        rows: &[usize],
        positions: &Positions,
    ) -> Result<Vec<SourceGroup>> {
        let Model { config, weights, kind, device, .. } = self.model;
        let ragged = Ragged::new(lengths, *device)?;
        let whole = self.whole(&ragged, positions)?;
        let x = self.stack(&weights.encoder, tokens, &mut |_, x| whole(x), None)?;
        let (heads, size) = (self.model.heads() as i64, config.d_kv as i64);
        let mut groups = ragged
            .groups
            .iter()
            .map(|group| {
                let mut group = group.clone();
                let mask = group.mask(*kind, *device)?;
                group.rows.iter_mut().for_each(|row| *row = rows[*row]);
                Ok(SourceGroup { group, mask, layers: Vec::with_capacity(weights.decoder.layers.len()) })
            })
            .collect::<Result<Vec<_>>>()?;
        for layer in &weights.decoder.layers {
            let cross = layer.cross.as_ref().expect("decoder layers attend to the source");
            let both = self.model.linear(&x, &cross.key_value)?;
            for (i, group) in groups.iter_mut().enumerate() {
                let both = ragged.padded(i, &both)?;
                let (count, longest, _) = both.size3()?;
                let both = both.f_view([count, longest, 2, heads, size])?.f_permute([2, 0, 3, 1, 4])?;
                // A copy: a view would hold on to the tokens of all groups.
                let part = |which: i64| {
                    let size = [count, heads, longest, size];
                    let mut copy = Tensor::f_empty(size, (*kind, *device))?;
                    copy.f_copy_(&both.f_select(0, which)?).map(|()| copy)
                };
                group.layers.push((part(0)?, part(1)?));
            }
        }
        Ok(groups)
    }

    /// Self-attention within whole rows, whose biases are made once for all layers; those of very long rows would fill
    /// the memory, and are made again for a few queries at a time.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn whole<'r>(
        &self,
        ragged: &'r Ragged,
        positions: &'r Positions,
    ) -> Result<impl Fn(&Tensor) -> Result<Tensor> + use<'r, '_>> {
        let model = self.model;
        // Queries that a mask may have; a group with padding is never large.
        let queries = |group: &Group| (MASK_VALUES / (model.heads() * group.longest)).max(1);
        let masks = ragged
            .groups
            .iter()
            .map(|group| {
                let all = 0..group.longest;
                (all.len() <= queries(group)).then(|| positions.of(group, all)).transpose()
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(move |x: &Tensor| {
            let mut parts = Vec::with_capacity(masks.len());
            for (i, (group, mask)) in ragged.groups.iter().zip(&masks).enumerate() {
                let [of, keys, values] = model.split_three(&ragged.padded(i, x)?)?;
                if let Some(mask) = mask {
                    parts.push(attend(&of, &keys, &values, Some(mask))?);
                    continue;
                }
                let mut answers = Vec::new();
                for first in (0..group.longest).step_by(queries(group)) {
                    let some = first..(first + queries(group)).min(group.longest);
                    let mask = positions.of(group, some.clone())?;
                    let of = of.f_narrow(2, first as i64, some.len() as i64)?;
                    answers.push(attend(&of, &keys, &values, Some(&mask))?);
                }
                parts.push(Tensor::f_cat(&answers, 1)?);
            }
            ragged.packed(&parts)
        })
    }

    /// The decoder's outputs for `tokens`, `(tokens, d_model)`, ready for [`Pass::logits`].
    ///
    /// # Errors
    /// As [`Pass::embed`].
    pub fn decode(
        &self,
        tokens: &[u32],
        own: &mut Attend<'_>,
        encoding: &Encoding,
        asking: &Asking,
    ) -> Result<Tensor> {
        let heads = self.model.heads();
        let source = |layer: usize, queries: &Tensor| encoding.attend(asking, layer, queries, heads);
        self.stack(&self.model.weights.decoder, tokens, own, Some(&source))
    }

    /// Logits of this rank's tokens, `(rows, tokens)`, from the decoder's outputs.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn own_logits(&self, outputs: &Tensor) -> Result<Tensor> {
        let Model { config, weights, .. } = self.model;
        match &weights.head {
            Some(head) => self.model.linear(outputs, head),
            None => {
                let scale = (config.d_model as f64).powf(-0.5);
                self.model.linear(&outputs.f_mul_scalar(scale)?, &weights.embedding)
            }
        }
    }

    /// Logits, `(rows, vocab)`.
    ///
    /// # Errors
    /// As [`Pass::embed`].
    pub fn logits(&self, outputs: &Tensor) -> Result<Tensor> {
        let Model { config, shard, .. } = self.model;
        shard.join(self.own_logits(outputs)?, config, self.control)
    }

    fn stack(
        &self,
        stack: &Stack,
        tokens: &[u32],
        own: &mut Attend<'_>,
        source: Option<&AttendSource<'_>>,
    ) -> Result<Tensor> {
        let model = self.model;
        let mut x = self.embed(tokens)?;
        for (i, layer) in stack.layers.iter().enumerate() {
            let Layer { attention, cross, forward } = layer;
            let h = model.linear(&model.norm(&x, &attention.norm)?, &attention.query_key_value)?;
            self.add(&mut x, model.linear(&own(i, &h)?, &attention.output)?)?;
            if let (Some(cross), Some(source)) = (cross, source) {
                let h = model.linear(&model.norm(&x, &cross.norm)?, &cross.query)?;
                self.add(&mut x, model.linear(&source(i, &h)?, &cross.output)?)?;
            }
            let h = model.linear(&model.norm(&x, &forward.norm)?, &forward.up)?;
            self.add(&mut x, model.linear(&self.activate(&h)?, &forward.down)?)?;
        }
        model.norm(&x, &stack.final_norm)
    }

    /// Adds a block's result, of which every rank has a part, to the stream.
    fn add(&self, x: &mut Tensor, part: Tensor) -> Result<()> {
        let sum = self.model.shard.sum(part.f_to_kind(Kind::Float)?, self.control)?;
        let _ = x.f_add_(&sum)?;
        Ok(())
    }

    fn activate(&self, x: &Tensor) -> Result<Tensor> {
        let Config { activation, gated, .. } = self.model.config;
        let function = |x: &Tensor| match activation {
            Activation::Relu => x.f_relu(),
            Activation::GeluNew => x.f_gelu("tanh"),
        };
        if !gated {
            return Ok(function(x)?);
        }
        let width = x.size()[1] / 2;
        Ok(function(&x.f_narrow(1, 0, width)?)?.f_mul(&x.f_narrow(1, width, width)?)?)
    }
}
