//! From a step's logits to the tokens that searches asked for.
//!
//! On the CPU from all logits. A GPU picks the highest of each row, and only these go to the CPU; a row of which they do
//! not tell enough (equals at the border, no top-k) goes whole. The answers are the same either way.

use std::ops::Range;

use cappy_plugin_abi::Failure;
use cappy_plugin_models::rows;
use cappy_plugin_models::t5::sample::{self, Shortlist};
use cappy_plugin_models::t5::search::{Ask, Choice, Pick};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::engine::Result;
use crate::weights::numbers;

/// What a sequence feeds into a step, in the place of its slot.
#[derive(Clone, Default)]
pub struct Position {
    /// The encoding's row.
    pub source: usize,
    /// Its last token.
    pub token: u32,
    /// What is asked of the distribution behind it.
    pub asks: Range<usize>,
}

/// The answers to each position's asks.
type Answers = Vec<Vec<Vec<Pick>>>;

/// Asked of all logits, `(positions, vocab)`, wherever they are.
///
/// # Errors
/// `NotFinite` naming the encoding's row.
pub fn from_all(positions: &[Position], asks: &[Ask], logits: &Tensor) -> Result<Answers> {
    let (vocab, logits) = (logits.size()[1] as usize, numbers(logits)?);
    let answers = positions.par_iter().zip(logits.par_chunks_exact(vocab)).map(|(position, logits)| {
        let log_total = finite(rows::log_sum_exp(logits), position)?;
        let mut buffers = sample::Buffers::default();
        let answer = |ask: &Ask| {
            let chosen = match ask.choice {
                Choice::Best(count) => sample::top_tokens(logits, ask.forbidden, count),
                Choice::Draw(warp, u) => {
                    let token = sample::draw(logits, ask.forbidden, warp, u, &mut buffers);
                    vec![(token, logits[token as usize])]
                }
            };
            picks(&chosen, log_total)
        };
        Ok(asks[position.asks.clone()].iter().map(answer).collect())
    });
    Ok(answers.collect::<std::result::Result<_, Failure>>()?)
}

/// Asked of each row's highest logits where these suffice.
///
/// # Errors
/// As [`from_all`].
pub fn from_shortlists(positions: &[Position], asks: &[Ask], logits: &Tensor) -> Result<Answers> {
    let vocab = logits.size()[1] as usize;
    let asked = positions.iter().flat_map(|position| &asks[position.asks.clone()]);
    // As many again for equals, and one that may not be taken.
    let listed = (2 * asked.map(wanted).max().unwrap_or(0) + 1).min(vocab);
    let logits = logits.f_to_kind(Kind::Float)?;
    let (values, tokens) = logits.f_topk(listed as i64, 1, true, true)?;
    let totals = numbers(&logits.f_logsumexp([1], false)?)?;
    let (values, tokens) = (numbers(&values)?, integers(&tokens)?);
    let rows = positions.par_iter().zip(totals.par_iter());
    let rows = rows.zip(values.par_chunks_exact(listed).zip(tokens.par_chunks_exact(listed)));
    let answers = rows.map(|((position, &log_total), (values, tokens))| {
        let log_total = finite(log_total, position)?;
        let mut list: Vec<(u32, f32)> =
            tokens.iter().map(|&token| token as u32).zip(values.iter().copied()).collect();
        list.sort_unstable_by_key(|&(token, _)| token);
        let floor = if listed == vocab { f32::NEG_INFINITY } else { values[listed - 1] };
        let list = Shortlist { tokens: &list, floor };
        let mut buffers = sample::Buffers::default();
        let answer = |ask: &Ask| {
            let chosen = match ask.choice {
                Choice::Best(count) => list.top_tokens(ask.forbidden, count)?,
                Choice::Draw(warp, u) => {
                    let token = list.draw(ask.forbidden, warp, u, &mut buffers)?;
                    let at = list.tokens.binary_search_by_key(&token, |&(token, _)| token).ok()?;
                    vec![list.tokens[at]]
                }
            };
            Some(picks(&chosen, log_total))
        };
        Ok(asks[position.asks.clone()].iter().map(answer).collect())
    });
    let answers: Vec<Option<Vec<Vec<Pick>>>> = answers.collect::<std::result::Result<_, Failure>>()?;
    let open: Vec<usize> = (0..answers.len()).filter(|&row| answers[row].is_none()).collect();
    let mut whole = Vec::new().into_iter();
    if !open.is_empty() {
        let index: Vec<i64> = open.iter().map(|&row| row as i64).collect();
        let index = Tensor::f_from_slice(&index)?.f_to_device(logits.device())?;
        let positions: Vec<Position> = open.iter().map(|&row| positions[row].clone()).collect();
        whole = from_all(&positions, asks, &logits.f_index_select(0, &index)?)?.into_iter();
    }
    let answers = answers.into_iter().map(|row| row.or_else(|| whole.next()).expect("one an open row"));
    Ok(answers.collect())
}

