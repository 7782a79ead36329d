//! What a rank's memory grows to: reading only its slices, it needs its share and little else.

use std::os::unix::process::parent_id;

use cappy_plugin_abi::random::fold;
use cappy_plugin_abi::{Backend, Decoding, Group, Method, MinLengthRule, Unattended};
use cappy_plugin_libtorch::LibtorchBackend;
use serde::{Deserialize, Serialize};

use crate::processes::{Place, Rank, Scene, device, say};
use crate::random_t5::{directory, request, some_rows};

pub const SCENES: &[Scene] = &[("measure", measure)];

/// Of the model that is measured, in [`directory`].
pub const NAME: &str = "measured";

/// Of one rank.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// Weights that it holds.
    pub weight_bytes: u64,
    /// The most that was resident before the model was loaded (`VmHWM`).
    pub before_bytes: u64,
    /// The most that was resident after it was loaded and used.
    pub peak_bytes: u64,
}

fn measure(group: &Group) {
    // The engine is there and has computed something.
    let warm = tch::Tensor::ones([256, 256], (tch::Kind::Float, device()));
    assert_eq!(warm.matmul(&warm).double_value(&[0, 0]), 256.0);
    let before_bytes = peak();
    let dir = directory(parent_id(), NAME);
    let mut generator = LibtorchBackend.load_generator(&request(&dir, Some(group))).expect("model");
    let info = generator.info();
    let sources = some_rows(1, 4, 64, info.vocab_size as usize);
    let encoding = generator.encode(sources.view(), &Unattended).expect("encoded");
    let beam = Decoding {
        key: 0,
        method: Method::Beam { num_beams: 4, length_penalty: 1.0, early_stopping: false },
        num_samples: 1,
        min_length: 4,
        max_length: 8,
        min_length_rule: MinLengthRule::Flax,
    };
    let keys: Vec<u64> = (0..4).map(|row| fold(9, row)).collect();
    let generated = generator.generate(encoding, &[beam], 1, &keys, &Unattended).expect("generated");
    assert_eq!(generated.offsets.len(), 5);
    let measured = Memory { weight_bytes: info.weight_bytes, before_bytes, peak_bytes: peak() };
    say(&serde_json::to_string(&measured).expect("text"));
}

/// `VmHWM`: the most memory that this process ever had resident, mapped files included.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// What each of `world` ranks needs of the model called [`NAME`].
pub fn of_ranks(world: u32, timeout_seconds: u64) -> Vec<Memory> {
    let mut ranks = Place::new(world, timeout_seconds).start("measure");
    let said = ranks.iter_mut().map(|rank| {
        let said = rank.hears();
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"))
    });
    let said = said.collect();
    ranks.into_iter().for_each(Rank::ends);
    said
}
