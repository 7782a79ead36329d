//! How long the demo scorer's fine-tuning takes on 1, 2 and 4 ranks of this machine, one thread each.
//!
//! ```text
//! cargo run --release -p cappy-plugin-libtorch --features torch --example data_parallel
//! ```
//!
//! Another model's directory may be given as `CAPPY_EXAMPLE_MODEL`, which ranks read from their environment.
//!
//! Each line is a run of the same updates (16 micro-batches of 8 rows each) over the same rows, after one update to warm
//! up. `rows/s` counts the rows of all ranks together, `ratio` is that over one rank's. Read it against the number of
//! cores: ranks beyond it can gain nothing. What keeps the ratio below the number of ranks is the exchange of the loss of
//! every micro-batch, during which ranks wait for the slowest, the exchange of gradients once an
//! update (as large as the model), and AdamW, which every rank computes for itself. `last loss` shows that all runs
//! train the same.

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/groups/processes.rs"]
mod processes;

use std::process::ExitCode;
use std::time::Instant;

use cappy_plugin_abi::random::{fold, mix};
use cappy_plugin_abi::{
    Backend, Failure, Group, LoadRequest, TokenRows, Trainer, TrainerOptions, Unattended,
};
use cappy_plugin_libtorch::LibtorchBackend;
use processes::{Place, Scene, hear, is_rank, play, say};

/// As in Cappy's fine-tuning (arXiv 2311.06720).
const MICRO_BATCH: u64 = 8;
const MICRO_BATCHES: u64 = 16;
const UPDATES: u64 = 8;
const RATE: f64 = 2e-5;
/// Tokens of a row.
const LENGTHS: std::ops::Range<u64> = 24..160;
const TIMEOUT_SECONDS: u64 = 120;
const SCENES: &[Scene] = &[("trains", trains)];

fn main() -> ExitCode {
    if is_rank() {
        play(SCENES);
        return ExitCode::SUCCESS;
    }
    println!("| ranks | seconds | rows/s | ratio | last loss |");
    println!("|---|---|---|---|---|");
    let mut one = None;
    for world in [1, 2, 4] {
        let mut ranks = Place::new(world, TIMEOUT_SECONDS).start("trains");
        let said: Vec<(f64, f32)> = ranks
            .iter_mut()
            .map(|rank| serde_json::from_str(&rank.hears()).expect("seconds and a loss"))
            .collect();
        let seconds = said.iter().fold(0.0, |most: f64, (seconds, _)| most.max(*seconds));
        // Rank 0 last: the others say goodbye at its store.
        for mut rank in ranks.into_iter().rev() {
            rank.tell();
            rank.ends();
        }
        let speed = (UPDATES * MICRO_BATCHES * MICRO_BATCH) as f64 / seconds;
        let ratio = speed / *one.get_or_insert(speed);
        println!("| {world} | {seconds:.2} | {speed:.1} | {ratio:.2} | {:.6} |", said[0].1);
    }
    ExitCode::SUCCESS
}

/// The part of one rank: says how long it took, and the last loss.
fn trains(group: &Group) {
    tch::set_num_threads(1);
    let mut trainer = load(group).expect("the model loads");
    run(trainer.as_mut(), 0..1).expect("it trains");
    let start = Instant::now();
    let loss = run(trainer.as_mut(), 1..1 + UPDATES).expect("it trains");
    say(&serde_json::to_string(&(start.elapsed().as_secs_f64(), loss)).expect("text"));
    hear();
}

fn load(group: &Group) -> Result<Box<dyn Trainer>, Failure> {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/assets/scorer");
    let model_dir = std::env::var("CAPPY_EXAMPLE_MODEL").unwrap_or_else(|_| demo.into());
    let options = TrainerOptions {
        micro_batches: MICRO_BATCHES,
        group: (group.world > 1).then(|| group.clone()),
        ..TrainerOptions::default()
    };
    LibtorchBackend.load_trainer(&LoadRequest {
        config_json: std::fs::read_to_string(format!("{model_dir}/config.json")).expect("a model directory"),
        model_dir,
        device: "cpu".into(),
        dtype: "f32".into(),
        options_json: serde_json::to_string(&options).expect("text"),
    })
}

/// Some of the updates; the last micro-batch's loss.
fn run(trainer: &mut dyn Trainer, updates: std::ops::Range<u64>) -> Result<f32, Failure> {
    let vocabulary = u64::from(trainer.info().vocab_size);
    let mut loss = 0.0;
    for update in updates {
        for step in update * MICRO_BATCHES..(update + 1) * MICRO_BATCHES {
            let (mut batch, mut labels) = (TokenRows::new(), Vec::new());
            for row in 0..MICRO_BATCH {
                let key = fold(mix(step), row);
                let length = LENGTHS.start + key % (LENGTHS.end - LENGTHS.start);
                let ids: Vec<u32> =
                    (0..length).map(|i| 4 + (fold(key, i) % (vocabulary - 4)) as u32).collect();
                batch.push(&ids);
                labels.push((key >> 32) as f32 / u32::MAX as f32);
            }
            loss = trainer.accumulate(batch.view(), &labels, step, &Unattended)?;
        }
        trainer.update(RATE)?;
    }
    Ok(loss)
}
