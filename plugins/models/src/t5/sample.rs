//! Choosing a token: temperature, then top-k, then top-p, then one draw; or the best few for a beam.
//!
//! Semantics of transformers' `TemperatureLogitsWarper`, `TopKLogitsWarper` and `TopPLogitsWarper`. The draw
//! inverts the cumulative distribution in vocabulary order, summed in f64.

use crate::rows;
use crate::simd::dispatched;

/// A sampling setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warp {
    /// Logits are divided by it.
    pub temperature: f64,
    /// Tokens below the k-th highest logit are dropped (equals of it stay); 0: none.
    pub top_k: usize,
    /// The most probable tokens whose probabilities add up to it stay, the crossing one included; 1: all.
    pub top_p: f64,
}

/// Buffers kept between draws.
#[derive(Default)]
pub struct Buffers {
    scaled: Vec<f32>,
    support: Vec<(u32, f32)>,
    order: Vec<usize>,
}

/// Draws a token by the uniform number `u` in [0, 1). `forbidden`: a token whose probability is 0.
pub fn draw(logits: &[f32], forbidden: Option<u32>, warp: Warp, u: f64, buffers: &mut Buffers) -> u32 {
    if warp.top_k == 0 && warp.top_p >= 1.0 {
        return draw_from_all(logits, forbidden, warp.temperature, u, &mut buffers.scaled);
    }
    support(logits, forbidden, warp, buffers);
    invert(&buffers.support, u)
}

/// The token of a support, in vocabulary order, to which `u` leads.
fn invert(support: &[(u32, f32)], u: f64) -> u32 {
    let total: f64 = support.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let mut below = 0.0;
    for &(token, weight) in support {
        below += f64::from(weight);
        if below > u * total {
            return token;
        }
    }
    support.last().expect("a support has a token").0
}

/// The highest logits of a distribution, which a device has picked out of all: what can be told from them is told as
/// from all, and the rest is not told.
pub struct Shortlist<'a> {
    /// In vocabulary order.
    pub tokens: &'a [(u32, f32)],
    /// No other token has a higher logit.
    pub floor: f32,
}

impl Shortlist<'_> {
    /// As [`draw`]; `None`: all logits are needed.
    pub fn draw(&self, forbidden: Option<u32>, warp: Warp, u: f64, buffers: &mut Buffers) -> Option<u32> {
        if warp.top_k == 0 {
            return None;
        }
        let divisor = warp.temperature as f32;
        let bound = self.top_tokens(forbidden, warp.top_k)?.last().map(|&(_, logit)| logit / divisor)?;
        // Division keeps the order: tokens that are not listed stay below.
        if self.floor / divisor >= bound {
            return None;
        }
        let kept = self.tokens.iter().map(|&(token, logit)| (token, logit / divisor));
        buffers.support.clear();
        buffers.support.extend(kept.filter(|&(token, x)| x >= bound && Some(token) != forbidden));
        weigh(warp.top_p, buffers);
        Some(invert(&buffers.support, u))
    }

    /// As [`top_tokens`]; `None`: all logits are needed.
    pub fn top_tokens(&self, forbidden: Option<u32>, count: usize) -> Option<Vec<(u32, f32)>> {
        let mut top: Vec<(u32, f32)> =
            self.tokens.iter().copied().filter(|&(token, _)| Some(token) != forbidden).collect();
        // Stable, and the list is in vocabulary order.
        top.sort_by(|a, b| b.1.total_cmp(&a.1));
        top.truncate(count);
        (top.len() == count && top.last().is_none_or(|&(_, logit)| logit > self.floor)).then_some(top)
    }
}

/// Tokens in vocabulary order with their probabilities.
fn support<'a>(
    logits: &[f32],
    forbidden: Option<u32>,
    warp: Warp,
    buffers: &'a mut Buffers,
) -> &'a [(u32, f32)] {
    let Buffers { scaled, support, .. } = &mut *buffers;
    support.clear();
    if warp.top_k > 0 {
        // Division by a positive temperature keeps the order, so the few survivors are divided afterwards; equals
        // that the division makes of different logits are kept by testing the quotient.
        let divisor = warp.temperature as f32;
        let top = top_tokens(logits, forbidden, warp.top_k);
        let bound = top.last().map_or(f32::NEG_INFINITY, |&(_, logit)| logit / divisor);
        let margin = bound * divisor - (bound * divisor).abs() * 1e-6 - f32::MIN_POSITIVE;
        for (block, values) in logits.chunks(256).enumerate() {
            if !any_above(values, margin) {
                continue;
            }
            for (i, &logit) in values.iter().enumerate() {
                let token = (block * 256 + i) as u32;
                if logit / divisor >= bound && Some(token) != forbidden {
                    support.push((token, logit / divisor));
                }
            }
        }
    } else {
        divide(logits, warp.temperature, scaled);
        support.extend(
            scaled.iter().enumerate().map(|(i, &x)| (i as u32, x)).filter(|&(i, _)| Some(i) != forbidden),
        );
    }
    weigh(warp.top_p, buffers);
    &buffers.support
}

/// Makes probabilities of a support's logits, and keeps the most probable tokens up to `top_p`.
fn weigh(top_p: f64, buffers: &mut Buffers) {
    let Buffers { scaled, support, order } = buffers;
    scaled.clear();
    scaled.extend(support.iter().map(|&(_, x)| x));
    rows::softmax(scaled, support.len(), 1.0);
    for (entry, &weight) in support.iter_mut().zip(&scaled[..]) {
        entry.1 = weight;
    }
    if top_p < 1.0 {
        keep_nucleus(support, top_p, order);
    }
}

