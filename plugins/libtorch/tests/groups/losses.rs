//! Ranks that die, leave or stand still: the others hear of it at once, and who it was.

use std::time::{Duration, Instant};

use cappy_plugin_abi::{Group, Unattended};
use tch::{Kind, Tensor};

use crate::processes::{Place, Rank, Scene, Told, WhenTold, device, hear, join, say, say_result};

pub const SCENES: &[Scene] = &[("all but one sum", all_but_one_sum), ("one is cancelled", one_is_cancelled)];

/// Long before the group's own timeout, with room for a busy machine.
const PROMPT: Duration = Duration::from_secs(20);
const TIMEOUT_SECONDS: u64 = 120;

fn tensor() -> Tensor {
    Tensor::ones([1 << 20], (Kind::Float, device()))
}

/// The last rank but one joins and does nothing more.
fn all_but_one_sum(group: &Group) {
    let Some(ranks) = join(group) else { return };
    ranks.all_reduce(&tensor(), &Unattended).expect("all are there");
    say("there");
    if ranks.rank() == idle(ranks.world()) {
        return hear();
    }
    say_result(ranks.all_reduce(&tensor(), &Unattended));
    // The group is over: nothing is tried again.
    say_result(ranks.broadcast(&tensor(), 0, &Unattended));
}

fn idle(world: usize) -> usize {
    world - 2
}

#[test]
fn a_killed_rank_is_named_by_all_others() {
    for world in [2, 4] {
        let mut ranks = Place::new(world, TIMEOUT_SECONDS).start("all but one sum");
        ranks.iter_mut().for_each(|rank| rank.expect("there"));
        let lost = idle(world as usize);
        let begin = Instant::now();
        ranks[lost].kill();
        for (i, rank) in ranks.iter_mut().enumerate().filter(|(i, _)| *i != lost) {
            let said = rank.hears();
            assert!(
                said.starts_with(&format!("PeerLost: rank {lost} of {world} is gone")),
                "rank {i}: {said}"
            );
            let again = rank.hears();
            assert!(again.starts_with("PeerLost: rank"), "rank {i}: {again}");
        }
        assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
        ranks.remove(lost);
        ranks.into_iter().for_each(Rank::ends);
    }
}

/// Rank 0 waits for a sum that rank 1 does not take part in, and is cancelled.
fn one_is_cancelled(group: &Group) {
    let Some(ranks) = join(group) else { return };
    if ranks.rank() == 0 {
        let told = WhenTold::new();
        say("waiting");
        let begin = Instant::now();
        say_result(ranks.all_reduce(&tensor(), &Told(&told)));
        assert!(begin.elapsed() < PROMPT);
        say_result(ranks.all_reduce(&tensor(), &Unattended));
        // Nobody waits for the other rank, which is still there.
        drop(ranks);
        say("let go");
    } else {
        say("waiting");
        hear();
        let begin = Instant::now();
        say_result(ranks.all_reduce(&tensor(), &Unattended));
        assert!(begin.elapsed() < PROMPT);
    }
}

#[test]
fn a_cancelled_rank_leaves_at_once_and_the_others_are_told() {
    let mut ranks = Place::new(2, TIMEOUT_SECONDS).start("one is cancelled");
    ranks.iter_mut().for_each(|rank| rank.expect("waiting"));
    ranks[0].tell();
    ranks[0].expect("Cancelled: cancelled");
    ranks[0].expect("PeerLost: this rank left its group: a call was cancelled");
    ranks[0].expect("let go");
    ranks[1].tell();
    ranks[1].expect("PeerLost: rank 0 of 2 left its group: a call was cancelled");
    ranks.into_iter().for_each(Rank::ends);
}

/// Alive, but not in the exchange: only the group's timeout can end that.
#[test]
fn a_rank_that_stands_still_is_waited_for_as_long_as_the_group_says() {
    let mut ranks = Place::new(3, 6).start("all but one sum");
    ranks.iter_mut().for_each(|rank| rank.expect("there"));
    for rank in [0, 2] {
        let said = ranks[rank].hears();
        assert!(said.starts_with("PeerLost: an exchange among 3 ranks failed: "), "rank {rank}: {said}");
        ranks[rank].expect("PeerLost: an exchange among 3 ranks failed: ");
    }
    ranks[1].tell();
    ranks.into_iter().for_each(Rank::ends);
}
