//! Scores of every family.

use cappy_plugin_abi::{Backend, Scorer, Unattended};
use cappy_plugin_libtorch::LibtorchBackend;

use super::{Scores, close, json, on_the_cpu, ragged, request};

const FAMILIES: [&str; 8] = [
    "roberta",
    "xlm-roberta",
    "bert",
    "distilbert",
    "modernbert",
    "modernbert-mean",
    "deberta-v3",
    "deberta-v2",
];

fn scorer(model: &str, dtype: &str) -> Box<dyn Scorer> {
    let request = cappy_plugin_abi::LoadRequest { dtype: dtype.into(), ..request(model) };
    LibtorchBackend.load_scorer(&request).unwrap()
}

#[test]
fn scores_are_those_of_transformers() {
    for model in FAMILIES {
        let mut scorer = scorer(model, "f32");
        for (i, batch) in json::<Scores>(model, "scores.json").batches.iter().enumerate() {
            let got = scorer.score(batch.rows().view(), &Unattended).unwrap();
            close(&got, &batch.logits.concat(), 2e-5, &format!("{model}, batch {i}"));
        }
    }
}

/// Scores in 8 bits of mantissa: near those of transformers, and in their order where these differ clearly.
#[test]
fn scores_in_bf16_are_near() {
    for model in FAMILIES {
        let mut scorer = scorer(model, "bf16");
        assert_eq!(scorer.info().dtype, "bf16");
        for (i, batch) in json::<Scores>(model, "scores.json").batches.iter().enumerate() {
            let got = scorer.score(batch.rows().view(), &Unattended).unwrap();
            close(&got, &batch.logits.concat(), 3e-2, &format!("{model}, batch {i}"));
        }
    }
}

#[test]
fn a_row_alone_scores_as_in_a_batch() {
    // A GPU's kernels cut their sums as the whole batch's size asks for.
    let bound = if cappy_plugin_suite::device() == "cpu" { 5e-6 } else { 2e-5 };
    for model in FAMILIES {
        let mut scorer = scorer(model, "f32");
        // Twice over: groups of several rows, with and without padding.
        let batch = &json::<Scores>(model, "scores.json").batches[3];
        let rows = [batch.rows.as_slice(), &batch.rows].concat();
        let types = batch.type_ids.as_ref().map(|types| [types.as_slice(), types].concat());
        let together = scorer.score(ragged(&rows, types.as_deref()).view(), &Unattended).unwrap();
        let labels = together.len() / rows.len();
        for (i, row) in rows.iter().enumerate() {
            let types = types.as_ref().map(|types| std::slice::from_ref(&types[i]));
            let alone = ragged(std::slice::from_ref(row), types);
            let alone = scorer.score(alone.view(), &Unattended).unwrap();
            close(&alone, &together[i * labels..][..labels], bound, &format!("{model}, row {i}"));
        }
    }
}

/// Rows much longer than the window of local attention, and nearly as long as each other, so that some are padded.
#[test]
fn long_rows_of_modernbert_agree_with_candle() {
    let mut request = request("modernbert");
    let mut config: serde_json::Value = serde_json::from_str(&request.config_json).unwrap();
    config["max_position_embeddings"] = 2048.into();
    request.config_json = config.to_string();
    let mut rows = cappy_plugin_abi::TokenRows::new();
    for length in [700_u32, 690, 300, 5] {
        rows.push(&(0..length).map(|i| 5 + (i * i * 7 + length) % 60).collect::<Vec<u32>>());
    }
    let mut candle = cappy_plugin_candle::CandleBackend.load_scorer(&on_the_cpu(&request)).unwrap();
    let expected = candle.score(rows.view(), &Unattended);
    let got = LibtorchBackend.load_scorer(&request).unwrap().score(rows.view(), &Unattended);
    close(&got.unwrap(), &expected.unwrap(), 2e-5, "long rows");
}

/// Of a model with three labels, one is loaded.
#[test]
fn one_label_of_several_ranks() {
    for model in ["xlm-roberta", "deberta-v2"] {
        let batch = &json::<Scores>(model, "scores.json").batches[3];
        let mut request = request(model);
        let mut config: serde_json::Value = serde_json::from_str(&request.config_json).unwrap();
        config["id2label"] = serde_json::json!({"0": "entailment"});
        config["ranking_label"] = serde_json::json!({"name": "entailment", "index": 2, "of": 3});
        request.config_json = config.to_string();
        let mut scorer = LibtorchBackend.load_scorer(&request).unwrap();
        assert_eq!(scorer.info().labels, 1, "{model}");
        let got = scorer.score(batch.rows().view(), &Unattended).unwrap();
        let expected: Vec<f32> = batch.logits.iter().map(|logits| logits[2]).collect();
        close(&got, &expected, 2e-5, model);
    }
}
