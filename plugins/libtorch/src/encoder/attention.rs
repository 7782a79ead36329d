//! Attention of packed rows: as they lie where there is a kernel for it (`packed.rs`), else group by group, padded to the
//! group's longest row.

use tch::{Kind, Tensor};

use super::packed::Packed;
use super::padded::Padded;
use super::pass::Pass;
use crate::engine::Result;
use crate::ragged::Group;

/// Queries that attend together where attention is local.
const BLOCK: usize = 256;

/// Added to scores that shall not count: finite, as a query that is padding may see nothing else.
const UNSEEN: f32 = -1e30;

/// What is added to the scaled scores of a group's queries (heads kept apart) with its keys.
pub type Bias<'a> = &'a dyn Fn(&Group, &Tensor, &Tensor) -> Result<Tensor>;

/// How a layer attends.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Its number, for dropout.
    pub layer: usize,
    /// Attention heads.
    pub heads: usize,
    /// What products of queries and keys are multiplied with.
    pub scale: f64,
    /// Tokens before and behind that are seen; None: all.
    pub window: Option<usize>,
    /// `bias(group, queries, keys)`: `(rows, heads, queries, longest)` of queries and keys
    /// `(rows, heads, .., head_dim)`.
    pub bias: Option<Bias<'a>>,
}

