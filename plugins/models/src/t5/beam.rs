//! Beam search bookkeeping: what one step does to one row's beams.
//!
//! A pure function over a snapshot, in the f32 arithmetic of transformers' `GenerationMixin._beam_search` (4.57),
//! so that its choices are the same. Where that implementation leaves ties to `topk`, the lowest index wins.

/// Score of places that hold no sequence, and penalty of sequences that may not be chosen.
pub const NOTHING: f32 = -1.0e9;

/// How a search scores and stops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Sequences kept.
    pub num_beams: usize,
    /// Exponent of the length in a finished sequence's score.
    pub length_penalty: f64,
    /// Stop as soon as `num_beams` sequences are finished.
    pub early_stopping: bool,
}

/// A place for a finished sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Sum of log-probabilities over the penalised length.
    pub score: f32,
    /// False: the place is empty, or holds a sequence that still runs.
    pub finished: bool,
}

/// A continuation of a running beam by one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Sum of log-probabilities.
    pub score: f32,
    /// It ends here: by the end token, or because no more tokens fit.
    pub ends: bool,
}

/// A row's state between steps, apart from its running beams.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Best first; `num_beams` of them.
    pub places: Vec<Place>,
    /// A running beam may still beat the finished ones.
    pub can_improve: bool,
}

impl Snapshot {
    /// Before the first step.
    pub fn new(num_beams: usize) -> Self {
        Self { places: vec![Place { score: NOTHING, finished: false }; num_beams], can_improve: true }
    }
}

/// Where the occupant of a place comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The place with this index before the step.
    Place(usize),
    /// The candidate with this index.
    Candidate(usize),
}

/// What a step decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Candidates that run on, best first: index and score.
    pub running: Vec<(usize, f32)>,
    /// For each place of `after`.
    pub origins: Vec<Origin>,
    /// The state for the next step.
    pub after: Snapshot,
    /// The search is over; the best sequence is in the first place.
    pub done: bool,
}

/// One step: `generated` tokens (without the start token) precede the candidates' last ones.
///
/// `candidates`: the best `2 * num_beams` continuations over all beams, best first.
pub fn advance(settings: Settings, before: &Snapshot, generated: usize, candidates: &[Candidate]) -> Step {
    let beams = settings.num_beams;
    let penalty = |length: usize| (length as f64).powf(settings.length_penalty) as f32;
    let running = best(
        candidates.iter().map(|c| c.score + if c.ends { NOTHING } else { 0.0 }).enumerate().collect(),
        beams,
    );

    let full = before.places.iter().all(|p| p.finished);
    let closed = (full && settings.early_stopping) as u8 + !before.can_improve as u8;
    let kept = before.places.iter().map(|p| p.score);
    let fresh = candidates.iter().enumerate().map(|(i, c)| {
        let mut score = c.score / penalty(generated + 1);
        for _ in 0..closed + !(c.ends && i < beams) as u8 {
            score += NOTHING;
        }
        score
    });
    let chosen = best(kept.chain(fresh).enumerate().collect(), beams);
    let known = before.places.len();
    let places: Vec<Place> = chosen
        .iter()
        .map(|&(i, score)| Place {
            score,
            finished: match i.checked_sub(known) {
                None => before.places[i].finished,
                Some(i) => candidates[i].ends && i < beams,
            },
        })
        .collect();
    let origins = chosen
        .iter()
        .map(|&(i, _)| i.checked_sub(known).map_or(Origin::Place(i), Origin::Candidate))
        .collect();

    // The best running beam is judged at its present length, which a positive penalty makes pessimistic: this is
    // the reference's heuristic, not a bound.
    let reachable = running.first().map_or(f32::NEG_INFINITY, |r| r.1) / penalty(generated + 1);
    let worst = places.iter().map(|p| p.score).fold(f32::INFINITY, f32::min);
    let can_improve =
        before.can_improve && places.iter().any(|p| reachable > if p.finished { worst } else { NOTHING });
    let stopped = settings.early_stopping && places.iter().all(|p| p.finished);
    let done = !can_improve || stopped || candidates.iter().all(|c| c.ends);
    Step { running, origins, after: Snapshot { places, can_improve }, done }
}

