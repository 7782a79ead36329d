//! A T5 whose weights are spread over ranks says what one that has them all says.

use std::os::unix::process::parent_id;

use cappy_plugin_abi::random::{fold, key_of};
use cappy_plugin_abi::{
    Backend, Code, Decoding, Failure, Generator, Group, Method, MinLengthRule, Unattended,
};
use cappy_plugin_libtorch::LibtorchBackend;
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::memory::{self, Memory};
use crate::processes::{Place, Rank, Scene, device, say, say_result};
use crate::random_t5::{Model, Shape, directory, request, some_rows};

pub const SCENES: &[Scene] =
    &[("answer", answer), ("answer for ever", answer_for_ever), ("bring another model", bring_another_model)];

/// Nothing but the heads is divided by 4.
const SHAPE: Shape = Shape { vocab: 1003, width: 64, head: 16, heads: 4, inner: 131, layers: 3 };
const TIMEOUT_SECONDS: u64 = 60;

/// What a model says to the questions of this test.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Answer {
    tokens: Vec<u32>,
    offsets: Vec<u32>,
    log_probs: Vec<f32>,
    likelihoods: Vec<f32>,
    parameters: u64,
    weight_bytes: u64,
}

fn decodings() -> Vec<Decoding> {
    let decoding = |name: &str, num_samples, method| Decoding {
        key: key_of(name),
        method,
        num_samples,
        min_length: 3,
        max_length: 24,
        min_length_rule: MinLengthRule::Flax,
    };
    let sample = |temperature, top_k, top_p| Method::Sample { temperature, top_k, top_p };
    vec![
        decoding("beam4", 2, Method::Beam { num_beams: 4, length_penalty: 1.0, early_stopping: false }),
        decoding("sampling", 3, sample(1.0, 0, 1.0)),
        decoding("topk40", 2, sample(0.9, 40, 1.0)),
        decoding("topp0.95", 2, sample(1.0, 0, 0.95)),
    ]
}

fn ask(generator: &mut dyn Generator) -> Result<Answer, Failure> {
    let rows = 7;
    let sources = some_rows(1, rows, 40, SHAPE.vocab);
    let encoding = generator.encode(sources.view(), &Unattended)?;
    let keys: Vec<u64> = (0..rows).map(|row| fold(9, row)).collect();
    let generated = generator.generate(encoding, &decodings(), 11111, &keys, &Unattended)?;
    let targets = some_rows(2, 20, 12, SHAPE.vocab);
    let of: Vec<u32> = (0..20).map(|i| i % rows as u32).collect();
    let likelihoods = generator.log_likelihood(encoding, targets.view(), &of, &Unattended)?;
    generator.forget(encoding);
    let info = generator.info();
    Ok(Answer {
        tokens: generated.tokens,
        offsets: generated.offsets,
        log_probs: generated.log_probs,
        likelihoods,
        parameters: info.parameters,
        weight_bytes: info.weight_bytes,
    })
}

/// This rank's part of the parent's model of that name; says why not, if it gets none.
fn load(group: &Group, name: &str) -> Option<Box<dyn Generator>> {
    let loaded = LibtorchBackend.load_generator(&request(&directory(parent_id(), name), Some(group)));
    loaded.map_err(|failure| say_result::<()>(Err(failure))).ok()
}

fn answer(group: &Group) {
    let Some(mut generator) = load(group, "sharded") else { return };
    let answer = ask(generator.as_mut()).expect("an answer");
    say(&serde_json::to_string(&answer).expect("text"));
}

#[test]
fn ranks_together_say_what_one_says() {
    let model = Model::write(std::process::id(), "sharded", &SHAPE).expect("a place for temporary files");
    let dir = directory(std::process::id(), "sharded");
    let mut alone = LibtorchBackend.load_generator(&request(&dir, None)).expect("model");
    let alone = ask(alone.as_mut()).expect("an answer");
    assert!(alone.offsets.windows(2).filter(|w| w[1] - w[0] > 3).count() > 20, "{:?}", alone.offsets);
    for world in [1, 2, 4] {
        let mut bytes = 0;
        let mut ranks = Place::new(world, TIMEOUT_SECONDS).start("answer");
        for (i, rank) in ranks.iter_mut().enumerate() {
            let said = rank.hears();
            let got: Answer = serde_json::from_str(&said).unwrap_or_else(|_| panic!("rank {i}: {said}"));
            let what = format!("rank {i} of {world}");
            assert_eq!((&got.tokens, &got.offsets), (&alone.tokens, &alone.offsets), "{what}");
            close(&got.log_probs, &alone.log_probs, &what);
            close(&got.likelihoods, &alone.likelihoods, &what);
            assert_eq!(got.parameters, alone.parameters, "{what}");
            bytes += got.weight_bytes;
        }
        ranks.into_iter().for_each(Rank::ends);
        // Together they hold the model once, but for the norms: 3 * 3 + 2 * 2 + 2 of a width's numbers, 4 bytes each.
        let norms = (5 * SHAPE.layers + 2) * SHAPE.width * 4;
        assert_eq!(bytes, alone.weight_bytes + (world as usize - 1) as u64 * norms as u64, "{world} ranks");
    }
    drop(model);
}