/// How many of the highest logits an ask is about, as far as it is about few.
fn wanted(ask: &Ask) -> usize {
    match ask.choice {
        Choice::Best(count) => count,
        Choice::Draw(warp, _) => warp.top_k,
    }
}

fn finite(log_total: f32, position: &Position) -> std::result::Result<f32, Failure> {
    if log_total.is_finite() {
        return Ok(log_total);
    }
    Err(Failure::not_finite(format!("logits of encoded row {} are not finite", position.source)))
}

fn picks(chosen: &[(u32, f32)], log_total: f32) -> Vec<Pick> {
    chosen.iter().map(|&(token, logit)| Pick { token, log_prob: logit - log_total }).collect()
}

fn integers(of: &Tensor) -> Result<Vec<i64>> {
    let mut values = vec![0; of.numel()];
    let count = values.len();
    of.f_to_device(Device::Cpu)?.f_contiguous()?.f_copy_data(&mut values, count)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cappy_plugin_abi::random::{fold, mix};
    use cappy_plugin_models::t5::sample::Warp;

    /// Rows of few values, whose borders are full of equals, and rows of many; asks that top-k answers and others.
    #[test]
    fn shortlists_answer_as_all_logits_do() {
        let draw = |top_k, top_p, u| Choice::Draw(Warp { temperature: 0.9, top_k, top_p }, u);
        let choices = || {
            [Choice::Best(8), draw(40, 1.0, 0.7), draw(50, 0.95, 0.2), draw(0, 1.0, 0.5), draw(0, 0.9, 0.1)]
        };
        let mut positions = Vec::new();
        let (mut asks, mut numbers) = (Vec::new(), Vec::new());
        let (rows, vocab) = (60_u64, 700_u64);
        for row in 0..rows {
            let first = asks.len();
            // Every third position is asked what only all logits tell.
            let some = if row % 3 == 0 { 5 } else { 3 };
            asks.extend(
                choices()
                    .into_iter()
                    .take(some)
                    .map(|choice| Ask { forbidden: (row % 2 == 0).then_some(1), choice }),
            );
            positions.push(Position { source: row as usize, token: 0, asks: first..asks.len() });
            let values = [5, 60, 1 << 20][(row / 3) as usize % 3];
            numbers.extend((0..vocab).map(|i| (fold(mix(row), i) % values) as f32 * 8.0 / values as f32));
        }
        let logits = Tensor::from_slice(&numbers).view([rows as i64, vocab as i64]);
        let all = from_all(&positions, &asks, &logits).expect("finite");
        let listed = from_shortlists(&positions, &asks, &logits).expect("finite");
        for (row, (all, listed)) in all.iter().zip(&listed).enumerate() {
            assert_eq!(all.len(), listed.len(), "{row}");
            for (all, listed) in all.iter().flatten().zip(listed.iter().flatten()) {
                assert_eq!(all.token, listed.token, "{row}");
                assert!((all.log_prob - listed.log_prob).abs() < 1e-5, "{row}");
            }
        }
        let broken = logits.copy();
        let _ = broken.narrow(0, 7, 1).fill_(f64::NAN);
        for failure in [from_all(&positions, &asks, &broken), from_shortlists(&positions, &asks, &broken)] {
            let failure = Failure::from(failure.err().expect("refused"));
            assert!(failure.message.contains("row 7"), "{failure}");
        }
    }
}
