//! The two backends, side by side: the same scores, and with the same masks of dropout the same training. (Generated
//! text is compared in `src/t5/tests.rs`.) Candle's side runs on the CPU.

use cappy_plugin_abi::random::{fold, mix};
use cappy_plugin_abi::{Backend, LoadRequest, TokenRows, Unattended};
use cappy_plugin_candle::CandleBackend;
use cappy_plugin_libtorch::LibtorchBackend;
use cappy_plugin_suite::golden::stored::training;
use cappy_plugin_suite::golden::{close, request};

const FAMILIES: [&str; 7] =
    ["roberta", "xlm-roberta", "bert", "distilbert", "modernbert", "deberta-v3", "deberta-v2"];

fn on_the_cpu(request: &LoadRequest) -> LoadRequest {
    // These models are tiny and tests run side by side: threads of libtorch's own would only wait for a core.
    tch::set_num_threads(1);
    LoadRequest { device: "cpu".into(), ..request.clone() }
}

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

/// Rows much longer than the window of local attention, and nearly as long as each other, so that some are padded.
#[test]
fn long_rows_of_modernbert_score_alike() {
    let mut request = request("modernbert");
    let mut config: serde_json::Value = serde_json::from_str(&request.config_json).unwrap();
    config["max_position_embeddings"] = 2048.into();
    request.config_json = config.to_string();
    let mut rows = TokenRows::new();
    for length in [700_u32, 690, 300, 5] {
        rows.push(&(0..length).map(|i| 5 + (i * i * 7 + length) % 60).collect::<Vec<u32>>());
    }
    let mut candle = CandleBackend.load_scorer(&on_the_cpu(&request)).unwrap();
    let expected = candle.score(rows.view(), &Unattended).unwrap();
    let got = LibtorchBackend.load_scorer(&request).unwrap().score(rows.view(), &Unattended);
    close(&got.unwrap(), &expected, 2e-5, "long rows");
}

/// Over 20 updates with dropout, for each family that both train; a checkpoint of one is a checkpoint of the other.
#[test]
fn backends_train_alike() {
    let data = training("roberta");
    for model in ["roberta", "bert", "distilbert"] {
        let options_json = r#"{"dropout": 0.1}"#.to_owned();
        let request = LoadRequest { options_json, ..request(model) };
        let mut candle = CandleBackend.load_trainer(&on_the_cpu(&request)).unwrap();
        let mut libtorch = LibtorchBackend.load_trainer(&request).unwrap();
        for (update, micro_batches) in data.micro_batches.chunks(data.accumulate).take(20).enumerate() {
            for (i, micro) in micro_batches.iter().enumerate() {
                let step = (update * data.accumulate + i) as u64;
                let batch = micro.batch();
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

/// What a model without a head starts from.
#[test]
fn backends_draw_the_same_head() {
    let directory = tempfile::tempdir().unwrap();
    let whole = request("roberta");
    let bytes = std::fs::read(format!("{}/model.safetensors", whole.model_dir)).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let body = stored.tensors().into_iter().filter(|(name, _)| !name.starts_with("classifier"));
    safetensors::serialize_to_file(body, None, &directory.path().join("model.safetensors")).unwrap();
    let bare = LoadRequest {
        model_dir: directory.path().to_str().unwrap().into(),
        config_json: whole.config_json.replace("RobertaForSequenceClassification", "RobertaForMaskedLM"),
        options_json: r#"{"seed": 5}"#.into(),
        ..whole
    };
    let mut rows = TokenRows::new();
    rows.push(&[0, 9, 2]);
    let score = |backend: &dyn Backend, request: &LoadRequest| {
        backend.load_trainer(request).unwrap().score(rows.view(), &Unattended).unwrap()
    };
    let expected = score(&CandleBackend, &on_the_cpu(&bare));
    close(&score(&LibtorchBackend, &bare), &expected, 2e-5, "drawn heads");
}
