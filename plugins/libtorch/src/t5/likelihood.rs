//! Log-probabilities of given targets: whole sequences through the decoder at once.

use cappy_plugin_abi::{Failure, RaggedTokens};
use tch::{Device, Kind, Tensor};

use super::cross::Encoding;
use super::model::{Model, Pass};
use super::positions::Positions;
use crate::engine::Result;
use crate::ragged::{Ragged, blocks};
use crate::weights::numbers;

/// Target tokens that go through the decoder together (a longer target goes alone), and of those the ones whose logits
/// are held at once.
const CPU_TOKENS: (usize, usize) = (2048, 256);
/// Likewise on a GPU.
const GPU_TOKENS: (usize, usize) = (16_384, 4096);

/// Of each token of `targets`, in order; target `i` belongs to row `rows[i]` of the encoding.
///
/// # Errors
/// `Cancelled`; `NotFinite` naming the target; what the engine or the ranks say.
pub fn of(
    pass: Pass<'_>,
    encoding: &Encoding,
    positions: &Positions,
    targets: RaggedTokens<'_>,
    rows: &[u32],
) -> Result<Vec<f32>> {
    // Targets of a length together, and of those the targets of a row, and of a group of rows.
    let mut order: Vec<usize> = (0..targets.rows()).collect();
    order.sort_by_key(|&i| (targets.row(i).len(), encoding.place(rows[i] as usize)));
    let lengths: Vec<usize> = order.iter().map(|&i| targets.row(i).len()).collect();
    let mut log_probs = vec![0.0; targets.tokens.len()];
    let (budget, at_once) = if pass.model.device == Device::Cpu { CPU_TOKENS } else { GPU_TOKENS };
    for block in blocks(&lengths, budget) {
        if pass.control.cancelled() {
            return Err(Failure::cancelled("the call was cancelled").into());
        }
        let (mut inputs, mut expected, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        for &i in &order[block.clone()] {
            let target = targets.row(i);
            inputs.push(pass.model.config.start_token);
            inputs.extend_from_slice(&target[..target.len() - 1]);
            expected.extend_from_slice(target);
            sources.extend(std::iter::repeat_n(rows[i] as usize, target.len()));
        }
        let ragged = Ragged::new(&lengths[block.clone()], pass.model.device)?;
        let asking = encoding.ask(&sources, pass.model.device)?;
        let whole = pass.whole(&ragged, positions)?;
        let outputs = pass.decode(&inputs, &mut |_, x| whole(x), encoding, &asking)?;
        let mut found = Vec::with_capacity(expected.len());
        for (chunk, tokens) in expected.chunks(at_once).enumerate() {
            let part = outputs.f_narrow(0, (chunk * at_once) as i64, tokens.len() as i64)?;
            found.extend(log_probs_of(pass, &part, tokens)?);
        }
        let mut found = found.into_iter();
        for &i in &order[block.clone()] {
            let own = targets.offsets[i] as usize..targets.offsets[i + 1] as usize;
            for (to, log_prob) in log_probs[own].iter_mut().zip(&mut found) {
                if !log_prob.is_finite() {
                    return Err(
                        Failure::not_finite(format!("the likelihood of target {i} is not finite")).into()
                    );
                }
                *to = log_prob;
            }
        }
        pass.control.progress(block.end as u64, targets.rows() as u64);
    }
    Ok(log_probs)
}

/// Logarithm of the softmax at each of `tokens`, whose decoder outputs are `(tokens, d_model)`.
///
/// Ranks exchange two numbers a token, not the logits: log(sum(e^logit)) over their tokens, and the token's logit
/// from whoever has it.
fn log_probs_of(pass: Pass<'_>, outputs: &Tensor, tokens: &[u32]) -> Result<Vec<f32>> {
    let Model { config, shard, device, .. } = pass.model;
    let own = shard.tokens(config);
    let logits = pass.own_logits(outputs)?;
    let at: Vec<i64> = tokens
        .iter()
        .map(|&token| if own.contains(&(token as usize)) { (token as usize - own.start) as i64 } else { -1 })
        .collect();
    let at = Tensor::f_from_slice(&at)?.f_to_device(*device)?.f_unsqueeze(1)?;
    let mine = at.f_ge(0)?.f_to_kind(Kind::Float)?;
    let chosen = logits.f_gather(1, &at.f_clamp_min(0)?, false)?.f_mul(&mine)?;
    let both = Tensor::f_cat(&[logits.f_logsumexp([1], true)?, chosen], 1)?;
    let mut totals = vec![f64::NEG_INFINITY; tokens.len()];
    let mut logit = vec![0.0; tokens.len()];
    for part in shard.gather(both, pass.control)? {
        for (i, pair) in numbers(&part)?.chunks_exact(2).enumerate() {
            totals[i] = log_add(totals[i], f64::from(pair[0]));
            logit[i] += f64::from(pair[1]);
        }
    }
    Ok(logit.iter().zip(&totals).map(|(logit, total)| (logit - total) as f32).collect())
}

/// log(e^a + e^b); not finite if either is infinite upwards or not a number.
fn log_add(a: f64, b: f64) -> f64 {
    if a == f64::NEG_INFINITY {
        return b;
    }
    let top = a.max(b);
    if b.is_nan() { b } else { top + ((a - top).exp() + (b - top).exp()).ln() }
}

#[cfg(test)]
mod tests {
    use super::log_add;

    #[test]
    fn logarithms_add_and_keep_what_is_not_a_number() {
        assert_eq!(log_add(f64::NEG_INFINITY, 3.0), 3.0);
        assert!((log_add(1.0, 2.0) - (1.0_f64.exp() + 2.0_f64.exp()).ln()).abs() < 1e-12);
        assert_eq!(log_add(800.0, -800.0), 800.0);
        assert!(log_add(f64::NAN, 1.0).is_nan() && log_add(1.0, f64::NAN).is_nan());
        assert!(!log_add(f64::INFINITY, 1.0).is_finite());
    }
}