fn close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() < 1e-4, "{what}: {got} {want}");
    }
}

fn answer_for_ever(group: &Group) {
    let Some(mut generator) = load(group, "killed") else { return };
    say("ready");
    let failure = loop {
        if let Err(failure) = ask(generator.as_mut()) {
            break failure;
        }
        say("answered");
    };
    say_result::<()>(Err(failure));
    // Nothing is tried again in a group that is over.
    say_result(ask(generator.as_mut()));
}

#[test]
fn a_rank_that_dies_ends_the_call_on_the_others() {
    let _model = Model::write(std::process::id(), "killed", &SHAPE).expect("a place for temporary files");
    let mut ranks = Place::new(4, TIMEOUT_SECONDS).start("answer for ever");
    for rank in &mut ranks {
        rank.expect("ready");
        rank.expect("answered");
    }
    ranks[2].kill();
    for i in [0, 1, 3] {
        let said = loop {
            let said = ranks[i].hears();
            if said != "answered" {
                break said;
            }
        };
        assert!(said.starts_with("PeerLost: rank 2 of 4 is gone"), "rank {i}: {said}");
        ranks[i].expect("PeerLost: ");
    }
    ranks.remove(2);
    ranks.into_iter().for_each(Rank::ends);
}

fn bring_another_model(group: &Group) {
    let name = if group.rank == 1 { "another" } else { "agreed" };
    if load(group, name).is_some() {
        say("loaded");
    }
}

#[test]
fn ranks_with_different_models_refuse_to_start() {
    // Of one shape, with different numbers.
    let _models = ["agreed", "another"]
        .map(|name| Model::write(std::process::id(), name, &SHAPE).expect("a place for temporary files"));
    let mut ranks = Place::new(2, TIMEOUT_SECONDS).start("bring another model");
    for rank in &mut ranks {
        let said = rank.hears();
        assert!(said.starts_with("InvalidArgument: ") && said.contains("their model"), "{said}");
    }
    ranks.into_iter().for_each(Rank::ends);
}

#[test]
fn heads_that_cannot_be_shared_are_refused_before_anybody_is_waited_for() {
    let name = "indivisible";
    let dir = directory(std::process::id(), name);
    let _model = Model::write(std::process::id(), name, &SHAPE).expect("a place for temporary files");
    // Not even a weight is looked at.
    std::fs::remove_file(dir.join("model.safetensors")).expect("written");
    let place = Place::new(3, TIMEOUT_SECONDS);
    let failure = LibtorchBackend.load_generator(&request(&dir, Some(&place.groups[1]))).map(drop);
    let failure = failure.expect_err("4 heads, 3 ranks");
    assert_eq!(failure.code, Code::InvalidArgument);
    assert!(
        failure.message.contains("3 ranks") && failure.message.contains("4 attention heads"),
        "{failure}"
    );
}

#[test]
fn a_rank_of_two_needs_little_more_than_half() {
    // 35 million weights: 140 MB, of which the largest matrix is a tenth.
    let shape = Shape { vocab: 8000, width: 512, head: 64, heads: 8, inner: 2048, layers: 4 };
    let _model = Model::write(std::process::id(), memory::NAME, &shape).expect("a place for temporary files");
    let grown = |memory: &Memory| (memory.peak_bytes - memory.before_bytes) as f64;
    let alone = memory::of_ranks(1, 60)[0];
    // On a GPU the weights are what counts: the process's own memory is the driver's and the kernels'.
    let resident = device() == Device::Cpu;
    assert!(!resident || grown(&alone) > alone.weight_bytes as f64, "{alone:?}");
    for rank in memory::of_ranks(2, 60) {
        assert!(rank.weight_bytes * 100 < alone.weight_bytes * 51, "{rank:?} of {alone:?}");
        assert!(!resident || grown(&rank) < 0.6 * grown(&alone), "{rank:?} of {alone:?}");
    }
}
