//! Fine-tuning over several ranks, against one rank alone.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cappy_plugin_abi::{
    Backend, Code, Failure, Group, GroupKind, LoadRequest, TokenRows, Trainer, TrainerOptions, Unattended,
};
use cappy_plugin_libtorch::LibtorchBackend;
use cappy_plugin_models::encoder::config::EncoderConfig;
use cappy_plugin_models::encoder::layout::Layout;
use cappy_plugin_models::weights::Checkpoint;
use cappy_plugin_suite::golden::request;
use cappy_plugin_suite::golden::stored::{Training, training};

use super::processes::{Place, Rank, Scene, hear, say, say_result};

const UPDATES: usize = 20;
const RATE: f64 = 1e-3;

pub const SCENES: &[Scene] = &[
    ("trains without dropout", |group| share(&mut *trainer(options(0.0, 2), Some(group)), 0)),
    ("trains", |group| share(&mut *trainer(options(0.1, 2), Some(group)), 0)),
    ("trains, not told how often", |group| share(&mut *trainer(options(0.1, 0), Some(group)), 0)),
    ("trains, told wrongly", |group| share(&mut *trainer(options(0.1, 1), Some(group)), 0)),
    ("goes on", goes_on),
    ("explodes", explodes),
    ("trains for ever", trains_for_ever),
    ("has a seed of its own", |group| {
        let seed = group.rank.into();
        say_result(load(TrainerOptions { seed, ..TrainerOptions::default() }, Some(group)));
    }),
];

fn options(dropout: f64, micro_batches: u64) -> TrainerOptions {
    TrainerOptions { dropout, micro_batches, ..TrainerOptions::default() }
}

fn load(options: TrainerOptions, group: Option<&Group>) -> Result<Box<dyn Trainer>, Failure> {
    tch::set_num_threads(1);
    let options = TrainerOptions { group: group.cloned(), ..options };
    let options_json = serde_json::to_string(&options).unwrap();
    LibtorchBackend.load_trainer(&LoadRequest { options_json, ..request("roberta") })
}

fn trainer(options: TrainerOptions, group: Option<&Group>) -> Box<dyn Trainer> {
    load(options, group).unwrap()
}

/// Two micro-batches an update: one of 7 rows, which no number of ranks here divides, and one of a single row.
fn micro_batch(data: &Training, step: usize) -> (TokenRows, Vec<f32>) {
    let pair = &data.micro_batches[step / 2 * 2..][..2];
    let rows = pair.iter().flat_map(|micro| micro.rows.iter().zip(&micro.labels));
    let mut batch = TokenRows::new();
    let count = if step.is_multiple_of(2) { 7 } else { 1 };
    let labels = rows.skip(step % 2 * 7).take(count).map(|(row, &label)| {
        batch.push(row);
        label
    });
    let labels = labels.collect();
    (batch, labels)
}

/// Some of the updates; the losses.
fn train(trainer: &mut dyn Trainer, updates: Range<usize>) -> Result<Vec<f32>, Failure> {
    let data = training("roberta");
    let mut losses = Vec::new();
    for update in updates {
        for step in [2 * update, 2 * update + 1] {
            let (batch, labels) = micro_batch(&data, step % data.micro_batches.len());
            losses.push(trainer.accumulate(batch.view(), &labels, step as u64, &Unattended)?);
        }
        trainer.update(RATE)?;
    }
    Ok(losses)
}

/// A rank's part: trains, and shows what came of it.
fn share(trainer: &mut dyn Trainer, from: usize) {
    let losses = train(trainer, from..UPDATES).unwrap();
    let directory = tempfile::tempdir().unwrap();
    trainer.save_model(directory.path().to_str().unwrap()).unwrap();
    say(&serde_json::to_string(&(losses, directory.path())).unwrap());
    hear();
}

/// Rank 0 has a checkpoint of five updates, the others not even a file.
fn goes_on(group: &Group) {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().to_str().unwrap();
    let mut own = trainer(options(0.1, 2), Some(group));
    if group.rank == 0 {
        let mut alone = trainer(options(0.1, 2), None);
        train(&mut *alone, 0..5).unwrap();
        alone.save_checkpoint(dir).unwrap();
    }
    own.load_checkpoint(dir).unwrap();
    share(&mut *own, 5);
}

/// A loss that is not finite in one rank's rows is so for all, who then go on together from a checkpoint.
fn explodes(group: &Group) {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().to_str().unwrap();
    let mut own = trainer(options(0.1, 2), Some(group));
    train(&mut *own, 0..5).unwrap();
    own.save_checkpoint(dir).unwrap();
    let mut batch = TokenRows::new();
    [[0, 9, 2], [0, 77, 2], [0, 8, 2]].iter().for_each(|row| batch.push(row));
    own.accumulate(batch.view(), &[0.5, 0.1, 0.2], 0, &Unattended).unwrap();
    own.update(1e30).unwrap();
    let failure = own.accumulate(batch.view(), &[0.5, 0.1, 0.2], 1, &Unattended).unwrap_err();
    assert_eq!(failure.code, Code::NotFinite, "{failure}");
    assert_eq!(own.update(1e-3).unwrap_err().code, Code::FailedPrecondition);
    own.load_checkpoint(dir).unwrap();
    share(&mut *own, 5);
}

