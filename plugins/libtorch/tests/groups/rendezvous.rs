//! Ranks that do not find each other, or do not mean the same.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use cappy_plugin_abi::{Group, GroupKind};
use cappy_plugin_libtorch::group::Ranks;

use crate::processes::{Place, Rank, Scene, device, say_result};

pub const SCENES: &[Scene] = &[("only join", |group| say_result(Ranks::join(group, device())))];

#[test]
fn ranks_that_do_not_come_are_named() {
    // Time enough for both to start on a busy machine.
    let place = Place::new(4, 4);
    let mut ranks: Vec<Rank> = [0, 2].map(|i| Rank::start("only join", &place.groups[i])).into();
    ranks[0].expect("PeerLost: ranks 1, 3 of 4 did not come within 4 s");
    ranks[1].expect("PeerLost: ranks 1, 3 of 4 did not come within 4 s");
    ranks.into_iter().for_each(Rank::ends);
}

#[test]
fn a_rendezvous_where_nobody_listens_is_named() {
    let mut group = Place::new(2, 1).groups[1].clone();
    // The port of a connection's own end: nobody listens there, and nobody else is given it meanwhile.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let taken = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    group.rendezvous = taken.local_addr().expect("connected").to_string();
    let mut rank = Rank::start("only join", &group);
    rank.expect(&format!("PeerLost: rank 0 of 2 does not answer at `{}` within 1 s", group.rendezvous));
    rank.ends();
}

/// The socket is there, but rank 0 never serves it.
#[test]
fn a_rendezvous_that_says_nothing_is_given_up() {
    let place = Place::new(2, 1);
    let mut rank = Rank::start("only join", &place.groups[1]);
    let said = rank.hears();
    assert!(said.starts_with("PeerLost: ") && said.contains(&place.groups[1].rendezvous), "{said}");
    rank.ends();
}

#[test]
fn ranks_that_mean_different_groups_are_refused() {
    for change in [(|g| g.world = 4) as fn(&mut Group), |g| g.kind = GroupKind::Tensor] {
        let mut place = Place::new(2, 30);
        change(&mut place.groups[1]);
        let mut ranks = place.start("only join");
        for rank in &mut ranks {
            let said = rank.hears();
            assert!(
                said.starts_with("InvalidArgument: the ranks of a group disagree about their group"),
                "{said}"
            );
            assert!(said.contains("2 ranks (data parallel)"), "{said}");
            assert!(
                said.contains("4 ranks (data parallel)") || said.contains("2 ranks (tensor parallel)"),
                "{said}"
            );
        }
        ranks.into_iter().for_each(Rank::ends);
    }
}
