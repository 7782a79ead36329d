//! Gradients of a micro-batch that the ranks share are those of one process that has it all.

use cappy_plugin_abi::{Group, Unattended};
use cappy_plugin_libtorch::group::Gradients;
use tch::{Device, Kind, Tensor};

use crate::processes::{Place, Rank, Scene, device, join, say};

pub const SCENES: &[Scene] = &[("train", train)];

const ROWS: i64 = 6;
/// Of a layer: 11 MB of weights, so that four layers take more than one bucket.
const WIDTH: i64 = 1700;
const LAYERS: usize = 4;

/// The same numbers in every process.
fn numbers(seed: i64, shape: &[i64], scale: f64) -> Tensor {
    tch::manual_seed(seed);
    (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * scale).to_device(device())
}

fn parameters() -> Vec<Tensor> {
    let mut all: Vec<Tensor> =
        (0..LAYERS).map(|i| numbers(i as i64, &[WIDTH, WIDTH], (WIDTH as f64).powf(-0.5))).collect();
    // One that no loss depends on.
    all.push(numbers(9, &[7], 1.0));
    all.into_iter().map(|p| p.set_requires_grad(true)).collect()
}

/// Sum of the rows' losses over the number of all rows.
fn loss(parameters: &[Tensor], rows: std::ops::Range<i64>) -> Tensor {
    let x = numbers(20, &[ROWS, WIDTH], 1.0).narrow(0, rows.start, rows.end - rows.start);
    let y = parameters[..LAYERS].iter().fold(x, |x, w| x.matmul(w).tanh());
    y.square().sum_dim_intlist([1i64].as_slice(), false, Kind::Float).sum(Kind::Float) / ROWS as f64
}

fn train(group: &Group) {
    let Some(ranks) = join(group) else { return };
    let (rank, world) = (ranks.rank() as i64, ranks.world() as i64);
    // With 4 ranks, 6 rows: 1, 2, 1, 2. With `few` rows, rank 0 has none.
    let share = |rows: i64| rows * rank / world..rows * (rank + 1) / world;
    let alone = parameters();
    loss(&alone, 0..ROWS).backward();
    let shared = parameters();
    let mut gradients = Gradients::new(&ranks, &shared).expect("hooks");
    loss(&shared, share(ROWS)).backward();
    // Not armed: nothing leaves before the sum is asked for.
    assert_eq!(gradients.sum(&Unattended).expect("sums"), 0);
    compare(&alone, &shared, 1.0);
    // Two micro-batches; the second one's gradients leave while it goes on.
    for parameter in &shared {
        if parameter.grad().defined() {
            let _ = parameter.grad().zero_();
        }
    }
    loss(&shared, share(ROWS)).backward();
    gradients.arm();
    loss(&shared, share(ROWS)).backward();
    let early = gradients.sum(&Unattended).expect("sums");
    // All but the bucket that waits for the parameter without a gradient; it is the first, and buckets keep their order.
    say(&format!("{early} early"));
    compare(&alone, &shared, 2.0);
    assert!(!shared[LAYERS].grad().defined(), "no rank has a gradient of the last parameter");
    // Only parameters that are used: their buckets leave early. One row: all ranks but one have none.
    let used = parameters();
    let mut gradients = Gradients::new(&ranks, &used[..LAYERS]).expect("hooks");
    gradients.arm();
    let rows = share(1);
    let has_rows = !rows.is_empty();
    if has_rows {
        loss(&used, rows).backward();
    }
    let early = gradients.sum(&Unattended).expect("sums");
    assert_eq!(early, if has_rows { 2 } else { 0 }, "two buckets of two layers");
    let alone = parameters();
    loss(&alone, 0..1).backward();
    compare(&alone, &used, 1.0);
    say("trained");
}

fn compare(alone: &[Tensor], shared: &[Tensor], factor: f64) {
    for (i, (alone, shared)) in alone[..LAYERS].iter().zip(shared).enumerate() {
        let wanted = alone.grad() * factor;
        let difference = (shared.grad() - &wanted).abs().max().double_value(&[]);
        let largest = wanted.abs().max().double_value(&[]);
        assert!(largest > 1e-6 && difference < 1e-5 * largest, "layer {i}: {difference} of {largest}");
    }
}

#[test]
fn shared_gradients_are_those_of_one_process() {
    for world in [2, 4] {
        let mut ranks = Place::new(world, 60).start("train");
        for rank in &mut ranks {
            rank.expect("0 early");
            rank.expect("trained");
        }
        ranks.into_iter().for_each(Rank::ends);
    }
}