fn trains_for_ever(group: &Group) {
    let mut own = trainer(options(0.1, 2), Some(group));
    train(&mut *own, 0..2).unwrap();
    say("training");
    let failure = (0..).find_map(|_| train(&mut *own, 0..UPDATES).err()).unwrap();
    let again = own.update(RATE).unwrap_err();
    assert_eq!(again.code, Code::PeerLost, "{again}");
    say_result::<()>(Err(failure));
}

/// Losses and weights of one rank alone.
fn alone(options: TrainerOptions) -> (Vec<f32>, Checkpoint) {
    let mut trainer = trainer(options, None);
    let losses = train(&mut *trainer, 0..UPDATES).unwrap();
    let directory = tempfile::tempdir().unwrap();
    trainer.save_model(directory.path().to_str().unwrap()).unwrap();
    (losses, Checkpoint::open(directory.path()).unwrap())
}

/// Every rank's losses and final weights are those of one rank alone.
fn agree(scene: &str, world: u32, options: TrainerOptions) {
    let (losses, weights) = alone(options);
    let layout = Layout::new(&EncoderConfig::parse(&request("roberta").config_json).unwrap());
    let mut ranks = Place::new(world, 60).start(scene);
    let mut first: Option<Vec<u8>> = None;
    for (i, rank) in ranks.iter_mut().enumerate() {
        let (got, directory): (Vec<f32>, PathBuf) = serde_json::from_str(&rank.hears()).unwrap();
        let expected = &losses[losses.len() - got.len()..];
        assert!(!got.is_empty());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-5, "{scene}: rank {i} of {world}: loss {got} not {expected}");
        }
        // All ranks end with the same bits.
        let bytes = std::fs::read(directory.join("model.safetensors")).unwrap();
        assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes, "{scene}: rank {i} of {world}");
        let checkpoint = Checkpoint::open(&directory).unwrap();
        for slot in layout.slots.list() {
            // Keys' biases have no gradient but rounding, which AdamW makes as large as any other.
            if slot.name.ends_with("key.bias") {
                continue;
            }
            let expected = weights.read(&slot.name, &slot.shape).unwrap();
            let got = checkpoint.read(&slot.name, &slot.shape).unwrap();
            for (got, expected) in got.iter().zip(&expected) {
                let error = (got - expected).abs();
                assert!(error < 1e-5, "{scene}: rank {i} of {world}: `{}` is off by {error}", slot.name);
            }
        }
    }
    // Rank 0 last: the others say goodbye at its store.
    for mut rank in ranks.into_iter().rev() {
        rank.tell();
        rank.ends();
    }
}

#[test]
fn ranks_train_what_one_rank_trains() {
    for world in [2, 4] {
        agree("trains without dropout", world, options(0.0, 2));
    }
}

/// Masks are keyed by a row's place in the whole micro-batch.
#[test]
fn dropout_does_not_depend_on_the_number_of_ranks() {
    for world in [2, 4] {
        agree("trains", world, options(0.1, 2));
    }
}

/// Gradients are exchanged after the last micro-batch, whatever the options say of their number.
#[test]
fn the_number_of_micro_batches_may_be_unknown_or_wrong() {
    agree("trains, not told how often", 2, options(0.1, 2));
    agree("trains, told wrongly", 2, options(0.1, 2));
}

#[test]
fn all_go_on_from_the_checkpoint_of_rank_0() {
    agree("goes on", 3, options(0.1, 2));
}

#[test]
fn a_loss_that_is_not_finite_is_so_for_all() {
    agree("explodes", 2, options(0.1, 2));
}

#[test]
fn a_rank_that_is_killed_ends_the_training_of_the_others() {
    for killed in [0, 2] {
        let mut ranks = Place::new(3, 60).start("trains for ever");
        ranks.iter_mut().for_each(|rank| rank.expect("training"));
        let mut gone: Rank = ranks.remove(killed);
        let before = Instant::now();
        gone.kill();
        for mut rank in ranks {
            let heard = rank.hears();
            assert!(heard.starts_with("PeerLost: ") && heard.contains(&format!("rank {killed} ")), "{heard}");
            rank.ends();
        }
        assert!(before.elapsed() < Duration::from_secs(20), "{:?}", before.elapsed());
    }
}

#[test]
fn ranks_with_other_options_are_refused() {
    for mut rank in Place::new(2, 60).start("has a seed of its own") {
        rank.expect("InvalidArgument: the ranks of a group disagree about the options");
        rank.ends();
    }
}

#[test]
fn a_trainer_shares_rows_only() {
    let mut group = Place::new(2, 1).groups.remove(0);
    // The place keeps its own.
    (group.kind, group.listener) = (GroupKind::Tensor, None);
    let failure = load(TrainerOptions::default(), Some(&group)).err().unwrap();
    assert_eq!(failure.code, Code::Unsupported);
    assert!(failure.message.contains("data parallel"), "{failure}");
}
