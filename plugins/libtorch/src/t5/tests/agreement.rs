//! The candle backend does the same.

use super::*;
use cappy_plugin_abi::{Backend, ModelInfo};
use cappy_plugin_candle::CandleBackend;

/// On the CPU, where alone it generates.
fn candle(model: &str) -> Box<dyn Generator> {
    let request = LoadRequest { device: "cpu".into(), ..request(model) };
    CandleBackend.load_generator(&request).expect("model")
}

#[test]
fn candle_generates_the_same_text_and_finds_it_as_likely() {
    for model in MODELS {
        let golden = expected(model);
        let (mut ours, id) = encoded(model, &golden.sources);
        let mut theirs = candle(model);
        let same = theirs.encode(rows(&golden.sources).view(), &Unattended).expect("encode");
        assert_eq!(ours.info(), ModelInfo { weight_bytes: ours.info().weight_bytes, ..theirs.info() });
        let keys: Vec<u64> = (0..golden.sources.len() as u64).map(|i| i * 7 + 1).collect();
        let got = ours.generate(id, &five(), 3, &keys, &Unattended).expect("generate");
        let want = theirs.generate(same, &five(), 3, &keys, &Unattended).expect("generate");
        assert_eq!((&got.tokens, &got.offsets), (&want.tokens, &want.offsets), "{model}");
        close(&got.log_probs, &want.log_probs);

        let targets = TokenRows { tokens: want.tokens, offsets: want.offsets, type_ids: Vec::new() };
        let of: Vec<u32> = (0..targets.view().rows() as u32).map(|i| i / 17).collect();
        let got = ours.log_likelihood(id, targets.view(), &of, &Unattended).expect("likelihoods");
        let want = theirs.log_likelihood(same, targets.view(), &of, &Unattended).expect("likelihoods");
        close(&got, &want);
    }
}

#[test]
fn a_row_of_any_length_is_read_and_written() {
    let model = MODELS[1];
    // 3 heads and 3500^2 positions are more biases than are held at once.
    let long: Vec<u32> = (0..3500).map(|i| 3 + i * 7 % 160).collect();
    let sources = [long.clone(), vec![5, 9, 1]];
    let target = rows([&long]);
    let (mut ours, id) = encoded(model, &sources);
    let mut theirs = candle(model);
    let same = theirs.encode(rows(&sources).view(), &Unattended).expect("encode");
    let got = ours.log_likelihood(id, target.view(), &[0], &Unattended).expect("likelihoods");
    let want = theirs.log_likelihood(same, target.view(), &[0], &Unattended).expect("likelihoods");
    close(&got, &want);
}

fn close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() < 1e-4, "token {i}: {got} {want}");
    }
}
