//! T5 beside the candle backend's, which says the same, and what only shows from inside. (What every backend must do is
//! in `tests/conformance.rs`.)

use cappy_plugin_abi::{Backend, Code, Generator, LoadRequest, ModelInfo, TokenRows, Unattended};
use cappy_plugin_candle::CandleBackend;
use cappy_plugin_suite::batch_of;
use cappy_plugin_suite::golden::stored::{T5S, generation};
use cappy_plugin_suite::golden::{OUTPUTS, close, five_decodings, request};
use tch::Kind;

use super::T5;
use crate::device::device;
use crate::inference::InferenceMode;

fn open(model: &str) -> T5 {
    // These models are tiny and tests run side by side: threads of libtorch's own would only wait for a core.
    tch::set_num_threads(1);
    let request = request(model);
    let device = device(&request.device).expect("the tests' device");
    T5::open(&request, device, Kind::Float, None).expect("model")
}

/// On the CPU, where alone it generates.
fn candle(model: &str) -> Box<dyn Generator> {
    let request = LoadRequest { device: "cpu".into(), ..request(model) };
    CandleBackend.load_generator(&request).expect("model")
}

#[test]
fn candle_generates_the_same_text_and_finds_it_as_likely() {
    for model in T5S {
        let golden = generation(model);
        let (mut ours, mut theirs) = (open(model), candle(model));
        let id = ours.encode(batch_of(&golden.sources).view(), &Unattended).expect("encode");
        let same = theirs.encode(batch_of(&golden.sources).view(), &Unattended).expect("encode");
        assert_eq!(ours.info(), ModelInfo { weight_bytes: ours.info().weight_bytes, ..theirs.info() });
        let keys = golden.keys();
        let got = ours.generate(id, &five_decodings(), 3, &keys, &Unattended).expect("generate");
        let want = theirs.generate(same, &five_decodings(), 3, &keys, &Unattended).expect("generate");
        assert_eq!((&got.tokens, &got.offsets), (&want.tokens, &want.offsets), "{model}");
        close(&got.log_probs, &want.log_probs, 1e-4, model);

        let targets = TokenRows { tokens: want.tokens, offsets: want.offsets, type_ids: Vec::new() };
        let of: Vec<u32> = (0..targets.view().rows()).map(|i| (i / OUTPUTS) as u32).collect();
        let got = ours.log_likelihood(id, targets.view(), &of, &Unattended).expect("likelihoods");
        let want = theirs.log_likelihood(same, targets.view(), &of, &Unattended).expect("likelihoods");
        close(&got, &want, 1e-4, model);
    }
}

#[test]
fn a_row_of_any_length_is_read_and_written() {
    let model = T5S[1];
    // 3 heads and 3500^2 positions are more biases than are held at once.
    let long: Vec<u32> = (0..3500).map(|i| 3 + i * 7 % 160).collect();
    let sources = batch_of([&long, &vec![5, 9, 1]]);
    let target = batch_of([&long]);
    let (mut ours, mut theirs) = (open(model), candle(model));
    let id = ours.encode(sources.view(), &Unattended).expect("encode");
    let same = theirs.encode(sources.view(), &Unattended).expect("encode");
    let got = ours.log_likelihood(id, target.view(), &[0], &Unattended).expect("likelihoods");
    let want = theirs.log_likelihood(same, target.view(), &[0], &Unattended).expect("likelihoods");
    close(&got, &want, 1e-4, model);
}

#[test]
fn rows_wait_for_memory_without_changing_the_text() {
    let golden = generation(T5S[1]);
    let mut model = open(T5S[1]);
    let id = model.encode(batch_of(&golden.sources).view(), &Unattended).expect("encode");
    let keys = golden.keys();
    let plenty = model.generate(id, &five_decodings(), 3, &keys, &Unattended).expect("generate");
    // Of the 20 sequences a row: one row at a time; a few rows at a time, others joining as they dwindle.
    for sequences_at_once in [1, 50, 110] {
        let config = &model.model.config;
        model.cache_bytes =
            sequences_at_once * 64 * 2 * config.num_decoder_layers * config.inner() * size_of::<f32>();
        let scarce = model.generate(id, &five_decodings(), 3, &keys, &Unattended).expect("generate");
        assert_eq!(plenty.tokens, scarce.tokens, "{sequences_at_once}");
        close(&plenty.log_probs, &scarce.log_probs, 1e-4, "scarce memory");
    }
}

#[test]
fn logits_that_are_not_finite_are_reported() {
    let golden = generation(T5S[0]);
    let mut model = open(T5S[0]);
    let mode = InferenceMode::enter();
    let _ = model.model.weights.decoder.final_norm.fill_(f64::NAN);
    drop(mode);
    let id = model.encode(batch_of(&golden.sources[..2]).view(), &Unattended).expect("encode");
    let generated = model.generate(id, &five_decodings(), 0, &[0, 1], &Unattended).expect_err("generate");
    assert_eq!((generated.code, generated.message.contains("row 0")), (Code::NotFinite, true), "{generated}");
    let targets = batch_of([&vec![5, 1]]);
    let likelihood = model.log_likelihood(id, targets.view(), &[1], &Unattended).expect_err("likelihood");
    assert_eq!((likelihood.code, likelihood.message.contains("target 0")), (Code::NotFinite, true));
}
