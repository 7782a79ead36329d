//! Fine-tuning on one rank: PyTorch's losses and weights, and what holds for every family.

use cappy_plugin_abi::{Backend, Code, LoadRequest, Trainer, Unattended};
use cappy_plugin_libtorch::LibtorchBackend;
use cappy_plugin_models::encoder::config::EncoderConfig;
use cappy_plugin_models::encoder::layout::Layout;
use cappy_plugin_models::weights::Checkpoint;

use super::{Scores, Training, close, json, ragged, request};

/// As `options` say, JSON.
pub fn trainer(model: &str, options: &str) -> Box<dyn Trainer> {
    LibtorchBackend.load_trainer(&LoadRequest { options_json: options.into(), ..request(model) }).unwrap()
}

#[test]
fn fine_tuning_follows_pytorch() {
    follows_pytorch("roberta");
    follows_pytorch("distilbert");
}

fn follows_pytorch(model: &str) {
    // PyTorch's numbers are those of a CPU; a GPU sums in other orders, 20 updates long.
    let bound = if cappy_plugin_suite::device() == "cpu" { 1e-4 } else { 1e-3 };
    let expected: Training = json(model, "training.json");
    let mut trainer = trainer(model, r#"{"dropout": 0.0}"#);
    for (k, micro_batches) in expected.micro_batches.chunks(expected.accumulate).enumerate() {
        let mut loss = 0.0;
        for (i, micro) in micro_batches.iter().enumerate() {
            let batch = ragged(&micro.rows, None);
            let step = (k * expected.accumulate + i) as u64;
            loss += f64::from(trainer.accumulate(batch.view(), &micro.labels, step, &Unattended).unwrap());
        }
        let loss = loss / expected.accumulate as f64;
        let norm = trainer.update(expected.learning_rates[k]).unwrap();
        for (what, got, expected) in
            [("loss", loss, expected.losses[k]), ("gradient norm", norm, expected.gradient_norms[k])]
        {
            let error = (got - expected).abs();
            assert!(error <= bound * expected, "{model}, update {k}, {what}: {got} not {expected}");
        }
    }
    let rows = ragged(&expected.micro_batches[0].rows, None);
    close(
        &trainer.score(rows.view(), &Unattended).unwrap(),
        &expected.final_scores,
        bound as f32,
        "final scores",
    );

    let saved = tempfile::tempdir().unwrap();
    trainer.save_model(saved.path().to_str().unwrap()).unwrap();
    let checkpoint = Checkpoint::open(saved.path()).unwrap();
    let layout = Layout::new(&EncoderConfig::parse(&request(model).config_json).unwrap());
    assert_eq!(expected.final_weights.len(), layout.slots.list().len(), "every parameter of transformers");
    for slot in layout.slots.list() {
        let values = checkpoint.read(&slot.name, &slot.shape).unwrap();
        let expected = &expected.final_weights[&slot.name];
        // Keys' biases have no gradient but rounding, which AdamW makes as large as any other.
        if !slot.name.ends_with("key.bias") && !slot.name.ends_with("k_lin.bias") {
            close(&values[..expected.len()], expected, 1e-3, &slot.name);
        }
    }
}

/// Every family learns a batch by heart, with dropout in every place; every variable gets a gradient, or the update
/// would fail.
#[test]
fn every_family_is_trained() {
    for model in
        ["roberta", "bert", "distilbert", "modernbert", "modernbert-mean", "deberta-v3", "deberta-v2"]
    {
        let batch = &json::<Scores>(model, "scores.json").batches[3];
        let mut request = request(model);
        let of = batch.logits[0].len();
        if of > 1 {
            let mut config: serde_json::Value = serde_json::from_str(&request.config_json).unwrap();
            config["id2label"] = serde_json::json!({"0": "entailment"});
            config["ranking_label"] = serde_json::json!({"name": "entailment", "index": 1, "of": of});
            request.config_json = config.to_string();
        }
        let rows = batch.rows();
        let labels: Vec<f32> = (0..batch.rows.len()).map(|i| if i % 3 == 0 { 0.9 } else { 0.1 }).collect();
        let options = r#"{"dropout": 0.1}"#.to_owned();
        let mut trainer =
            LibtorchBackend.load_trainer(&LoadRequest { options_json: options, ..request }).unwrap();
        let error = |trainer: &mut dyn Trainer| {
            let scores = trainer.score(rows.view(), &Unattended).unwrap();
            scores.iter().zip(&labels).map(|(y, t)| (y - t).powi(2)).sum::<f32>() / labels.len() as f32
        };
        let before = error(trainer.as_mut());
        for step in 0..30 {
            trainer.accumulate(rows.view(), &labels, step, &Unattended).unwrap();
            let norm = trainer.update(3e-3).unwrap_or_else(|failure| panic!("{model}: {failure}"));
            assert!(norm > 0.0, "{model}");
        }
        let after = error(trainer.as_mut());
        assert!(after < before / 2.0, "{model}: from {before} to {after}");
    }
}

/// The gradient that autograd finds, against differences of losses in the direction of the gradient.
#[test]
fn gradients_lead_downhill_as_far_as_they_say() {
    for model in ["modernbert", "deberta-v3"] {
        let batch = &json::<Scores>(model, "scores.json").batches[3];
        let rows = batch.rows();
        let labels = vec![0.25; batch.rows.len()];
        // Without moments, an update of AdamW with a large epsilon is a step of plain descent.
        let options = r#"{"dropout": 0.0, "beta1": 0.0, "beta2": 0.0, "epsilon": 1e6}"#;
        let mut trainer = trainer(model, options);
        let first = trainer.accumulate(rows.view(), &labels, 0, &Unattended).unwrap();
        let rate = 1e-5;
        let norm = trainer.update(rate * 1e6).unwrap();
        let second = trainer.accumulate(rows.view(), &labels, 1, &Unattended).unwrap();
        let (got, expected) = (f64::from(first - second), rate * norm * norm);
        assert!((got / expected - 1.0).abs() < 0.05, "{model}: down by {got}, not {expected}");
    }
}

/// What was accumulated is gone, and the caller is told what to do.
#[test]
fn an_exploded_model_says_so() {
    let mut trainer = trainer("roberta", r#"{"dropout": 0.0}"#);
    let batch = ragged(&[vec![0, 9, 2], vec![0, 77, 2]], None);
    trainer.accumulate(batch.view(), &[0.5, 0.1], 0, &Unattended).unwrap();
    trainer.update(1e30).unwrap();
    let failure = trainer.accumulate(batch.view(), &[0.5, 0.1], 1, &Unattended).unwrap_err();
    assert_eq!(failure.code, Code::NotFinite);
    assert!(failure.message.contains("step 1") && failure.message.contains("learning rate"), "{failure}");
    assert_eq!(trainer.update(1e-3).unwrap_err().code, Code::FailedPrecondition);
}

/// A model whose head is missing trains from a keyed initial one, the same as candle's.
#[test]
fn an_encoder_without_head_gets_one() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(super::folder("roberta").join("model.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let body = stored.tensors().into_iter().filter(|(name, _)| !name.starts_with("classifier"));
    safetensors::serialize_to_file(body, None, &directory.path().join("model.safetensors")).unwrap();
    let whole = request("roberta");
    let bare = LoadRequest {
        model_dir: directory.path().to_str().unwrap().into(),
        config_json: whole.config_json.replace("RobertaForSequenceClassification", "RobertaForMaskedLM"),
        options_json: r#"{"seed": 5}"#.into(),
        ..whole
    };
    let rows = ragged(&[vec![0, 9, 2]], None);
    let score =
        |backend: &dyn Backend| backend.load_trainer(&bare).unwrap().score(rows.view(), &Unattended).unwrap();
    close(&score(&LibtorchBackend), &score(&cappy_plugin_candle::CandleBackend), 2e-5, "drawn heads");
    let failure =
        LibtorchBackend.load_scorer(&LoadRequest { options_json: String::new(), ..bare }).err().unwrap();
    assert!(failure.message.contains("without a classification head"), "{failure}");
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let refused = |request: LoadRequest, naming: &str| {
        let failure = LibtorchBackend.load_trainer(&request).err().unwrap();
        assert!(failure.message.contains(naming), "{failure}");
        failure.code
    };
    assert_eq!(refused(request("xlm-roberta"), "3 labels"), Code::Unsupported);
    assert_eq!(
        refused(LoadRequest { dtype: "bf16".into(), ..request("roberta") }, "bf16"),
        Code::Unsupported
    );
    let options_json = r#"{"beta1": 1.0}"#.to_owned();
    assert_eq!(refused(LoadRequest { options_json, ..request("roberta") }, "beta1"), Code::InvalidArgument);
}
