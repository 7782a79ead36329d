//! One decoding of one row, between steps: what it asks of a position's distribution, and what it makes of the
//! answers.

use super::beam::{self, Candidate, Origin, Snapshot};
use super::sample::Warp;
use cappy_plugin_abi::{Decoding, Failure, Method, MinLengthRule, random};

/// A token and its log-probability under the model's own distribution.
#[derive(Clone, Copy)]
pub struct Pick {
    /// Its id.
    pub token: u32,
    /// Before temperature, top-k, top-p and the minimum length.
    pub log_prob: f32,
}

/// What a search wants to know of a position's distribution.
pub struct Ask {
    /// A token that may not come next.
    pub forbidden: Option<u32>,
    /// How to choose.
    pub choice: Choice,
}

/// How tokens are chosen from a distribution.
pub enum Choice {
    /// The most probable ones.
    Best(usize),
    /// One by this uniform number.
    Draw(Warp, f64),
}

/// A running sequence.
#[derive(Clone, Default)]
pub struct Sequence {
    /// So far.
    pub tokens: Vec<Pick>,
    /// Its row in each step since the search's first.
    pub path: Vec<u32>,
    /// Sum of log-probabilities; beams only.
    score: f32,
}

/// A finished sequence.
pub type Output = Vec<Pick>;

/// A beam search, or one sample.
pub struct Search {
    /// The encoding's row.
    pub row: usize,
    /// Index of the decoding.
    pub decoding: usize,
    /// Index of the sample; 0 for a beam search.
    pub sample: u32,
    /// The step of its first position, which all its sequences share.
    pub start: usize,
    /// Best first.
    pub running: Vec<Sequence>,
    beams: Option<(Snapshot, Vec<Output>)>,
}

