//! The two backends, side by side: the same scores, and with the same masks of dropout the same training. (Generated
//! text is compared in `src/t5/tests/agreement.rs`.) Candle's side runs on the CPU.

use cappy_plugin_abi::random::{fold, mix};
use cappy_plugin_abi::{Backend, LoadRequest, TokenRows, Unattended};
use cappy_plugin_candle::CandleBackend;
use cappy_plugin_libtorch::LibtorchBackend;

use super::{Training, close, json, on_the_cpu, request};

const FAMILIES: [&str; 7] =
    ["roberta", "xlm-roberta", "bert", "distilbert", "modernbert", "deberta-v3", "deberta-v2"];

/// Rows of 1 to `longest` tokens.
fn rows(count: u64, longest: u64) -> TokenRows {
    let mut batch = TokenRows::new();
    for row in 0..count {
        let key = fold(mix(7), row);
        let ids: Vec<u32> = (0..1 + key % longest).map(|i| 3 + (fold(key, i) % 60) as u32).collect();
        batch.push(&ids);
    }
    batch
}

#[test]
fn backends_score_alike() {
    for model in FAMILIES {
        let request = request(model);
        let mut candle = CandleBackend.load_scorer(&on_the_cpu(&request)).unwrap();
        let mut libtorch = LibtorchBackend.load_scorer(&request).unwrap();
        let rows = rows(40, u64::from(candle.info().max_tokens).min(90));
        let expected = candle.score(rows.view(), &Unattended).unwrap();
        close(&libtorch.score(rows.view(), &Unattended).unwrap(), &expected, 2e-5, model);
        let (ours, theirs) = (libtorch.info(), candle.info());
        assert_eq!((ours.parameters, ours.max_tokens), (theirs.parameters, theirs.max_tokens), "{model}");
    }
}

/// Over 20 updates with dropout, for each family that both train; a checkpoint of one is a checkpoint of the other.
#[test]
fn backends_train_alike() {
    let data: Training = json("roberta", "training.json");
    for model in ["roberta", "bert", "distilbert"] {
        let options_json = r#"{"dropout": 0.1}"#.to_owned();
        let request = LoadRequest { options_json, ..request(model) };
        let mut candle = CandleBackend.load_trainer(&on_the_cpu(&request)).unwrap();
        let mut libtorch = LibtorchBackend.load_trainer(&request).unwrap();
        for (update, micro_batches) in data.micro_batches.chunks(data.accumulate).take(20).enumerate() {
            for (i, micro) in micro_batches.iter().enumerate() {
                let step = (update * data.accumulate + i) as u64;
                let batch = super::ragged(&micro.rows, None);
                let [expected, got] = [&mut candle, &mut libtorch]
                    .map(|it| it.accumulate(batch.view(), &micro.labels, step, &Unattended).unwrap());
                assert!((got - expected).abs() < 1e-4, "{model}, step {step}: loss {got} not {expected}");
            }
            let [expected, got] = [&mut candle, &mut libtorch].map(|it| it.update(5e-4).unwrap());
            let error = (got - expected).abs();
            assert!(error < 1e-3 * expected, "{model}, update {update}: norm {got} not {expected}");
        }
        let rows = rows(20, 20);
        let expected = candle.score(rows.view(), &Unattended).unwrap();
        close(&libtorch.score(rows.view(), &Unattended).unwrap(), &expected, 1e-4, model);

        let directory = tempfile::tempdir().unwrap();
        candle.save_checkpoint(directory.path().to_str().unwrap()).unwrap();
        libtorch.load_checkpoint(directory.path().to_str().unwrap()).unwrap();
        close(&libtorch.score(rows.view(), &Unattended).unwrap(), &expected, 2e-5, "candle's checkpoint");
    }
}