impl Attention<'_> {
    /// Of all tokens. `qkv`: `(tokens, 3 * hidden)`; gives `(tokens, hidden)`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn all(&self, pass: &Pass<'_>, qkv: &Tensor) -> Result<Tensor> {
        if let Some(packed) = self.packed(pass, qkv.size()[1] as usize / 3) {
            return packed.all(self, qkv);
        }
        let padded = pass.batch.padded()?;
        let ragged = &padded.ragged;
        let parts = (0..ragged.groups.len()).map(|g| {
            let [query, key, value] = self.heads_of(&ragged.padded(g, qkv)?)?;
            self.attend(pass, padded, g, [&query, &key, &value])
        });
        ragged.packed(&parts.collect::<Result<Vec<_>>>()?)
    }

    /// Of first tokens only. `query`: `(rows, hidden)`, `key_value`: `(tokens, 2 * hidden)`; gives `(rows, hidden)`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn firsts(&self, pass: &Pass<'_>, query: &Tensor, key_value: &Tensor) -> Result<Tensor> {
        // Where attention is local, first tokens see the rows' beginnings; the kernel counts from their ends.
        if let (Some(packed), None) = (self.packed(pass, query.size()[1] as usize), self.window) {
            return packed.firsts(self, query, key_value);
        }
        let padded = pass.batch.padded()?;
        let parts = (0..padded.ragged.groups.len()).map(|g| {
            let [query] = self.heads_of(&padded.group(g, query)?.f_unsqueeze(1)?)?;
            let [key, value] = self.heads_of(&padded.ragged.padded(g, key_value)?)?;
            self.attend(pass, padded, g, [&query, &key, &value])
        });
        padded.joined(&parts.collect::<Result<Vec<_>>>()?)
    }

    /// The rows as they lie, if this attention of `hidden` numbers can take them so.
    fn packed<'p>(&self, pass: &Pass<'p>, hidden: usize) -> Option<&'p Packed> {
        let plain = self.bias.is_none() && !pass.drops() && Packed::fits(hidden / self.heads);
        pass.batch.packed().filter(|_| plain)
    }

    /// `(rows, length, N * hidden)` as N times `(rows, heads, length, head_dim)`.
    fn heads_of<const N: usize>(&self, x: &Tensor) -> Result<[Tensor; N]> {
        let (rows, length, width) = x.size3()?;
        let heads = self.heads as i64;
        let x = x.f_view([rows, length, N as i64, heads, width / N as i64 / heads])?;
        let x = x.f_permute([2, 0, 3, 1, 4])?;
        let mut parts = Vec::with_capacity(N);
        for i in 0..N {
            parts.push(x.f_select(0, i as i64)?);
        }
        Ok(parts.try_into().expect("N parts"))
    }

    /// `query`: `(rows, heads, queries, head_dim)`, keys and values likewise; gives `(rows, queries, hidden)`.
    fn attend(
        &self,
        pass: &Pass<'_>,
        padded: &Padded,
        g: usize,
        [query, key, value]: [&Tensor; 3],
    ) -> Result<Tensor> {
        let (group, padding) = (&padded.ragged.groups[g], padded.masks[g].as_ref());
        let (rows, heads, queries, d) = query.size4()?;
        let dropped = pass.attention_mask(self.layer, group, self.heads, queries as usize)?;
        let bias = self.bias.map(|bias| bias(group, query, key)).transpose()?;
        let context = match (self.window, &dropped) {
            (Some(window), None) if group.longest > BLOCK + 2 * window && queries > 1 => {
                self.local(window, padding, query, key, value)?
            }
            _ => {
                let window = self.window.filter(|window| group.longest > window + 1);
                let near = window.map(|w| near(0..queries, 0..group.longest as i64, w, query)).transpose()?;
                let mask = sum(sum(bias, near.as_ref())?, padding)?;
                self.weigh(query, key, value, mask.as_ref(), dropped.as_ref())?
            }
        };
        Ok(context.f_transpose(1, 2)?.f_reshape([rows, queries, heads * d])?)
    }

    /// Every query sees its neighbours only, so blocks of queries are given no other keys.
    fn local(
        &self,
        window: usize,
        padding: Option<&Tensor>,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<Tensor> {
        let (length, block, window_i) = (query.size()[2], BLOCK as i64, window as i64);
        let mut parts = Vec::new();
        let mut start = 0;
        while start < length {
            let end = (start + block).min(length);
            let keys = (start - window_i).max(0)..(end + window_i).min(length);
            let of = |x: &Tensor, dim: i64| x.f_narrow(dim, keys.start, keys.end - keys.start);
            let padding = padding.map(|mask| of(mask, 3)?.f_clamp_min(f64::from(UNSEEN))).transpose()?;
            let mask = sum(Some(near(start..end, keys.clone(), window, query)?), padding.as_ref())?;
            let query = query.f_narrow(2, start, end - start)?;
            parts.push(self.weigh(&query, &of(key, 2)?, &of(value, 2)?, mask.as_ref(), None)?);
            start = end;
        }
        Ok(Tensor::f_cat(&parts, 2)?)
    }

    /// softmax(scale * query . key + mask), dropped, . value.
    fn weigh(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: Option<&Tensor>,
        dropped: Option<&Tensor>,
    ) -> Result<Tensor> {
        let Some(dropped) = dropped else {
            return Ok(Tensor::f_scaled_dot_product_attention(
                query, key, value, mask, 0.0, false, self.scale, false,
            )?);
        };
        // torch's own dropout draws from its own generator.
        let mut scores = query.f_mul_scalar(self.scale)?.f_matmul(&key.f_transpose(2, 3)?)?;
        if let Some(mask) = mask {
            scores = scores.f_add(mask)?;
        }
        Ok(scores.f_softmax(-1, None::<Kind>)?.f_mul(dropped)?.f_matmul(value)?)
    }
}

fn sum(one: Option<Tensor>, other: Option<&Tensor>) -> Result<Option<Tensor>> {
    Ok(match (one, other) {
        (Some(one), Some(other)) => Some(one.f_add(other)?),
        (one, other) => one.or(other.map(Tensor::shallow_clone)),
    })
}

/// 0 where a key is near its query, [`UNSEEN`] elsewhere; `(queries, keys)`, of the kind of `like`.
fn near(
    queries: std::ops::Range<i64>,
    keys: std::ops::Range<i64>,
    window: usize,
    like: &Tensor,
) -> Result<Tensor> {
    let shape = [queries.end - queries.start, keys.end - keys.start];
    let values: Vec<f32> = queries
        .flat_map(|i| keys.clone().map(move |j| if i.abs_diff(j) <= window as u64 { 0.0 } else { UNSEEN }))
        .collect();
    Ok(Tensor::f_from_slice(&values)?.f_view(shape)?.f_to_kind(like.f_kind()?)?.f_to_device(like.device())?)
}