/// Refuses settings that no decoding can follow.
///
/// # Errors
/// `InvalidArgument` that names the decoding by its index.
pub fn check(decodings: &[Decoding]) -> Result<(), Failure> {
    for (i, decoding) in decodings.iter().enumerate() {
        let problem = match decoding.method {
            Method::Beam { num_beams: 0, .. } => Some("num_beams must be at least 1"),
            Method::Beam { num_beams, .. } if decoding.num_samples > num_beams => {
                Some("num_samples must not exceed num_beams")
            }
            Method::Beam { length_penalty, .. } if !length_penalty.is_finite() => {
                Some("length_penalty must be finite")
            }
            Method::Sample { temperature, .. } if !(temperature > 0.0 && temperature.is_finite()) => {
                Some("temperature must be positive")
            }
            Method::Sample { top_p, .. } if !(0.0..=1.0).contains(&top_p) => {
                Some("top_p must be between 0 and 1")
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(Failure::invalid_argument(format!("decoding {i}: {problem}")));
        }
    }
    Ok(())
}

/// Refuses a number of row keys other than that of an encoding's rows.
///
/// # Errors
/// `InvalidArgument` with both numbers.
pub fn check_keys(row_keys: &[u64], rows: usize) -> Result<(), Failure> {
    if row_keys.len() == rows {
        return Ok(());
    }
    Err(Failure::invalid_argument(format!("{} row keys for an encoding of {rows} rows", row_keys.len())))
}

/// Refuses targets that belong to no row of an encoding; `rows[i]` is that of target `i`.
///
/// # Errors
/// `InvalidArgument` naming the target, or with both numbers.
pub fn check_owners(rows: &[u32], targets: usize, encoded: usize) -> Result<(), Failure> {
    if rows.len() != targets {
        return Err(Failure::invalid_argument(format!("{} row indices for {targets} targets", rows.len())));
    }
    match rows.iter().enumerate().find(|&(_, &row)| row as usize >= encoded) {
        None => Ok(()),
        Some((i, row)) => Err(Failure::invalid_argument(format!(
            "target {i} belongs to row {row} of an encoding of {encoded} rows"
        ))),
    }
}

/// Sequences of a decoding that run at once.
pub fn width(decoding: &Decoding) -> usize {
    match decoding.method {
        Method::Beam { num_beams, .. } => num_beams as usize,
        Method::Sample { .. } => decoding.num_samples as usize,
    }
}

impl Search {
    /// The searches of all decodings of a row, in order; its first position is computed at step `start`.
    pub fn of_row(row: usize, decodings: &[Decoding], start: usize) -> Vec<Self> {
        let mut made = Vec::new();
        for (i, decoding) in decodings.iter().enumerate() {
            if decoding.max_length < 2 || decoding.num_samples == 0 {
                continue;
            }
            let new = |sample, running, beams| Self { row, decoding: i, sample, start, running, beams };
            match decoding.method {
                Method::Beam { num_beams, .. } => {
                    let beams = num_beams as usize;
                    let mut running = vec![Sequence { score: beam::NOTHING, ..Default::default() }; beams];
                    running[0].score = 0.0;
                    made.push(new(0, running, Some((Snapshot::new(beams), vec![Output::new(); beams]))));
                }
                Method::Sample { .. } => {
                    made.extend((0..decoding.num_samples).map(|s| new(s, vec![Sequence::default()], None)));
                }
            }
        }
        made
    }

    /// What each of its sequences asks of its next position.
    pub fn ask(&self, decoding: &Decoding, eos: u32, seed: u64, row_key: u64) -> Ask {
        let generated = self.running[0].tokens.len() as u32;
        let length = generated + 1;
        let too_short = match decoding.min_length_rule {
            MinLengthRule::Pytorch => length < decoding.min_length,
            MinLengthRule::Flax => length <= decoding.min_length,
        };
        let choice = match decoding.method {
            Method::Beam { num_beams, .. } => Choice::Best(2 * num_beams as usize),
            Method::Sample { temperature, top_k, top_p } => Choice::Draw(
                Warp { temperature, top_k: top_k as usize, top_p },
                random::token_draw(seed, row_key, decoding.key, self.sample, generated),
            ),
        };
        Ask { forbidden: too_short.then_some(eos), choice }
    }

    /// Takes the search one token further; returns its outputs once it is over.
    ///
    /// `answers`: one for each sequence, or a single one at its first position; `first_position`: row of the step
    /// that its first sequence had.
    pub fn advance(
        &mut self,
        decoding: &Decoding,
        eos: u32,
        answers: &[Vec<Pick>],
        first_position: usize,
    ) -> Option<Vec<Output>> {
        let generated = self.running[0].tokens.len();
        let full = generated + 2 >= decoding.max_length as usize;
        let Method::Beam { num_beams, length_penalty, early_stopping } = decoding.method else {
            let sequence = &mut self.running[0];
            sequence.path.push(first_position as u32);
            sequence.tokens.push(answers[0][0]);
            return (full || answers[0][0].token == eos).then(|| vec![std::mem::take(&mut sequence.tokens)]);
        };
        // All beams start as one.
        let place = |beam: usize| if generated == 0 { 0 } else { beam };
        let scored = self.running.iter().enumerate().flat_map(|(beam, sequence)| {
            answers[place(beam)].iter().map(move |pick| ((beam, pick.token), sequence.score + pick.log_prob))
        });
        let num_beams = num_beams as usize;
        let chosen = beam::best(scored.collect(), 2 * num_beams);
        let candidates: Vec<Candidate> = chosen
            .iter()
            .map(|&((_, token), score)| Candidate { score, ends: full || token == eos })
            .collect();
        let extended = |candidate: usize| {
            let (beam, token) = chosen[candidate].0;
            let picks = &answers[place(beam)];
            let pick = picks.iter().find(|p| p.token == token).expect("chosen from these");
            let mut tokens = self.running[beam].tokens.clone();
            tokens.push(*pick);
            (beam, tokens)
        };
        let settings = beam::Settings {
            num_beams,
            length_penalty,
            // One beam is greedy search, which the reference ends at the first end token.
            early_stopping: early_stopping || num_beams == 1,
        };
        let (snapshot, kept) = self.beams.as_mut().expect("a beam search has its state");
        let decided = beam::advance(settings, snapshot, generated, &candidates);
        let places = decided.origins.iter().map(|&origin| match origin {
            Origin::Place(i) => kept[i].clone(),
            Origin::Candidate(i) => extended(i).1,
        });
        let places: Vec<Output> = places.collect();
        if decided.done {
            return Some(places.into_iter().take(decoding.num_samples as usize).collect());
        }
        (*snapshot, *kept) = (decided.after, places);
        let running = decided.running.iter().map(|&(candidate, score)| {
            let (beam, tokens) = extended(candidate);
            let mut path = self.running[beam].path.clone();
            path.push((first_position + place(beam)) as u32);
            Sequence { tokens, path, score }
        });
        self.running = running.collect();
        None
    }
}
