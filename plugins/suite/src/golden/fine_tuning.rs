//! Fine-tuning: PyTorch's losses and weights, and what holds for every family that is trained.

use std::collections::BTreeMap;
use std::path::Path;

use cappy_plugin_abi::{Code, LoadRequest, Trainer, Unattended};
use safetensors::{Dtype, SafeTensors};

use super::stored::{self, one_label};
use super::{Golden, close, request};
use crate::{batch_of, done, refused};

/// Shapes and values by names.
type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A saved model, and its tensors, which are f32.
fn saved(trainer: &mut dyn Trainer) -> (tempfile::TempDir, Weights) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    done(trainer.save_model(path(dir.path())));
    let bytes = std::fs::read(dir.path().join("model.safetensors")).expect("saved");
    let tensors = SafeTensors::deserialize(&bytes).expect("tensors");
    let tensors = tensors.tensors().into_iter().map(|(name, tensor)| {
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        let values = tensor.data().chunks_exact(4);
        let values = values.map(|it| f32::from_le_bytes(it.try_into().expect("four bytes"))).collect();
        (name, (tensor.shape().to_vec(), values))
    });
    (dir, tensors.collect())
}

fn path(dir: &Path) -> &str {
    dir.to_str().expect("a UTF-8 path")
}

/// Over 20 updates: losses, norms of gradients, and then scores and every parameter.
pub fn fine_tuning_follows_pytorch(golden: &Golden) {
    for model in ["roberta", "distilbert"] {
        let expected = stored::training(model);
        assert_eq!(expected.losses.len(), 20);
        let mut trainer = golden.trainer(&request(model), r#"{"dropout": 0.0}"#);
        for (k, micro_batches) in expected.micro_batches.chunks(expected.accumulate).enumerate() {
            let mut loss = 0.0;
            for (i, micro) in micro_batches.iter().enumerate() {
                let step = (k * expected.accumulate + i) as u64;
                let batch = micro.batch();
                loss += f64::from(done(trainer.accumulate(batch.view(), &micro.labels, step, &Unattended)));
            }
            let loss = loss / expected.accumulate as f64;
            let norm = done(trainer.update(expected.learning_rates[k]));
            for (what, got, expected) in
                [("loss", loss, expected.losses[k]), ("gradient norm", norm, expected.gradient_norms[k])]
            {
                assert!(
                    (got - expected).abs() <= golden.bounds.loss * expected,
                    "{model}, update {k}, {what}: {got} not {expected}"
                );
            }
        }
        let scores = done(trainer.score(expected.micro_batches[0].batch().view(), &Unattended));
        close(&scores, &expected.final_scores, golden.bounds.loss as f32, "final scores");

        let (_dir, weights) = saved(trainer.as_mut());
        assert!(weights.keys().eq(expected.final_weights.keys()), "{model}: every parameter of transformers");
        for (name, expected) in &expected.final_weights {
            // Keys' biases have no gradient but rounding, which AdamW makes as large as any other.
            if !name.ends_with("key.bias") && !name.ends_with("k_lin.bias") {
                close(&weights[name].1[..expected.len()], expected, 1e-3, name);
            }
        }
    }
}

/// Of a model with three labels, one is trained and saved.
pub fn one_label_of_several_is_trained(golden: &Golden) {
    let batch = &stored::scores("xlm-roberta")[3];
    let expected: Vec<f32> = batch.logits.iter().map(|logits| logits[2]).collect();
    let one = one_label(&request("xlm-roberta"), 2, 3);
    let mut trainer = golden.trainer(&one, "{}");
    let rows = batch.batch();
    let bound = golden.bounds.score;
    close(&done(trainer.score(rows.view(), &Unattended)), &expected, bound, "trainer");
    let (dir, weights) = saved(trainer.as_mut());
    assert_eq!(weights["classifier.out_proj.weight"].0, [1, 32], "one label is left");
    let mut again = golden.scorer(&LoadRequest { model_dir: path(dir.path()).into(), ..one });
    close(&done(again.score(rows.view(), &Unattended)), &expected, bound, "saved");
}

/// Every family learns a batch by heart, with dropout in every place; every parameter gets a gradient, or the update
/// would fail.
pub fn every_family_is_trained(golden: &Golden) {
    for model in golden.trained {
        let (request, batch) = with_one_label(model);
        let rows = batch.batch();
        let labels: Vec<f32> = (0..batch.rows.len()).map(|i| if i % 3 == 0 { 0.9 } else { 0.1 }).collect();
        let mut trainer = golden.trainer(&request, r#"{"dropout": 0.1}"#);
        let error = |trainer: &mut dyn Trainer| {
            let scores = done(trainer.score(rows.view(), &Unattended));
            scores.iter().zip(&labels).map(|(y, t)| (y - t).powi(2)).sum::<f32>() / labels.len() as f32
        };
        let before = error(trainer.as_mut());
        for step in 0..30 {
            done(trainer.accumulate(rows.view(), &labels, step, &Unattended));
            let norm = trainer.update(3e-3).unwrap_or_else(|failure| panic!("{model}: {failure}"));
            assert!(norm > 0.0, "{model}");
        }
        let after = error(trainer.as_mut());
        assert!(after < before / 2.0, "{model}: from {before} to {after}");
    }
}

/// Gradients against differences of losses in their own direction.
pub fn gradients_lead_downhill_as_far_as_they_say(golden: &Golden) {
    for model in golden.trained {
        let (request, batch) = with_one_label(model);
        let rows = batch.batch();
        let labels = vec![0.25; batch.rows.len()];
        // Without moments, an update of AdamW with a large epsilon is a step of plain descent.
        let options = r#"{"dropout": 0.0, "beta1": 0.0, "beta2": 0.0, "epsilon": 1e6}"#;
        let mut trainer = golden.trainer(&request, options);
        let first = done(trainer.accumulate(rows.view(), &labels, 0, &Unattended));
        let rate = 1e-5;
        let norm = done(trainer.update(rate * 1e6));
        let second = done(trainer.accumulate(rows.view(), &labels, 1, &Unattended));
        let (got, expected) = (f64::from(first - second), rate * norm * norm);
        assert!((got / expected - 1.0).abs() < 0.05, "{model}: down by {got}, not {expected}");
    }
}

/// A classifier and rows of its own; of several labels the second.
fn with_one_label(model: &str) -> (LoadRequest, stored::Batch) {
    let batch = stored::scores(model).swap_remove(3);
    let (request, of) = (request(model), batch.logits[0].len());
    (if of > 1 { one_label(&request, 1, of) } else { request }, batch)
}

/// What was accumulated is gone, and the caller is told what to do.
pub fn an_exploded_model_says_so(golden: &Golden) {
    let mut trainer = golden.trainer(&request("roberta"), r#"{"dropout": 0.0}"#);
    let batch = batch_of(&[vec![0, 9, 2], vec![0, 77, 2]]);
    done(trainer.accumulate(batch.view(), &[0.5, 0.1], 0, &Unattended));
    done(trainer.update(1e30));
    let exploded = trainer.accumulate(batch.view(), &[0.5, 0.1], 1, &Unattended);
    let failure = refused(exploded, Code::NotFinite, "step 1", "an exploded model");
    assert!(failure.message.contains("learning rate"), "{failure}");
    refused(trainer.update(1e-3), Code::FailedPrecondition, "", "an update without a gradient");
}

/// A model whose head is missing trains from a keyed initial one; a scorer refuses it.
pub fn an_encoder_without_head_gets_one(golden: &Golden) {
    let whole = request("roberta");
    let bytes = std::fs::read(format!("{}/model.safetensors", whole.model_dir)).expect("a fixture");
    let tensors = SafeTensors::deserialize(&bytes).expect("tensors").tensors();
    let body = tensors.into_iter().filter(|(name, _)| !name.starts_with("classifier"));
    let dir = tempfile::tempdir().expect("a temporary directory");
    safetensors::serialize_to_file(body, None, &dir.path().join("model.safetensors")).expect("writable");
    let headless = LoadRequest { model_dir: path(dir.path()).into(), ..whole };
    let bare = bare_roberta(&headless);
    let trainer = |seed: u64| golden.trainer(&bare, &format!(r#"{{"seed": {seed}}}"#));
    let rows = batch_of(&[vec![0, 9, 2]]);
    let score = |seed: u64| done(trainer(seed).score(rows.view(), &Unattended));
    assert_eq!(score(1), score(1));
    assert_ne!(score(1), score(2));

    // What was fine-tuned keeps the configuration of the bare encoder, and is a scorer.
    let (saved, _) = saved(trainer(1).as_mut());
    let model_dir = path(saved.path()).into();
    let mut scorer = golden.scorer(&LoadRequest { model_dir, ..bare.clone() });
    close(&done(scorer.score(rows.view(), &Unattended)), &score(1), golden.bounds.score, "saved");
    let scorer = golden.backend.load_scorer(&bare).map(drop);
    refused(scorer, Code::Unsupported, "without a classification head", "a bare encoder as a scorer");
    let damaged = golden.backend.load_trainer(&golden.trainer_request(&headless, "{}")).map(drop);
    refused(damaged, Code::BadModel, "classifier.dense.weight", "a classifier that lost its head");
}

/// Several labels, another number format, options without a meaning.
pub fn what_cannot_be_trained_is_refused(golden: &Golden) {
    let refused = |request: &LoadRequest, options: &str, code: Code, naming: &str| {
        let trainer = golden.backend.load_trainer(&golden.trainer_request(request, options)).map(drop);
        refused(trainer, code, naming, naming);
    };
    let roberta = request("roberta");
    refused(&request("xlm-roberta"), "{}", Code::Unsupported, "3 labels");
    refused(&LoadRequest { dtype: "bf16".into(), ..roberta.clone() }, "{}", Code::Unsupported, "bf16");
    refused(&roberta, r#"{"beta1": 1.0}"#, Code::InvalidArgument, "beta1");
}

/// The same model, described as one that was pretrained only.
fn bare_roberta(request: &LoadRequest) -> LoadRequest {
    let config = request.config_json.replace("RobertaForSequenceClassification", "RobertaForMaskedLM");
    assert_ne!(config, request.config_json);
    LoadRequest { config_json: config, ..request.clone() }
}
