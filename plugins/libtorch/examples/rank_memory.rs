//! How much memory the ranks of a tensor-parallel T5 need: a model of flan-t5-large's shape (783 million parameters)
//! with random weights is written to the temporary directory (1.6 GB), loaded and used by one process, then by two.
//!
//! ```text
//! cargo run --release -p cappy-plugin-libtorch --features torch --example rank_memory
//! ```
//!
//! Fails when a rank of two needs more than 60% of what one process needs: whole processes, libtorch included.

#[path = "../tests/groups/memory.rs"]
mod memory;
#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/groups/processes.rs"]
mod processes;
#[path = "../tests/groups/random_t5.rs"]
mod random_t5;

use std::process::ExitCode;

use memory::{Memory, NAME, SCENES, of_ranks};
use random_t5::{Model, Shape};

const FLAN_T5_LARGE: Shape =
    Shape { vocab: 32128, width: 1024, head: 64, heads: 16, inner: 2816, layers: 24 };
/// Of a single process's memory, in percent.
const MOST: u64 = 60;
const TIMEOUT_SECONDS: u64 = 600;

fn main() -> ExitCode {
    if processes::is_rank() {
        processes::play(SCENES);
        return ExitCode::SUCCESS;
    }
    let _model = Model::write(std::process::id(), NAME, &FLAN_T5_LARGE).expect("1.6 GB of temporary space");
    println!("| ranks | weights of a rank (MiB) | peak memory of a rank (MiB) | of one process |");
    println!("|---|---|---|---|");
    let alone = of_ranks(1, TIMEOUT_SECONDS);
    let pair = of_ranks(2, TIMEOUT_SECONDS);
    let most = |ranks: &[Memory]| ranks.iter().map(|rank| rank.peak_bytes).max().unwrap_or(0);
    for ranks in [&alone, &pair] {
        let weights = ranks.iter().map(|rank| rank.weight_bytes).max().unwrap_or(0);
        let share = 100.0 * most(ranks) as f64 / most(&alone) as f64;
        println!("| {} | {} | {} | {share:.1}% |", ranks.len(), weights >> 20, most(ranks) >> 20);
    }
    if 100 * most(&pair) > MOST * most(&alone) {
        eprintln!("a rank of two needs more than {MOST}% of what one process needs");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