/// Keeps the most probable tokens until their sum crosses `top_p`. Among equals the higher id counts as more
/// probable, as in the reference's ascending sort.
fn keep_nucleus(support: &mut Vec<(u32, f32)>, top_p: f64, order: &mut Vec<usize>) {
    let total: f64 = support.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let rank = |a: &usize, b: &usize| support[*b].1.total_cmp(&support[*a].1).then(b.cmp(a));
    order.clear();
    order.extend(0..support.len());
    // Sort only as many as are needed: the nucleus is usually a small part of the vocabulary.
    let (mut sorted, mut above, mut kept) = (0, 0.0, 0);
    while kept == sorted && sorted < order.len() {
        let until = (sorted.max(32) * 4).min(order.len());
        if until < order.len() {
            order[sorted..].select_nth_unstable_by(until - sorted - 1, rank);
        }
        order[sorted..until].sort_unstable_by(rank);
        while kept < until && (kept == 0 || above < top_p * total) {
            above += f64::from(support[order[kept]].1);
            kept += 1;
        }
        sorted = until;
    }
    order.truncate(kept);
    order.sort_unstable();
    for (slot, &from) in order.iter().enumerate() {
        support[slot] = support[from];
    }
    support.truncate(kept);
}

fn draw_from_all(
    logits: &[f32],
    forbidden: Option<u32>,
    temperature: f64,
    u: f64,
    weights: &mut Vec<f32>,
) -> u32 {
    divide(logits, temperature, weights);
    if let Some(token) = forbidden {
        weights[token as usize] = f32::NEG_INFINITY;
    }
    rows::softmax(weights, logits.len(), 1.0);
    let sum = |values: &[f32]| values.iter().map(|&w| f64::from(w)).sum::<f64>();
    let blocks: Vec<f64> = weights.chunks(256).map(sum).collect();
    let goal = u * blocks.iter().sum::<f64>();
    let (mut below, mut last) = (0.0, 0);
    for (block, (&sum, values)) in blocks.iter().zip(weights.chunks(256)).enumerate() {
        if below + sum <= goal {
            below += sum;
            continue;
        }
        for (i, &weight) in values.iter().enumerate() {
            if weight > 0.0 {
                last = block * 256 + i;
                below += f64::from(weight);
                if below > goal {
                    return last as u32;
                }
            }
        }
    }
    // Only rounding of the sums leads here: the last token with a probability.
    last as u32
}

fn divide(logits: &[f32], divisor: f64, out: &mut Vec<f32>) {
    out.clear();
    out.extend(logits.iter().map(|x| x / divisor as f32));
}

dispatched! {
    /// True if a value is greater than `bound`.
    fn any_above(x: &[f32], bound: f32) -> bool {
        let mut found = false;
        for v in x {
            found |= *v > bound;
        }
        found
    }
}

/// The `count` highest logits, best first; the lower token first among equals.
pub fn top_tokens(logits: &[f32], forbidden: Option<u32>, count: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    let mut bound = f32::NEG_INFINITY;
    for (block, values) in logits.chunks(256).enumerate() {
        if top.len() == count && !any_above(values, bound) {
            continue;
        }
        for (i, &logit) in values.iter().enumerate() {
            let token = (block * 256 + i) as u32;
            if (top.len() == count && logit <= bound) || Some(token) == forbidden {
                continue;
            }
            let place = top.partition_point(|&(_, other)| other >= logit);
            if top.len() == count {
                top.pop();
            }
            top.insert(place, (token, logit));
            if top.len() == count {
                bound = top[count - 1].1;
            }
        }
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::random::{fold, mix};

    /// Few different values, so that many tokens are equals.
    fn logits(seed: u64, vocabulary: u64, values: u64) -> Vec<f32> {
        (0..vocabulary).map(|i| (fold(mix(seed), i) % values) as f32 / 8.0 - 3.0).collect()
    }

    #[test]
    fn a_shortlist_tells_what_all_logits_tell_or_nothing() {
        let (mut told, mut untold) = (0, 0);
        for seed in 0..300 {
            let logits = logits(seed, 40 + seed % 500, [3, 40, 4000][seed as usize % 3]);
            let listed = 1 + (seed as usize * 7) % logits.len();
            let mut order: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            // A device puts equals in any order.
            order.sort_by(|a, b| b.1.total_cmp(&a.1).then(mix(u64::from(a.0)).cmp(&mix(u64::from(b.0)))));
            let (mut tokens, mut floor) = (order[..listed].to_vec(), order[listed - 1].1);
            if listed == logits.len() {
                floor = f32::NEG_INFINITY;
            }
            tokens.sort_by_key(|&(token, _)| token);
            let list = Shortlist { tokens: &tokens, floor };
            let forbidden = (seed % 2 == 0).then_some(order[0].0);
            let count = 1 + (seed as usize * 5) % 60;
            let all = top_tokens(&logits, forbidden, count);
            if let Some(top) = list.top_tokens(forbidden, count) {
                assert_eq!(top, all, "{seed}");
            }
            let mut buffers = Buffers::default();
            for (top_p, temperature) in [(1.0, 1.0), (0.7, 0.9)] {
                let warp = Warp { temperature, top_k: count.min(logits.len() - 1), top_p };
                let u = (fold(mix(seed), 1) % 1000) as f64 / 1000.0;
                match list.draw(forbidden, warp, u, &mut buffers) {
                    Some(token) => {
                        assert_eq!(token, draw(&logits, forbidden, warp, u, &mut buffers), "{seed}");
                        told += 1;
                    }
                    None => untold += 1,
                }
            }
        }
        assert!(told > 100 && untold > 50, "{told} {untold}");
    }
}
