//! What ranks exchange when all goes well.

use cappy_plugin_abi::{Group, Unattended};
use tch::{Kind, Tensor};

use crate::processes::{Place, Scene, device, join, say, say_result};

pub const SCENES: &[Scene] = &[("exchange", exchange)];

/// 0 to 99, which every kind holds exactly.
fn units() -> Tensor {
    Tensor::arange(1000, (Kind::Float, device())).remainder(100)
}

fn exchange(group: &Group) {
    let Some(ranks) = join(group) else { return };
    let (rank, world) = (ranks.rank() as i64, ranks.world() as i64);
    for kind in [Kind::Float, Kind::BFloat16, Kind::Int64] {
        let own = || units().to_kind(kind) * (rank + 1);
        let sum = own();
        ranks.all_reduce(&sum, &Unattended).expect("a sum");
        let factor: i64 = (1..=world).sum();
        let wanted = units() * factor;
        // Eight bits of bf16: two thousand units are exact to eight of them.
        let difference = (sum.to_kind(Kind::Float) - wanted).abs().max().double_value(&[]);
        assert!(difference <= if kind == Kind::BFloat16 { 16.0 } else { 0.0 }, "{kind:?}: {difference}");
        let parts = ranks.all_gather(&own(), &Unattended).expect("parts");
        for (other, part) in parts.iter().enumerate() {
            let wanted = units().to_kind(kind) * (other as i64 + 1);
            assert!(part.equal(&wanted), "{kind:?}: the part of rank {other}");
        }
    }
    for root in 0..ranks.world() {
        let tensor = Tensor::full([3, 5], rank, (Kind::Float, device()));
        ranks.broadcast(&tensor, root, &Unattended).expect("a copy");
        assert!(
            tensor.equal(&Tensor::full([3, 5], root as i64, (Kind::Float, device()))),
            "from rank {root}"
        );
    }
    ranks.agree("the model", "0123abcd").expect("all have the same");
    say("exchanged");
    // Rank 1 has another model. All hear of it, and the group is over.
    say_result(ranks.agree("the other model", if rank == 1 { "beef" } else { "cafe" }));
    say_result(ranks.all_reduce(&Tensor::ones([1], (Kind::Float, device())), &Unattended));
}

#[test]
fn ranks_sum_gather_copy_and_agree() {
    for world in [2, 4] {
        let mut ranks = Place::new(world, 30).start("exchange");
        for (i, rank) in ranks.iter_mut().enumerate() {
            rank.expect("exchanged");
            let said = rank.hears();
            assert!(
                said.starts_with("InvalidArgument: the ranks of a group disagree about the other model"),
                "{said}"
            );
            assert!(said.contains("rank 1 has beef") && said.contains("has cafe"), "rank {i}: {said}");
            rank.expect("disagree about the other model");
        }
        ranks.into_iter().for_each(crate::processes::Rank::ends);
    }
}