/// The `count` highest scores in descending order, the lower index first among equals.
pub fn best<I: Ord + Copy>(mut scored: Vec<(I, f32)>, count: usize) -> Vec<(I, f32)> {
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scored.truncate(count);
    scored
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: Settings = Settings { num_beams: 2, length_penalty: 1.0, early_stopping: false };

    fn candidates(list: &[(f32, bool)]) -> Vec<Candidate> {
        list.iter().map(|&(score, ends)| Candidate { score, ends }).collect()
    }

    fn snapshot(places: &[(f32, bool)]) -> Snapshot {
        let places = places.iter().map(|&(score, finished)| Place { score, finished }).collect();
        Snapshot { places, can_improve: true }
    }

    #[test]
    fn steps_follow_the_reference() {
        let empty = (NOTHING, false);
        struct Case {
            name: &'static str,
            settings: Settings,
            before: Snapshot,
            generated: usize,
            candidates: Vec<Candidate>,
            running: Vec<usize>,
            finished: Vec<Option<f32>>,
            can_improve: bool,
            done: bool,
        }
        let table = [
            Case {
                name: "nothing ends: the two best run on",
                settings: TWO,
                before: snapshot(&[empty, empty]),
                generated: 0,
                candidates: candidates(&[(-1.0, false), (-2.0, false), (-3.0, false), (-4.0, false)]),
                running: vec![0, 1],
                finished: vec![None, None],
                can_improve: true,
                done: false,
            },
            Case {
                name: "an end among the best is kept with its length's penalty, the next ones fill the beams",
                settings: TWO,
                before: snapshot(&[empty, empty]),
                generated: 1,
                candidates: candidates(&[(-1.0, true), (-2.0, false), (-3.0, false), (-4.0, false)]),
                running: vec![1, 2],
                finished: vec![Some(-0.5), None],
                can_improve: true,
                done: false,
            },
            Case {
                name: "an end outside the best is dropped",
                settings: TWO,
                before: snapshot(&[empty, empty]),
                generated: 0,
                candidates: candidates(&[(-1.0, false), (-2.0, false), (-2.5, true), (-4.0, false)]),
                running: vec![0, 1],
                finished: vec![None, None],
                can_improve: true,
                done: false,
            },
            Case {
                name: "full, and the best running beam cannot beat the worst finished one",
                settings: TWO,
                before: snapshot(&[(-0.5, true), empty]),
                generated: 3,
                candidates: candidates(&[(-4.0, true), (-8.0, false), (-9.0, false), (-9.5, false)]),
                running: vec![1, 2],
                finished: vec![Some(-0.5), Some(-1.0)],
                can_improve: false,
                done: true,
            },
            Case {
                name: "full, but the best running beam is ahead",
                settings: TWO,
                before: snapshot(&[(-0.5, true), empty]),
                generated: 3,
                candidates: candidates(&[(-4.0, true), (-3.9, false), (-9.0, false), (-9.5, false)]),
                running: vec![1, 2],
                finished: vec![Some(-0.5), Some(-1.0)],
                can_improve: true,
                done: false,
            },
            Case {
                name: "early stopping ends as soon as the places are full",
                settings: Settings { early_stopping: true, ..TWO },
                before: snapshot(&[(-0.5, true), empty]),
                generated: 3,
                candidates: candidates(&[(-4.0, true), (-3.9, false), (-9.0, false), (-9.5, false)]),
                running: vec![1, 2],
                finished: vec![Some(-0.5), Some(-1.0)],
                can_improve: true,
                done: true,
            },
            Case {
                name: "a better end replaces the worst place, without a length penalty",
                settings: Settings { length_penalty: 0.0, ..TWO },
                before: snapshot(&[(-3.0, true), (-5.0, true)]),
                generated: 7,
                candidates: candidates(&[(-2.0, false), (-4.0, true), (-6.0, false), (-7.0, false)]),
                running: vec![0, 2],
                finished: vec![Some(-3.0), Some(-4.0)],
                can_improve: true,
                done: false,
            },
            Case {
                name: "at the last length everything ends and the best are kept",
                settings: TWO,
                before: snapshot(&[(-0.9, true), empty]),
                generated: 3,
                candidates: candidates(&[(-2.0, true), (-3.2, true), (-4.0, true), (-5.0, true)]),
                running: vec![0, 1],
                finished: vec![Some(-0.5), Some(-0.8)],
                can_improve: false,
                done: true,
            },
        ];
        for case in table {
            let step = advance(case.settings, &case.before, case.generated, &case.candidates);
            assert_eq!(step.running.iter().map(|r| r.0).collect::<Vec<_>>(), case.running, "{}", case.name);
            let finished: Vec<_> = step.after.places.iter().map(|p| p.finished.then_some(p.score)).collect();
            assert_eq!(finished, case.finished, "{}", case.name);
            assert_eq!((step.after.can_improve, step.done), (case.can_improve, case.done), "{}", case.name);
        }
    }

    #[test]
    fn a_closed_row_keeps_its_places() {
        let mut before = snapshot(&[(-0.5, true), (-0.6, true)]);
        before.can_improve = false;
        let step = advance(TWO, &before, 4, &candidates(&[(-0.1, true), (-0.2, true), (-1.0, false)]));
        assert_eq!(step.after, before);
        assert_eq!(step.origins, [Origin::Place(0), Origin::Place(1)]);
    }

    #[test]
    fn equal_scores_go_to_the_lowest_index() {
        assert_eq!(best(vec![(3, 1.0), (1, 1.0), (2, 2.0)], 2), [(2, 2.0), (1, 1.0)]);
    }
}
